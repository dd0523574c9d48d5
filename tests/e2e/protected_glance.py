# SPDX-License-Identifier: Apache-2.0
"""A second Glance of the cloud, which protects properties of images."""

from collections.abc import Iterator
import contextlib
import dataclasses
import shutil
import socket

from devcloud import config
from devcloud import services
from devcloud import shell
from devcloud import state as cloud_state

NAME = 'glance-protected'


@contextlib.contextmanager
def running(state: cloud_state.State,
            rules: config.Sections) -> Iterator[str]:
    """Run a Glance with the images of the cloud, and rules of its own.

    :param rules: the property protections, see Glance's
        property-protections.conf
    :yields: its URL
    """
    with socket.create_server((cloud_state.HOST, 0)) as free:
        port = free.getsockname()[1]
    original = services.glance(state)
    etc = state.etc / NAME
    address = f'{cloud_state.HOST}:{port}'
    service = dataclasses.replace(
        original, name=NAME, port=port,
        argv=tuple(address if word.startswith(f'{cloud_state.HOST}:') else word
                   for word in original.argv),
        env={**original.env, 'OS_GLANCE_CONFIG_DIR': str(etc)})
    protections = etc / 'property-protections.conf'
    everything_else = {'.*': dict.fromkeys(
        ('create', 'read', 'update', 'delete'), '@')}
    settings = (state.etc / 'glance/glance-api.conf').read_text() + (
        config.render({'DEFAULT': {'property_protection_file': protections}}))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, etc, ignore_errors=True)
        for path, text in (
                (etc / 'glance-api.conf', settings),
                (protections, config.render({**rules, **everything_else}))):
            shell.write(path, text, mode=0o640, group=config.USER)
        stack.callback(service.stop, state)
        # A run that was killed may have left one, on another port.
        service.stop(state)
        service.start(state)
        service.await_ready(state)
        yield f'http://{address}'
