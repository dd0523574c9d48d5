# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
from nova import exception as nova_exception

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext.resources import rbd_clone
from nova_snapext import upload
from tests.unit import base


class RbdImageTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.id_of = self.useFixture(
            fixtures.MockPatchObject(ceph, 'id_of', return_value='1a')).mock
        self.remove = self.useFixture(
            fixtures.MockPatchObject(ceph, 'remove_image')).mock
        self.spec = ceph.ImageSpec('images', base.IMAGE_ID)
        self.clone = rbd_clone.RbdClone(self.plan(), self.spec, True)

    def test_id_is_recorded_before_the_removal_and_used_after_a_crash(self):
        # Ceph may move it into the trash first, where the name is no use.
        saved = []
        self.clone.save = lambda: saved.append(self.clone.record())
        self.remove.side_effect = lambda *_args: self.assertEqual(
            '1a', saved[-1]['rbd_id'])
        self.clone.release()
        self.id_of.return_value = None
        self.remove.reset_mock()
        rbd_clone.RbdClone.check_record(saved[-1])
        rbd_clone.RbdClone.restore(
            mock.Mock(), self.plan(), saved[-1]).release()
        self.remove.assert_called_once_with(self.spec, '1a')

    def test_journal_that_can_not_be_written_does_not_keep_the_clone(self):
        self.clone.save = mock.Mock(side_effect=OSError)
        self.clone.release()
        self.remove.assert_called_once_with(self.spec, '1a')

    def restored(self, offered, check):
        """Return the clone as after a restart.

        :param check: what the check for the image's deletion returns
        """
        self.discard = self.useFixture(fixtures.MockPatchObject(
            upload, 'discard', return_value=None)).mock
        self.useFixture(fixtures.MockPatchObject(
            upload, 'ImageDeletedCheck')).mock.return_value.run.side_effect = (
                check)
        self.clone.save = mock.Mock()
        self.clone.set_offered(offered)
        clone = rbd_clone.RbdClone.restore(
            mock.Mock(), self.plan(), self.clone.record())
        clone.save = mock.Mock()
        return clone

    def test_complete_image_keeps_its_data_though_the_journal_was_full(self):
        self.restored(True, lambda: None).release()
        self.discard.assert_not_called()
        self.remove.assert_not_called()

    def test_data_of_an_image_that_is_deleted_is_removed(self):
        self.restored(True, lambda: nova_exception.ImageNotFound(
            image_id=base.IMAGE_ID)).release()
        self.remove.assert_called_once()

    def test_incomplete_image_is_deleted_with_its_data(self):
        self.useFixture(fixtures.MockPatchObject(
            journal, 'has_image', return_value=True))
        clone = self.restored(True, ZeroDivisionError)
        clone.release()
        self.discard.assert_called_once()
        self.remove.assert_called_once()

    def test_clone_that_was_never_offered_is_removed(self):
        self.restored(False, ZeroDivisionError).release()
        self.discard.assert_not_called()
        self.remove.assert_called_once()

    def test_nothing_is_removed_while_glance_does_not_tell(self):
        clone = self.restored(True, OSError('no route'))
        self.assertIn('no route', str(self.assertRaises(
            exception.ReleaseFailed, clone.release)))
        self.discard.assert_not_called()
        self.remove.assert_not_called()

    def test_error_names_the_commands_that_remove_a_finished_clone(self):
        # "rbd snap purge" skips its snapshot, which is protected.
        self.clone.spec = ceph.ImageSpec('images', 'id')
        self.remove.side_effect = exception.CephTimeout(
            action='remove', seconds='1')
        error = self.assertRaises(
            exception.ReleaseFailed, self.clone.release)
        for command in ('rbd snap unprotect images/id@snap',
                        'rbd snap rm images/id@snap', 'rbd rm images/id'):
            self.assertIn(command, str(error))
