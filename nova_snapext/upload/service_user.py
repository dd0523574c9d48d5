# SPDX-License-Identifier: Apache-2.0
"""Nova's service user, and what Glance lets this user do."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import typing as ty

from keystoneauth1 import loading
from keystoneauth1 import plugin
from keystoneauth1 import session as ks_session
from nova import context as nova_context
from nova import exception as nova_exception
from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext.upload import connection
from nova_snapext.upload import service_login

CONF = conf.CONF
LOG = logging.getLogger(__name__)

#: Glance's role of users that may add a location since release 29
#: (glance/api/v2/images.py, add_location).
ROLE = 'service'


def context(token: cancel.CancelToken) -> nova_context.RequestContext:
    """Return a context of Nova's service user, for Nova's Glance client.

    It has made no request yet.

    :param token: its cancellation ends the requests to Keystone, with the
        cause
    :raises InvalidConfiguration: of Nova: [service_user] has no credentials
    """
    auth = service_login.load()
    if auth is None:
        raise nova_exception.InvalidConfiguration(
            f'[{service_login.GROUP}]auth_type is not set')
    # Nova's policies, which would look for its roles, do not matter here.
    return nova_context.RequestContext(
        user_auth_plugin=_CancellableAuth(auth, token), is_admin=False,
        overwrite=False)


class _CancellableAuth(plugin.BaseAuthPlugin):
    """Authenticate as a user by requests of our own.

    Nova's Glance client asks its plugin for an endpoint with Nova's session,
    which waits for Keystone and Glance without a limit.
    """

    def __init__(self, auth: service_login.ServiceLogin,
                 token: cancel.CancelToken):
        super().__init__()
        self._auth = auth
        self._token = token

    @contextlib.contextmanager
    def _own_session(self) -> Iterator[ks_session.Session]:
        session = connection.cancellable_session(
            self._token, service_login.GROUP)
        try:
            yield session
        finally:
            session.session.close()

    def get_token(self, session: ks_session.Session,
                  **_kwargs: ty.Any) -> str | None:
        with self._own_session() as own:
            return self._auth.get_token(own)

    def get_endpoint(self, session: ks_session.Session,
                     **kwargs: ty.Any) -> str | None:
        # As for users, it is that of the catalog: Glance is not asked.
        kwargs['skip_discovery'] = True
        with self._own_session() as own:
            return self._auth.get_endpoint(own, **kwargs)

    def invalidate(self) -> bool:
        return self._auth.invalidate()


def missing_reason(token: cancel.CancelToken | None = None) -> str | None:
    """Return why Glance would not take Nova for a service.

    :param token: its cancellation ends the request to Keystone, with the cause
    :returns: None if it does, or if it is not known
    """
    if not CONF.service_user.send_service_user_token:
        return ('Nova sends no service token, and Glance lets only services '
                'add a location. Set [service_user]send_service_user_token, '
                f'with a user that has the role "{ROLE}"')
    try:
        roles = _roles(token or cancel.CancelToken())
    except Exception as error:
        if token is not None:
            token.raise_if_cancelled()
        LOG.debug('Keystone does not tell the roles of Nova\'s service user: '
                  '%s', error)
        return None
    if ROLE in roles:
        return None
    return (f'the user of [service_user] has the roles '
            f'{", ".join(sorted(roles))}, and Glance lets only users with the '
            f'role "{ROLE}" add a location')


def _roles(token: cancel.CancelToken) -> list[str]:
    """Return the roles of the service user, by a request of our own.

    Nova's plugin for this user has a lock, see CancellableClient.
    """
    session = connection.cancellable_session(token)
    auth: ty.Any = loading.load_auth_from_conf_options(
        CONF, service_login.GROUP)
    try:
        return list(auth.get_access(session).role_names)
    finally:
        session.session.close()
