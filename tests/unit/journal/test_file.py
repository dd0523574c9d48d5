# SPDX-License-Identifier: Apache-2.0

import json
import os
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import exception
from nova_snapext import journal
from tests.unit import base as unit_base
from tests.unit.journal import base


class EntryTest(base.JournalTestCase):

    def test_entry_exists_as_long_as_its_snapshot(self):
        with journal.new_entry(self.plan_, 'external') as entry:
            content = self.content()
            self.assertEqual(
                (1, self.plan_.instance.uuid, unit_base.IMAGE_ID, 'external',
                 []),
                tuple(content[name] for name in (
                    'version', 'instance_uuid', 'image_id', 'strategy',
                    'records')))
            found = journal.find(entry.instance_uuid)
            self.assertEqual((entry.disk, entry.instance_name),
                             (found.disk, found.instance_name))
        self.assertEqual([], os.listdir(self.journal))

    def test_directory_is_readable_by_nova_alone(self):
        with journal.new_entry(self.plan_, 'external'):
            self.assertEqual(0o700, os.stat(self.journal).st_mode & 0o777)

    def test_first_resources_are_recorded_with_the_entry(self):
        thing = base.Thing()
        with journal.new_entry(self.plan_, 'external', thing) as entry:
            [record] = entry.records
            self.assertEqual(
                [{'kind': 'thing', 'data': {'state': 'new'},
                  'blocks_start': False}], self.content()['records'])
            thing.state = 'changed'
            thing.save()
            self.assertEqual('changed',
                             self.content()['records'][0]['data']['state'])
            entry.remove(record)

    def test_record_has_whether_its_resource_blocks_a_start(self):
        class Vital(base.Thing):
            blocks_start = True

        with mock.patch.object(journal.JournalEntry, 'close'), \
                journal.new_entry(self.plan_, 'external') as entry:
            entry.add(Vital())
        [record] = journal.find(entry.instance_uuid).records
        self.assertTrue(record.blocks_start)

    def test_released_resource_does_not_bring_back_the_entry(self):
        thing = base.Thing()
        with journal.new_entry(self.plan_, 'external') as entry:
            entry.remove(entry.add(thing))
        thing.save()
        self.assertEqual([], os.listdir(self.journal))

    def test_second_snapshot_of_an_instance_is_refused(self):
        def again():
            with journal.new_entry(self.plan_, 'backup'):
                pass

        with journal.new_entry(self.plan_, 'external'):
            error = self.assertRaises(exception.SnapshotInProgress, again)
            self.assertIn(self.path, str(error))
            self.assertEqual('external', self.content()['strategy'])

    def test_instance_without_a_snapshot_has_no_entry(self):
        self.assertIsNone(journal.find(uuids.other))
        self.flags(journal_directory=f'{self.journal}/none', group='snapext')
        self.assertEqual([], journal.entries())

    def test_unusable_journal_is_reported_and_nothing_begins(self):
        def use(context):
            with context:
                self.fail('it began')

        self.flags(journal_directory='/dev/null/x', group='snapext')
        for context in (journal.new_entry(self.plan_, 'external'),
                        journal.locked()):
            error = self.assertRaises(exception.JournalFailed, use, context)
            self.assertIn('/dev/null/x', str(error))

    def test_steps_are_logged_for_debugging(self):
        thing = base.Thing()
        with self.assertLogs('nova_snapext.journal', 'DEBUG') as logs, \
                journal.new_entry(self.plan_, 'external') as entry:
            entry.remove(entry.add(thing))
        for text in ('entry created', 'added thing', 'removed thing',
                     'entry removed'):
            self.assertIn(text, ' '.join(logs.output))


class ReadTest(base.JournalTestCase):

    def put(self, text):
        with open(self.path, 'w') as file:
            file.write(text)

    def test_unreadable_entry_is_set_aside_and_reported(self):
        with journal.new_entry(self.plan_, 'external'):
            good = self.content()
        for text in ('', '{', '[]', '7', '{"version": 1}', '\0' * 512,
                     json.dumps(good | {'version': 2}),
                     json.dumps(good | {'records': [{'kind': 'x'}]}),
                     json.dumps(good | {'disk': {'path': '/d'}}),
                     json.dumps(good | {'instance_uuid': '../../etc/passwd'}),
                     json.dumps(good | {'instance_uuid': uuids.other})):
            self.put(text)
            with self.assertLogs('nova_snapext.journal', 'ERROR'):
                self.assertEqual([], journal.entries())
            self.assertEqual([f'{os.path.basename(self.path)}.unreadable'],
                             os.listdir(self.journal))
            os.unlink(f'{self.path}.unreadable')

    def test_crash_in_the_first_write_leaves_a_whole_entry_or_none(self):
        with journal.new_entry(self.plan_, 'external'):
            whole = json.dumps(self.content())
        for text, found in ((whole, 1), (whole[:-9], 0), ('', 0)):
            with open(f'{self.path}.new', 'w') as file:
                file.write(text)
            journal.finish_writes()
            self.assertEqual(found, len(journal.entries()))
            self.assertFalse(os.path.exists(f'{self.path}.new'))
            if found:
                os.unlink(self.path)

    def test_crash_in_a_later_write_leaves_the_previous_entry(self):
        with journal.new_entry(self.plan_, 'external'):
            with open(f'{self.path}.new', 'w') as file:
                file.write('{"versi')
            self.assertEqual(1, len(journal.entries()))
            os.unlink(f'{self.path}.new')


class LockTest(base.JournalTestCase):

    def test_second_process_is_refused(self):
        def again():
            with journal.locked():
                pass

        with journal.locked():
            error = self.assertRaises(exception.JournalLocked, again)
            self.assertIn('nova-compute', str(error))
        again()
