# SPDX-License-Identifier: Apache-2.0
"""The login of Nova's service user, which all clients of a process share."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import typing as ty

from keystoneauth1 import loading
from keystoneauth1 import plugin
from keystoneauth1 import session as ks_session

from nova_snapext import conf

CONF = conf.CONF

#: The section of nova.conf that has its credentials.
GROUP = 'service_user'


@dataclasses.dataclass
class _Shared:
    """The state of the plugin that logged in last; None if none has."""

    state: object | None = None


_shared = _Shared()


class ServiceLogin(plugin.BaseAuthPlugin):
    """A plugin of the service user that starts with the token of another one.

    Keystone takes up to some tenths of a second for each login, as it hashes
    the password, and a snapshot waits for that. All of Nova shares one plugin,
    but that has a lock, which a request to Keystone holds. No cancellation
    ends the wait for it while another request of Nova hangs. Under eventlet,
    greenlets of different native threads can't wait for one lock at all. So
    each client has a plugin of its own, and takes over only the token.

    :param auth: keystoneauth's plugin, which has not been used yet
    """

    def __init__(self, auth: ty.Any):
        super().__init__()
        self._auth = auth

    @contextlib.contextmanager
    def _token_shared(self) -> Iterator[None]:
        before = self._state()
        if before is None and _shared.state is not None:
            before = _shared.state
            self._auth.set_auth_state(before)
        yield
        state = self._state()
        # A token that was here before may be older than what others have.
        if state != before:
            _shared.state = state

    def _state(self) -> object | None:
        """Return the plugin's token; None if it has none, or tells none."""
        try:
            return ty.cast(object | None, self._auth.get_auth_state())
        except NotImplementedError:
            # What keystoneauth1/plugin.py raises for a plugin without state.
            return None

    def get_token(self, session: ks_session.Session,
                  **_kwargs: ty.Any) -> str | None:
        with self._token_shared():
            return ty.cast(str | None, self._auth.get_token(session))

    def get_endpoint(self, session: ks_session.Session,
                     **kwargs: ty.Any) -> str | None:
        with self._token_shared():
            return ty.cast(str | None,
                           self._auth.get_endpoint(session, **kwargs))

    def get_connection_params(self, session: ks_session.Session) -> ty.Any:
        return self._auth.get_connection_params(session)

    def invalidate(self) -> bool:
        # Another client may have logged in again since.
        if _shared.state == self._state():
            _shared.state = None
        return bool(self._auth.invalidate())


def load() -> ServiceLogin | None:
    """Return a plugin of the service user, for one client.

    :returns: None if [service_user]auth_type is not set
    """
    auth: ty.Any = loading.load_auth_from_conf_options(CONF, GROUP)
    return None if auth is None else ServiceLogin(auth)
