# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
from unittest import mock

from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import journal
from nova_snapext.recovery import leftovers
from tests.unit import base as unit_base
from tests.unit.recovery import base


class JournalTest(base.RecoveryTestCase):
    """What is found in the journal."""

    def setUp(self):
        super().setUp()
        self.patch(self.driver._host, 'list_guests').return_value = []
        self.flags(work_directory=f'{self.journal}/none', group='snapext')

    def found(self):
        """Return what is left, whether on this host or not."""
        return {on_host: ' '.join(
            str(left) for left in leftovers.find(self.driver)
            if left.is_on_host is on_host) for on_host in (True, False)}

    def leave_image(self):
        with journal.new_image(self.plan_, 'external', True) as image:
            image.reason = 'it is protected'
            image.save()

    def test_nothing_is_found_in_an_empty_journal(self):
        self.assertEqual({True: '', False: ''}, self.found())

    def test_interrupted_snapshot_is_found_with_its_remedy(self):
        self.leave(('overlay', {}, True))
        self.assertIn('interrupted', self.found()[True])
        self.assertIn(f'nova-snapext recover {self.instance_.uuid}',
                      self.found()[True])

    def test_snapshot_of_a_nova_compute_that_runs_is_not_interrupted(self):
        self.leave(('overlay', {}, True))
        self.leave_image()
        with mock.patch.object(journal, 'is_locked_by_another',
                               return_value=True):
            found = self.found()
        self.assertIn('runs now', found[True])
        self.assertNotIn('interrupted', found[True])
        self.assertIn('uploads or deletes', found[False])

    def test_image_is_not_on_this_host(self):
        self.leave_image()
        found = self.found()
        self.assertEqual('', found[True])
        for text in (unit_base.IMAGE_ID, 'it is protected',
                     f'recover {self.instance_.uuid}'):
            self.assertIn(text, found[False])

    def test_files_that_can_not_be_used_are_found_and_stay(self):
        for name, text in (('x.json', '['), ('y.json.unreadable', ''),
                           (f'{uuids.newer}.json', '{"version": 2}')):
            pathlib.Path(self.journal, name).write_text(text)
        before = {*os.listdir(self.journal)}
        found = self.found()[True]
        for name in before:
            self.assertIn(name, found)
        self.assertEqual(before, {*os.listdir(self.journal)})
