# SPDX-License-Identifier: Apache-2.0
"""Nova's service user, whom Glance lets add a location to an image."""

from __future__ import annotations

import typing as ty

from keystoneauth1 import loading
from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext.upload import connection

CONF = conf.CONF
LOG = logging.getLogger(__name__)

#: Glance's role of users that may add a location since release 29
#: (glance/api/v2/images.py, add_location).
ROLE = 'service'


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
    auth: ty.Any = loading.load_auth_from_conf_options(CONF, 'service_user')
    try:
        return list(auth.get_access(session).role_names)
    finally:
        session.session.close()
