# SPDX-License-Identifier: Apache-2.0
"""Why a snapshot failed, for the user who requested it.

An error that this package did not raise has a text for operators: of libvirt,
of Nova, of Glance. Users read a sentence of ours in its place, and the same
one for all errors that they can do nothing about.
"""

from __future__ import annotations

import glanceclient.exc
from keystoneauth1 import exceptions as ks_exceptions
import libvirt
from nova import exception as nova_exception

from nova_snapext import exception
from nova_snapext.hypervisor import errors
from nova_snapext import upload

#: Characters of an event's name in Nova's table instance_actions_events, and
#: of a fault's message in instance_faults.
LENGTH = 255

# Nova itself does not say whether an instance was deleted, or has vanished.
GONE = ('The server was deleted, or is no longer on its host. Its snapshot '
        'was not finished.')
REFUSED = 'The image service (Glance) refused the image: '
TOKEN = (f'{REFUSED}your token has expired or was revoked, or you may not do '
         f'this. Log in again, then take the snapshot again.')
AGENT = ('The guest agent (qemu-guest-agent) of the server does not work. The '
         'image of the server requires it (os_require_quiesce). Check the '
         'agent, then take the snapshot again.')

#: The first class of the table that an error is of counts. What is not in the
#: table is of the cloud.
TEXTS: tuple[tuple[type[BaseException], str], ...] = (
    (nova_exception.ImageNotFound,
     'The image was deleted before it was complete. This cancels the '
     'snapshot.'),
    (nova_exception.InstanceNotFound, GONE),
    (nova_exception.InstanceNotRunning, GONE),
    (nova_exception.UnexpectedDeletingTaskStateError,
     'The server is being deleted. Its snapshot was not finished.'),
    (nova_exception.UnexpectedTaskStateError,
     'Another request changed the state of the server during the snapshot. '
     'Take the snapshot again.'),
    (nova_exception.InstanceInvalidState,
     'No snapshot can be taken in this state of the server, such as during a '
     'rescue. Take it again when the server is back to normal.'),
    (nova_exception.InstanceQuiesceFailed, AGENT),
    (nova_exception.InstanceQuiesceNotSupported, AGENT),
    (nova_exception.InstanceAgentNotEnabled, AGENT),
    (nova_exception.ImageQuotaExceeded,
     REFUSED + upload.refusal_for_users(413, None) + '.'),
    (nova_exception.ImageNotAuthorized, TOKEN),
    (nova_exception.ImageBadRequest,
     REFUSED + upload.refusal_for_users(400, None) + '.'),
    (glanceclient.exc.HTTPUnauthorized, TOKEN),
    (ks_exceptions.Unauthorized, TOKEN),
    (nova_exception.GlanceConnectionFailed,
     'The image service (Glance) does not answer. Take the snapshot again '
     'later, or ask an operator of the cloud.'),
)

#: Codes of libvirt's errors that are the guest's own.
LIBVIRT_TEXTS = {
    libvirt.VIR_ERR_NO_DOMAIN: GONE,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: AGENT,
    libvirt.VIR_ERR_AGENT_UNSYNCED: AGENT,
    errors.AGENT_COMMAND_TIMEOUT: AGENT,
}


def of_error(error: BaseException) -> str:
    """Return why a snapshot failed, without what is of the host.

    :returns: one line of printable ASCII, of at most LENGTH characters: what
        Nova's database takes in any case
    """
    line = ' '.join(_text(error).split())
    safe = ''.join(char if ' ' <= char <= '~' else
                   char.encode('unicode_escape').decode() for char in line)
    return safe if len(safe) <= LENGTH else f'{safe[:LENGTH - 3]}...'


def _text(error: BaseException) -> str:
    if isinstance(error, exception.IncompleteImageLeft) and error.__cause__:
        return f'{_text(error.__cause__)} {error.format_message()}'
    if isinstance(error, exception.SnapextError):
        return error.format_message()
    if isinstance(error, glanceclient.exc.HTTPException):
        return (f'{REFUSED}'
                f'{upload.refusal_for_users(error.code, error.details)}.')
    if isinstance(error, libvirt.libvirtError):
        return LIBVIRT_TEXTS.get(error.get_error_code(), _of_cloud(error))
    return next((text for known, text in TEXTS if isinstance(error, known)),
                _of_cloud(error))


def _of_cloud(error: BaseException) -> str:
    return str(exception.SnapextError.user_msg_fmt % {
        'error': type(error).__name__})
