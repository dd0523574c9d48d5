# SPDX-License-Identifier: Apache-2.0

import os

from nova import context as nova_context
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext.recovery import recover
from nova_snapext import upload
from tests.unit import base as unit_base
from tests.unit.recovery import base

LOGGER = 'nova_snapext.recovery.recover'


class RecoverImageTest(base.RecoveryTestCase):

    def setUp(self):
        super().setUp()
        self.discard = self.patch(upload, 'discard')
        self.seen = self.patch(upload, 'is_seen_by_nova')
        object.__setattr__(self.plan_, 'context', nova_context.RequestContext(
            'u', uuids.project))
        with journal.new_image(self.plan_, 'external', True):
            pass

    def recover(self, context=None):
        [image] = journal.images()
        return recover.recover_image(image, context)

    def test_deleted_image_leaves_the_journal_and_one_line(self):
        self.discard.return_value = None
        with self.assertLogs(LOGGER, 'INFO') as logs:
            self.assertTrue(self.recover())
        self.assertEqual(1, len(logs.output))
        self.assertIn(unit_base.IMAGE_ID, logs.output[0])
        self.assertEqual([], os.listdir(self.journal))

    def test_protected_image_is_named_once_with_the_true_reason(self):
        self.discard.return_value = 'it is protected'
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            self.assertFalse(self.recover())
        for text in (unit_base.IMAGE_ID, self.instance_.uuid,
                     'it is protected'):
            self.assertIn(text, logs.output[0])
        with self.assertNoLogs(LOGGER, 'WARNING'):
            self.assertFalse(self.recover())
        self.assertEqual('it is protected', journal.images()[0].reason)

    def test_no_error_ends_the_service(self):
        self.discard.side_effect = RuntimeError('unexpected')
        with self.assertLogs(LOGGER, 'WARNING'):
            self.assertFalse(self.recover())
        self.assertEqual(1, len(journal.images()))

    def test_image_is_deleted_as_a_user_of_its_project_alone(self):
        self.discard.return_value = 'no'
        owner = nova_context.RequestContext('v', uuids.project)
        other = nova_context.RequestContext('v', uuids.other)
        for context, used in ((owner, owner), (other, None), (None, None)):
            self.recover(context)
            self.assertEqual(used, self.discard.call_args.args[0])


class MakeWayTest(base.RecoveryTestCase):

    def leave_records(self, *blocking):
        entry = self.leave(*(
            (f'thing {number}', {}) for number in range(len(blocking))))
        for record, blocks in zip(entry.records, blocking, strict=True):
            record.blocks_snapshot = blocks
        entry.write()

    def make_way(self):
        recover.make_way(self.instance_.uuid)

    def test_instance_without_an_entry_needs_no_way(self):
        self.make_way()
        self.assertEqual([], os.listdir(self.journal))

    def test_what_blocks_nothing_is_kept_apart(self):
        self.leave_records(False, False)
        self.make_way()
        self.assertIsNone(journal.find(self.instance_.uuid))
        [entry] = journal.find_all(self.instance_.uuid)
        self.assertEqual(['thing 0', 'thing 1'],
                         [record.kind for record in entry.records])
        with journal.new_entry(self.plan_, 'external'):
            self.make_way()  # what is apart stays

    def test_what_blocks_is_named_and_stays(self):
        self.leave_records(False, True)
        error = self.assertRaises(exception.NotRecovered, self.make_way)
        self.assertIn('thing 1', str(error))
        self.assertNotIn('thing 0', str(error))
        self.assertIsNotNone(journal.find(self.instance_.uuid))

    def test_known_problem_is_the_reason(self):
        self.leave_records(True)
        journal.find(self.instance_.uuid).save_problem('libvirtd hangs.')
        error = self.assertRaises(exception.NotRecovered, self.make_way)
        self.assertIn('libvirtd hangs.', str(error))

    def test_file_that_can_not_be_used_blocks(self):
        self.leave_records(False)
        path = journal.find(self.instance_.uuid).path
        with open(path, 'w') as file:
            file.write('{"version": 2}')
        error = self.assertRaises(
            exception.JournalEntryUnusable, self.make_way)
        self.assertIn(path, str(error))

    def test_resource_blocks_unless_its_class_says_otherwise(self):
        self.assertTrue(journal.Resource.blocks_snapshot)
        self.assertEqual(
            {'work directory', 'RBD clone', 'RBD copy', 'RBD snapshot',
             'native RBD snapshot', 'guest filesystems'},
            {kind for kind, resource_type
             in recover.resource_types(self.driver).items()
             if not resource_type.blocks_snapshot})
