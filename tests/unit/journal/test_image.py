# SPDX-License-Identifier: Apache-2.0

import errno
import json
import os
import pathlib
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import durable
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.journal import directory
from tests.unit import base as unit_base
from tests.unit.journal import base


class ImageEntryTest(base.JournalTestCase):

    def setUp(self):
        super().setUp()
        self.image_path = pathlib.Path(
            self.journal, f'{unit_base.IMAGE_ID}.image')

    def leave(self):
        """Leave an image, as a snapshot that failed."""
        with journal.new_image(self.plan_, 'external', True) as image:
            pass
        return image

    def test_image_is_on_disk_before_the_context_begins(self):
        with mock.patch('os.fsync', side_effect=os.fsync) as fsync, \
                journal.new_image(self.plan_, 'external', False) as image:
            # The content of the file, and its name.
            self.assertEqual(2, fsync.call_count)
            content = json.loads(self.image_path.read_text())
            self.assertEqual(
                (1, self.CONF.host, self.plan_.instance.uuid,
                 unit_base.IMAGE_ID, 'external', False, None),
                tuple(content[name] for name in (
                    'version', 'host', 'instance_uuid', 'image_id',
                    'strategy', 'seen_by_nova', 'reason')))
            image.remove()
        self.assertEqual([], os.listdir(self.journal))

    def test_image_of_a_running_snapshot_does_not_wait(self):
        with journal.new_image(self.plan_, 'external', False):
            self.assertEqual([], journal.images())
        [image] = journal.images()
        self.assertEqual(
            (unit_base.IMAGE_ID, self.plan_.instance.uuid),
            (image.image_id, image.instance_uuid))

    def test_image_that_becomes_complete_during_the_read_is_not_returned(self):
        def read_and_complete(path):
            content = read(path)
            image.remove()
            running.__exit__(None, None, None)
            return content

        read = directory.read
        running = journal.new_image(self.plan_, 'external', False)
        image = running.__enter__()
        with mock.patch.object(directory, 'read', read_and_complete):
            self.assertEqual([], journal.images())
        image.remove()
        running.__exit__(None, None, None)

    def test_image_is_no_entry_of_its_instance(self):
        self.leave()
        self.assertEqual([], journal.entries())
        self.assertIsNone(journal.find(self.plan_.instance.uuid))
        with journal.new_entry(self.plan_, 'external'):
            self.assertEqual(1, len(journal.entries()))

    def test_complete_image_is_removed_though_the_disk_is_full(self):
        with journal.new_image(self.plan_, 'external', False) as image, \
                mock.patch.object(directory, 'write', side_effect=OSError(
                    errno.ENOSPC, 'full')):
            image.remove()
        self.assertEqual([], os.listdir(self.journal))

    def test_removal_is_durable(self):
        image = self.leave()
        with mock.patch.object(durable, 'sync') as sync:
            image.remove()
        sync.assert_called_once_with(self.journal)

    def test_complete_image_that_can_not_be_removed_is_not_deleted(self):
        with journal.new_image(self.plan_, 'external', False) as image, \
                mock.patch('os.unlink', side_effect=OSError(
                    errno.EROFS, 'read-only')), \
                self.assertLogs('nova_snapext.journal', 'ERROR') as logs:
            image.remove()
            self.assertEqual([], journal.images())
        self.assertIn(str(self.image_path), ' '.join(logs.output))
        self.assertTrue(self.image_path.exists())
        # The next look removes it.
        self.assertEqual([], journal.images())
        self.assertFalse(self.image_path.exists())

    def test_reason_is_kept_if_it_can_be_written(self):
        image = self.leave()
        image.reason = 'protected'
        image.save()
        self.assertEqual('protected', journal.images()[0].reason)
        with mock.patch('os.fsync', side_effect=OSError('full')):
            image.reason = 'other'
            image.save()
        self.assertEqual('protected', journal.images()[0].reason)
        self.assertEqual([self.image_path.name], os.listdir(self.journal))

    def test_unwritable_journal_is_reported_and_nothing_begins(self):
        def begin():
            with journal.new_image(self.plan_, 'external', False):
                self.fail('it began')

        self.flags(journal_directory='/dev/null/x', group='snapext')
        error = self.assertRaises(exception.JournalFailed, begin)
        self.assertIn('/dev/null/x', str(error))

    def test_file_with_the_name_of_another_image_is_not_read(self):
        self.leave()
        self.image_path.rename(self.image_path.with_name(
            f'{uuids.other}.image'))
        self.assertEqual([], journal.images())
        [file] = journal.unusable()
        self.assertIn(unit_base.IMAGE_ID, str(file.problem))

    def test_nonsense_is_set_aside_and_other_images_are_found(self):
        self.leave()
        other = self.image_path.with_name(f'{uuids.other}.image')
        other.write_text('{"kind": null}')
        self.assertEqual(1, len(journal.images()))
        journal.set_aside_unreadable()
        self.assertEqual([f'{other}.unreadable'], journal.set_aside_files())
        self.assertEqual(1, len(journal.images()))

    def test_crash_in_the_first_write_leaves_a_whole_image_or_none(self):
        self.leave()
        whole = self.image_path.read_text()
        self.image_path.unlink()
        for text, found in ((whole, 1), (whole[:-9], 0)):
            new = self.image_path.with_name(f'{self.image_path.name}.new')
            new.write_text(text)
            journal.finish_writes()
            self.assertEqual(found, len(journal.images()))
            self.assertFalse(new.exists())
            self.image_path.unlink(missing_ok=True)
