# SPDX-License-Identifier: Apache-2.0
"""A small client of the OpenStack APIs: requests and responses in JSON."""

import json
import time
from typing import Any
import urllib.error
import urllib.request

from devcloud import errors
from devcloud import state as cloud_state

#: Seconds until a service must respond.
TIMEOUT = 120

#: Seconds to use one token; Keystone's tokens are valid for an hour.
TOKEN_AGE = 1800

#: Newest microversion of the compute API that was tested.
COMPUTE_VERSION = '2.96'

#: Path of each service's API.
PATHS = {
    'keystone': '/v3',
    'glance': '/v2',
    'neutron': '/v2.0',
    'nova-api': '/v2.1',
    'placement': '',
}


class Client:
    """Sends requests to the services as one user.

    :param user: user name, in the default domain
    :param password: its password
    :param project: project name, in the default domain
    """

    def __init__(self, user: str, password: str, project: str) -> None:
        self.user = user
        self.password = password
        self.project = project
        self._token = ''
        self._token_until = 0.0

    @classmethod
    def admin(cls, state: cloud_state.State) -> 'Client':
        return cls('admin', state.passwords()['admin'], 'admin')

    @classmethod
    def demo(cls, state: cloud_state.State) -> 'Client':
        """Return a client for the plain user: a member of its project."""
        return cls('demo', state.passwords()['demo'], 'demo')

    def get(self, service: str, path: str) -> Any:
        return self.request('GET', service, path)

    def post(self, service: str, path: str, body: Any) -> Any:
        return self.request('POST', service, path, body)

    def put(self, service: str, path: str, body: Any = None) -> Any:
        return self.request('PUT', service, path, body)

    def delete(self, service: str, path: str, missing_ok: bool = False
               ) -> None:
        try:
            self.request('DELETE', service, path)
        except errors.ApiError as exc:
            if not (missing_ok and exc.code == 404):
                raise

    def request(self, method: str, service: str, path: str,
                body: Any = None) -> Any:
        """Send a request and return the response.

        :param method: HTTP method
        :param service: one of PATHS
        :param path: path below the service's version, with its query
        :param body: to send as JSON; None: no body
        :returns: the JSON of the response, or None if it has none
        :raises: ApiError if the service refuses
        """
        data = None if body is None else json.dumps(body).encode()
        with self.open(method, service, path, data,
                       {'Content-Type': 'application/json'}) as response:
            content = response.read()
        return json.loads(content) if content else None

    def open(self, method: str, service: str, path: str,
             data: Any = None, headers: dict[str, str] | None = None) -> Any:
        """Send a request and return the open response, to read its bytes.

        :param data: bytes or a binary file to send
        :param headers: further headers
        :raises: ApiError if the service refuses
        """
        address = cloud_state.url(service, PATHS[service] + path)
        request = urllib.request.Request(
            address, data, method=method, headers={
                'X-Auth-Token': self.token(),
                'Accept': 'application/json',
                'OpenStack-API-Version': f'compute {COMPUTE_VERSION}',
                **(headers or {})})
        return _send(request)

    def token(self) -> str:
        """Return a token for the project; a token is reused for some time."""
        if time.monotonic() > self._token_until:
            domain = {'name': 'Default'}
            body = {'auth': {
                'identity': {
                    'methods': ['password'],
                    'password': {'user': {
                        'name': self.user, 'domain': domain,
                        'password': self.password}}},
                'scope': {'project': {
                    'name': self.project, 'domain': domain}}}}
            request = urllib.request.Request(
                cloud_state.url('keystone', '/v3/auth/tokens'),
                json.dumps(body).encode(), method='POST',
                headers={'Content-Type': 'application/json'})
            with _send(request) as response:
                self._token = response.headers['X-Subject-Token']
            self._token_until = time.monotonic() + TOKEN_AGE
        return self._token


def _send(request: urllib.request.Request) -> Any:
    method, address = request.get_method(), request.full_url
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as exc:
        raise errors.ApiError(method, address, exc.code,
                              exc.read().decode(errors='replace')) from exc
    except OSError as exc:
        raise errors.CloudError(
            f'{method} {address} got no response ({exc}); is the cloud up? '
            f'Run `tools/cloud status`.') from exc
