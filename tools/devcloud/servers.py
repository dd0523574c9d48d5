# SPDX-License-Identifier: Apache-2.0
"""Manage servers and images through the public APIs."""

import contextlib
import hashlib
import pathlib
from typing import Any

from devcloud import api
from devcloud import errors
from devcloud import layout
from devcloud import wait

#: Maximum seconds of a server's build: Nova copies and converts its image.
BUILD_TIMEOUT = 300


def image_id(client: api.Client, name: str) -> str:
    """Return the id of the image with a name.

    :raises: CloudError if there is no such image, or more than one
    """
    found = client.get('glance', f'/images?name={name}')['images']
    if len(found) != 1:
        raise errors.CloudError(f'{len(found)} images have the name {name}; '
                                f'run `tools/cloud up` to upload the guest '
                                f'images')
    return found[0]['id']


def create(client: api.Client, name: str, image: str, flavor: str,
           timeout: float = BUILD_TIMEOUT, **properties: Any) -> str:
    """Boot a server without network, and wait until it is active.

    :param image: image id
    :param flavor: one of catalogue.FLAVORS
    :param properties: more parameters of the request
    :returns: its id
    :raises: CloudError if Nova cannot build it
    """
    server = client.post('nova-api', '/servers', {'server': {
        'name': name, 'imageRef': image, 'flavorRef': flavor,
        'networks': 'none', **properties}})['server']['id']
    await_status(client, server, 'ACTIVE', timeout)
    return server


def show(client: api.Client, server: str) -> dict[str, Any]:
    return client.get('nova-api', f'/servers/{server}')['server']


def await_status(client: api.Client, server: str, status: str,
                 timeout: float = 120) -> None:
    """Wait until a server has a status and no task.

    :raises: CloudError if its status becomes ERROR instead
    """
    def check() -> bool:
        found = show(client, server)
        if found['status'] == 'ERROR' and status != 'ERROR':
            raise errors.CloudError(f'server {server} is in ERROR: '
                                    f'{found.get("fault")}')
        return (found['status'] == status
                and not found['OS-EXT-STS:task_state'])

    wait.until(f'server {server} {status}', check, timeout, interval=0.5)


def action(client: api.Client, server: str, name: str,
           arguments: Any = None) -> Any:
    """Request an action, such as `os-stop`, `pause` or `createImage`."""
    return client.post('nova-api', f'/servers/{server}/action',
                       {name: arguments})


def delete(client: api.Client, server: str, timeout: float = 120) -> None:
    """Delete a server and wait until it no longer exists."""
    client.delete('nova-api', f'/servers/{server}', missing_ok=True)

    def is_gone() -> bool:
        try:
            show(client, server)
        except errors.ApiError as exc:
            if exc.code == 404:
                return True
            raise
        return False

    wait.until(f'end of server {server}', is_gone, timeout, interval=0.5)


def download(client: api.Client, image: str, target: pathlib.Path,
             algorithm: str = 'sha512') -> str:
    """Download an image to a file.

    :returns: the digest of its content, in hexadecimal
    """
    digest = hashlib.new(algorithm)
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(
            client.open('GET', 'glance', f'/images/{image}/file'))
        file = stack.enter_context(open(target, 'wb'))
        while chunk := response.read(layout.MIB):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
