# SPDX-License-Identifier: Apache-2.0

import os
from unittest import mock

from nova_snapext import exception
from nova_snapext import journal
from tests.unit.journal import base


class ReleaseStackTest(base.JournalTestCase):

    def test_resource_is_on_disk_before_it_is_created(self):
        with journal.new_entry(self.plan_, 'external') as entry, \
                journal.ReleaseStack(entry) as stack, \
                mock.patch('os.fsync', side_effect=os.fsync) as fsync:
            thing = base.Thing()
            stack.add(thing)
            # The content of the file, and its name.
            self.assertEqual(2, fsync.call_count)
            self.assertEqual(
                [{'kind': 'thing', 'data': {'state': 'new'},
                  'blocks_start': False, 'blocks_snapshot': True}],
                self.content()['records'])
            thing.state = 'changed'
            thing.save()
            self.assertEqual({'state': 'changed'},
                             self.content()['records'][0]['data'])
        self.assertEqual(1, thing.released)
        self.assertFalse(os.path.exists(self.path))

    def test_released_resource_is_not_released_again(self):
        with journal.new_entry(self.plan_, 'external') as entry, \
                journal.ReleaseStack(entry) as stack:
            thing = base.Thing()
            stack.add(thing)
            stack.mark_released(thing)
            self.assertEqual([], self.content()['records'])
        self.assertEqual(0, thing.released)

    def test_record_of_a_name_that_is_used_again_has_to_go(self):
        thing = base.Thing()
        with journal.new_entry(self.plan_, 'external') as entry, \
                journal.ReleaseStack(entry) as stack:
            stack.add(thing)
            with mock.patch('os.fsync', side_effect=OSError('full')):
                error = self.assertRaises(
                    exception.JournalFailed, stack.mark_replaced, thing)
            self.assertIn('full', str(error))
        self.assertEqual(0, thing.released)
        self.assertFalse(os.path.exists(self.path))

    def test_resource_that_can_not_be_recorded_is_not_on_the_stack(self):
        def add():
            with journal.new_entry(self.plan_, 'external') as entry, \
                    journal.ReleaseStack(entry) as stack, \
                    mock.patch('os.fsync', side_effect=OSError('full')):
                stack.add(thing)

        thing = base.Thing()
        self.assertRaises(OSError, add)
        self.assertEqual(0, thing.released)

    def test_resource_that_can_not_be_released_stays_alone_in_the_journal(
            self):
        def snapshot():
            with journal.new_entry(self.plan_, 'external') as entry, \
                    journal.ReleaseStack(entry) as stack:
                stack.add(first)
                stack.add(second)

        first, second = base.Thing(), base.Thing('stubborn')
        second.release = mock.Mock(side_effect=exception.ReleaseFailed(
            instance='i', reason='r'))
        self.assertRaises(exception.ReleaseFailed, snapshot)
        self.assertEqual(1, first.released)
        self.assertEqual(
            [{'kind': 'thing', 'data': {'state': 'stubborn'},
              'blocks_start': False, 'blocks_snapshot': True}],
            self.content()['records'])
