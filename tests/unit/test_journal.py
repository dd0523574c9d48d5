# SPDX-License-Identifier: Apache-2.0

import json
import os
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import exception
from nova_snapext import journal
from tests.unit import base


class Thing(journal.Resource):

    kind = 'thing'

    def __init__(self, state='new'):
        self.state = state
        self.released = 0

    def record(self):
        return {'state': self.state}

    @classmethod
    def restore(cls, driver, plan, record):
        return cls(**record)

    def release(self):
        self.released += 1


class JournalTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.plan_ = self.plan()
        self.path = os.path.join(
            self.journal, f'{self.plan_.instance.uuid}.json')

    def content(self):
        with open(self.path) as file:
            return json.load(file)

    def test_an_entry_is_there_for_as_long_as_its_snapshot(self):
        with journal.opened(self.plan_, 'external') as entry:
            content = self.content()
            self.assertEqual(
                (1, self.plan_.instance.uuid, base.IMAGE_ID, 'external', []),
                tuple(content[name] for name in (
                    'version', 'instance', 'image', 'strategy', 'records')))
            found = journal.find(entry.instance)
            self.assertEqual((entry.disk, entry.name),
                             (found.disk, found.name))
        self.assertEqual([], os.listdir(self.journal))

    def test_only_nova_can_read_it(self):
        with journal.opened(self.plan_, 'external'):
            self.assertEqual(0o700, os.stat(self.journal).st_mode & 0o777)

    def test_what_is_held_is_on_the_disk_before_it_is_made(self):
        with journal.opened(self.plan_, 'external') as entry, \
                journal.ReleaseStack(entry) as stack, \
                mock.patch('os.fsync', side_effect=os.fsync) as fsync:
            thing = Thing()
            stack.hold(thing)
            # The file's content, and its name.
            self.assertEqual(2, fsync.call_count)
            self.assertEqual(
                [{'kind': 'thing', 'data': {'state': 'new'}}],
                self.content()['records'])
            thing.state = 'changed'
            thing.renew()
            self.assertEqual({'state': 'changed'},
                             self.content()['records'][0]['data'])
        self.assertEqual(1, thing.released)
        self.assertFalse(os.path.exists(self.path))

    def test_what_is_settled_is_not_released_again(self):
        with journal.opened(self.plan_, 'external') as entry, \
                journal.ReleaseStack(entry) as stack:
            thing = Thing()
            stack.hold(thing)
            stack.settle(thing)
            self.assertEqual([], self.content()['records'])
        self.assertEqual(0, thing.released)

    def test_what_can_not_be_written_down_is_not_held(self):
        def hold():
            with journal.opened(self.plan_, 'external') as entry, \
                    journal.ReleaseStack(entry) as stack, \
                    mock.patch('os.fsync', side_effect=OSError('full')):
                stack.hold(thing)

        thing = Thing()
        self.assertRaises(OSError, hold)
        self.assertEqual(0, thing.released)

    def test_what_can_not_be_released_stays_in_it_and_the_rest_goes(self):
        def snapshot():
            with journal.opened(self.plan_, 'external') as entry, \
                    journal.ReleaseStack(entry) as stack:
                stack.hold(first)
                stack.hold(second)

        first, second = Thing(), Thing('stubborn')
        second.release = mock.Mock(side_effect=exception.ReleaseFailed(
            instance='i', reason='r'))
        self.assertRaises(exception.ReleaseFailed, snapshot)
        self.assertEqual(1, first.released)
        self.assertEqual([{'kind': 'thing', 'data': {'state': 'stubborn'}}],
                         self.content()['records'])

    def test_an_instance_has_one_snapshot_at_a_time(self):
        def again():
            with journal.opened(self.plan_, 'backup'):
                pass

        with journal.opened(self.plan_, 'external'):
            error = self.assertRaises(exception.SnapshotOutstanding, again)
            self.assertIn(self.path, str(error))
            self.assertEqual('external', self.content()['strategy'])

    def test_an_instance_without_a_snapshot_has_no_entry(self):
        self.assertIsNone(journal.find(uuids.other))
        self.flags(journal_directory=f'{self.journal}/none', group='snapext')
        self.assertEqual([], journal.entries())

    def put(self, text):
        with open(self.path, 'w') as file:
            file.write(text)

    def test_what_can_not_be_read_is_set_aside_and_told(self):
        with journal.opened(self.plan_, 'external'):
            good = self.content()
        for text in ('', '{', '[]', '7', '{"version": 1}', '\0' * 512,
                     json.dumps(good | {'version': 2}),
                     json.dumps(good | {'records': [{'kind': 'x'}]}),
                     json.dumps(good | {'disk': {'path': '/d'}}),
                     json.dumps(good | {'instance': '../../etc/passwd'}),
                     json.dumps(good | {'instance': uuids.other})):
            self.put(text)
            with self.assertLogs('nova_snapext.journal', 'ERROR'):
                self.assertEqual([], journal.entries())
            self.assertEqual([f'{os.path.basename(self.path)}.unreadable'],
                             os.listdir(self.journal))
            os.unlink(f'{self.path}.unreadable')

    def test_a_crash_before_it_is_there_leaves_what_it_holds_or_nothing(self):
        with journal.opened(self.plan_, 'external'):
            whole = json.dumps(self.content())
        for text, found in ((whole, 1), (whole[:-9], 0), ('', 0)):
            with open(f'{self.path}.new', 'w') as file:
                file.write(text)
            journal.finish_writes()
            self.assertEqual(found, len(journal.entries()))
            self.assertFalse(os.path.exists(f'{self.path}.new'))
            if found:
                os.unlink(self.path)

    def test_a_crash_while_it_is_written_leaves_what_was(self):
        with journal.opened(self.plan_, 'external'):
            with open(f'{self.path}.new', 'w') as file:
                file.write('{"versi')
            self.assertEqual(1, len(journal.entries()))
            os.unlink(f'{self.path}.new')

    def test_one_that_can_not_be_used_is_told_and_nothing_begins(self):
        def use(context):
            with context:
                self.fail('it began')

        self.flags(journal_directory='/dev/null/x', group='snapext')
        for context in (journal.opened(self.plan_, 'external'),
                        journal.locked()):
            error = self.assertRaises(exception.JournalFailed, use, context)
            self.assertIn('/dev/null/x', str(error))

    def test_two_processes_do_not_use_it_at_once(self):
        def again():
            with journal.locked():
                pass

        with journal.locked():
            error = self.assertRaises(exception.JournalLocked, again)
            self.assertIn('nova-compute', str(error))
        again()
