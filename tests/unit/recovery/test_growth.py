# SPDX-License-Identifier: Apache-2.0

import os
from unittest import mock

from nova_snapext import checks
from nova_snapext import exception
from nova_snapext.recovery import growth
from tests.unit.recovery import base


class GrowthTest(base.RecoveryTestCase):

    def setUp(self):
        super().setUp()
        self.path, record = self.overlay()
        self.entry = self.leave(
            ('guest filesystems', {'agent': True, 'qemu': ''}), record)
        self.check = growth.GrowthCheck()
        self.space = self.patch(checks.FreeSpaceCheck, 'run')
        self.space.return_value = self.shortage = exception.InsufficientSpace(
            instance='i', path='/i', free=1, shrinks=2, min_free=3)

    def run_check(self):
        return list(self.check.run(growth.overlays()))

    def grow(self):
        with open(self.path, 'ab') as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())

    def test_overlay_that_grows_without_space_is_found(self):
        self.assertEqual([], self.run_check())
        for _run in range(2):
            self.grow()
            self.assertEqual([(self.instance_.uuid, self.shortage)],
                             self.run_check())

    def test_overlay_that_does_not_grow_needs_no_space(self):
        self.grow()
        for _run in range(3):
            self.assertEqual([], self.run_check())

    def test_overlay_that_grows_in_enough_space_is_not_found(self):
        self.space.return_value = None
        self.run_check()
        self.grow()
        self.assertEqual([], self.run_check())

    def test_overlay_that_is_merged_is_forgotten(self):
        self.run_check()
        with mock.patch.object(growth, 'overlays', return_value={}):
            self.run_check()
        self.grow()
        self.assertEqual([], self.run_check())

    def test_overlay_out_of_reach_is_checked_later(self):
        self.run_check()
        overlays = growth.overlays()
        with mock.patch.object(os, 'stat', side_effect=OSError('ESTALE')):
            self.assertEqual([], list(self.check.run(overlays)))
        self.grow()
        self.assertEqual(1, len(self.run_check()))

    def test_record_that_makes_no_sense_is_no_overlay(self):
        os.unlink(self.entry.path)
        self.leave(('overlay', {'path': None}), ('overlay', {}))
        self.assertEqual({}, growth.overlays())
