# SPDX-License-Identifier: Apache-2.0

import importlib
import inspect
import pkgutil
import re
from unittest import mock

import glanceclient.exc
from keystoneauth1 import exceptions as ks_exceptions
import libvirt
from nova import exception as nova_exception
from oslo_concurrency import processutils
import oslo_messaging

import nova_snapext
from nova_snapext.encode import base as encode_base
from nova_snapext import exception
from nova_snapext.snapshot import user_text
from nova_snapext import upload
from tests.unit import base
from tests.unit.snapshot import base as snapshot_base
from tests.unit import test_exception

#: What the host's own text may contain.
SECRETS = ('/secret/disk', 'compute-17.example.org', '10.1.2.3',
           "internal error: unable to execute QEMU command 'x'")

OF_CLOUD = 'A problem of the cloud, not of your server or your request'

#: Our errors that the user can do something about, and words of what users
#: read. All other ones are of the cloud.
OF_USERS = {
    exception.StrategyRefused: 'Strategy ',
    exception.QuiesceFailed: 'os_require_quiesce',
    exception.GuestBusy: 'Another operation of the server',
    exception.DiskBusy: 'Another operation of the server',
    exception.SnapshotInProgress: 'Another snapshot of the server',
    exception.RecoveryInProgress: 'An earlier snapshot of the server',
    exception.NotRecovered: 'An earlier snapshot of the server',
    exception.OperationRefused: 'an earlier snapshot of it',
    exception.JournalEntryUnusable: 'An earlier snapshot of the server',
    exception.ThawFailed: 'qemu-guest-agent',
    exception.IncompleteImageLeft: 'incomplete image',
    exception.ServiceStopping: 'The cloud is being maintained',
    exception.GuestStopped: 'The server was shut off',
    exception.InsufficientSpace: 'has not enough free space',
    exception.GlanceRefused: 'The image service (Glance) refused the image',
}

IMAGE = {'image_id': base.IMAGE_ID}

#: Errors that others raise, and words of what users read.
OF_OTHERS = (
    (nova_exception.ImageNotFound(**IMAGE), 'The image was deleted'),
    (nova_exception.InstanceNotFound(instance_id='i'), 'server was deleted'),
    (nova_exception.InstanceNotRunning(instance_id='i'),
     'server was deleted'),
    (nova_exception.UnexpectedDeletingTaskStateError(
        instance_uuid='i', expected='e', actual='a'), 'is being deleted'),
    (nova_exception.UnexpectedTaskStateError(
        instance_uuid='i', expected='e', actual='a'), 'Another request'),
    (nova_exception.InstanceInvalidState(
        attr='vm_state', instance_uuid='i', state='rescued',
        method='snapshot'), 'in this state of the server'),
    (nova_exception.InstanceQuiesceFailed(reason=SECRETS[3]), 'guest agent'),
    (nova_exception.InstanceQuiesceNotSupported(instance_id='i'),
     'guest agent'),
    (nova_exception.QemuGuestAgentNotEnabled(), 'guest agent'),
    (nova_exception.ImageQuotaExceeded(**IMAGE), 'a quota or a size limit'),
    (nova_exception.ImageNotAuthorized(**IMAGE), 'your token'),
    (nova_exception.ImageBadRequest(response=SECRETS[0], **IMAGE),
     'properties are not valid'),
    (nova_exception.GlanceConnectionFailed(
        server=SECRETS[1], reason=SECRETS[2]), 'does not answer'),
    (ks_exceptions.Unauthorized(SECRETS[1]), 'your token'),
    (base.libvirt_error(libvirt.VIR_ERR_NO_DOMAIN), 'server was deleted'),
    (base.libvirt_error(libvirt.VIR_ERR_AGENT_UNRESPONSIVE), 'guest agent'),
    (base.libvirt_error(libvirt.VIR_ERR_AGENT_UNSYNCED), 'guest agent'),
    (base.libvirt_error(112), 'guest agent'),  # since libvirt 11.2
    (base.libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR), OF_CLOUD),
    (base.libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED), OF_CLOUD),
    (base.libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID), OF_CLOUD),
    (base.libvirt_error(libvirt.VIR_ERR_SYSTEM_ERROR), OF_CLOUD),
    (nova_exception.ImageUnacceptable(reason=SECRETS[0], **IMAGE), OF_CLOUD),
    (nova_exception.DiskNotFound(location=SECRETS[0]), OF_CLOUD),
    (nova_exception.NovaException(SECRETS[0]), OF_CLOUD),
    (ks_exceptions.ConnectFailure(SECRETS[1]), OF_CLOUD),
    (oslo_messaging.MessagingTimeout(SECRETS[1]), OF_CLOUD),
    (processutils.ProcessExecutionError(cmd=SECRETS[0]), OF_CLOUD),
    (OSError(28, 'No space left on device', SECRETS[0]), OF_CLOUD),
    (KeyError(SECRETS[0]), OF_CLOUD),
)

#: Glance's answers: code, its own text, and words of what users read.
ANSWERS = (
    (400, 'Property names too long', 'Property names too long'),
    (401, 'Authentication required', 'your token has expired'),
    (403, 'Property x is protected', 'Property x is protected'),
    (404, 'No image found', 'problem of its own'),
    (409, 'Image status transition', 'another request'),
    (410, 'Error in store configuration', 'problem of its own'),
    # user_storage_quota, image_size_cap, image_property_quota, and the
    # limits in Keystone.
    (413, 'Image exceeds the storage quota: 12 bytes remaining.',
     'Image exceeds the storage quota'),
    (413, '413 Request Entity Too Large: The incoming image is too large: '
     'The provided image is too large.', '("The incoming image'),
    (413, 'The limit has been exceeded on the number of allowed image '
     'properties. Attempted: 130, Maximum: 128', 'Maximum: 128'),
    (413, 'Project p is over a limit for [Resource image_size_total is over '
     'limit of 1000 due to current usage 900 and delta 200]',
     'image_size_total'),
    # Its own problem.
    (413, 'Image storage media is full: There is not enough disk space on '
     'the image storage media.', 'problem of its own'),
    (415, 'Unsupported', 'problem of its own'),
    (500, 'Traceback: /usr/lib/python3', 'problem of its own'),
    (503, 'down', 'problem of its own'),
    # No text, or that of a proxy in front of it.
    (413, None, 'a quota or a size limit is reached.'),
    (413, '413 Request Entity Too Large nginx/1.18.0', 'a quota'),
    (403, f'denied by {SECRETS[1]}', 'you may not do this'),
    (400, f'bad gateway at {SECRETS[2]}:9292', 'properties are not valid'),
    (403, f'no access to {SECRETS[0]}', 'you may not do this'),
)


class UserTextTest(base.TestCase):

    def assert_told(self, expected, error):
        text = user_text.of_error(error)
        self.assertIn(expected, text)
        self.assertLessEqual(len(text), user_text.LENGTH)
        self.assertRegex(text, '^[ -~]+$')
        for secret in (*SECRETS, test_exception.SECRET, 'nginx', '/usr'):
            self.assertNotIn(secret, text)

    def test_every_error_of_ours_is_the_users_or_the_clouds(self):
        for module in pkgutil.walk_packages(
                nova_snapext.__path__, 'nova_snapext.'):
            importlib.import_module(module.name)
        for error_class in test_exception.error_classes():
            error = test_exception.error_with(
                error_class, test_exception.SECRET)
            of_users = {'image', 'instance', 'job', 'strategy', 'source'}
            error.kwargs |= {name: base.IMAGE_ID for name in error.kwargs
                             if name in of_users}
            expected = next((
                OF_USERS[parent] for parent in inspect.getmro(error_class)
                if parent in OF_USERS), OF_CLOUD)
            self.assert_told(expected, error)

    def test_every_error_of_others_is_the_users_or_the_clouds(self):
        for error, expected in OF_OTHERS:
            self.assert_told(expected, error)

    def test_every_answer_of_glance_is_the_users_or_the_clouds(self):
        for code, details, expected in ANSWERS:
            self.assert_told(expected, exception.GlanceRefused(
                server=SECRETS[1], image=base.IMAGE_ID, reason=details,
                user_reason=upload.refusal_for_users(code, details)))
            # Of a client of Nova's.
            error = glanceclient.exc.HTTPException(details)
            error.code = code
            self.assert_told(expected.rstrip('.'), error)

    def test_every_error_of_the_client_has_a_text(self):
        for _name, error_class in inspect.getmembers(
                glanceclient.exc, inspect.isclass):
            if issubclass(error_class, glanceclient.exc.HTTPException):
                self.assert_told('The image service (Glance)', error_class())

    def test_image_that_is_left_is_told_together_with_the_cause(self):
        error = exception.IncompleteImageLeft(
            image=base.IMAGE_ID, failure=SECRETS[0], reason='protected')
        error.__cause__ = exception.GuestStopped(instance='i')
        self.assert_told('The server was shut off', error)
        self.assertIn(base.IMAGE_ID, user_text.of_error(error))

    def test_text_is_one_line_that_any_database_takes(self):
        refused = exception.StrategyRefused(
            {}, instance='i', strategy='x', source='y', reason='r',
            user_reason='caf\u00e9 \U0001f600\x00\n next ' + 'x' * 300)
        self.assert_told('caf\\xe9 \\U0001f600\\x00 next x', refused)

    def test_error_without_a_part_for_users_has_a_text_all_the_same(self):
        self.assert_told('operator', exception.GlanceRefused(
            server=SECRETS[1], image='i', reason=SECRETS[0]))
        self.assert_told('operator', encode_base.EncodeError(
            image_format='qcow2', reason=SECRETS[0]))


class FaultTest(snapshot_base.SnapshotTestCase):
    """What Nova's manager makes of an error that ends a snapshot."""

    def names(self):
        return [call.args[2] for call in
                self.event.event_finish_with_failure.mock_calls]

    def failure(self, error):
        self.stream.side_effect = error
        self.steps.clear()
        self.event.reset_mock()
        return self.assertRaises(type(error), self.snapshot)

    def test_fault_and_event_have_the_same_text(self):
        for cause, expected in OF_OTHERS:
            if isinstance(cause, libvirt.libvirtError):
                # One of a guest that is gone is replaced.
                continue
            with mock.patch.object(self.driver, 'instance_exists',
                                   return_value=True):
                error = self.failure(cause)
            self.assertIn(expected, error.format_message())
            self.assertIn(error.format_message(), self.names())

    def test_details_have_the_text_for_operators(self):
        self.failure(nova_exception.GlanceConnectionFailed(
            server='glance:9292', reason='refused'))
        for call in self.event.event_finish_with_failure.mock_calls:
            self.assertIn('glance:9292', call.kwargs['exc_val'])

    def test_details_of_a_bug_are_its_class_alone(self):
        self.failure(KeyError('secret'))
        for call in self.event.event_finish_with_failure.mock_calls:
            self.assertEqual('KeyError', call.kwargs['exc_val'])

    def test_without_an_action_no_sentence_is_written(self):
        self.event.event_start.side_effect = (
            oslo_messaging.MessagingTimeout('conductor'))
        self.stream.side_effect = exception.GuestStopped(instance='i')
        self.assertRaises(exception.GuestStopped, self.snapshot)
        self.event.event_start.assert_called_once()
        self.assertTrue(re.search('shut off', self.stdlog.logger.output))
