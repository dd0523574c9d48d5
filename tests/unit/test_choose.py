# SPDX-License-Identifier: Apache-2.0

import dataclasses

from nova_snapext import choose
from nova_snapext import exception
from nova_snapext.freeze import backup
from nova_snapext.freeze import cold
from tests.unit import base


class ChooseTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.strategies = (
            backup.BackupStrategy(None), cold.ColdStrategy(None))

    def chosen(self, plan):
        return choose.choose(plan, self.strategies).name

    def reason(self, plan):
        return str(self.assertRaises(
            exception.NotServed, choose.choose, plan, self.strategies))

    def disk(self, **changes):
        return dataclasses.replace(base.QCOW2, **changes)

    def test_a_running_guest_gets_a_backup_job(self):
        self.assertEqual('backup', self.chosen(self.plan(running=True)))

    def test_a_guest_that_is_shut_off_is_read_as_it_is(self):
        self.assertEqual('cold', self.chosen(self.plan(running=False)))

    def test_qcow2_raw_and_block_disks_are_served(self):
        for disk in (self.disk(format='raw'),
                     self.disk(format='raw', storage='block',
                               path='/dev/vg/disk')):
            self.assertEqual('backup', self.chosen(self.plan(disk=disk)))

    def test_network_disks_are_left_to_nova_and_the_reason_names_them(self):
        self.assertIn('network storage', self.reason(
            self.plan(disk=self.disk(storage='network'))))

    def test_encrypted_disks_are_left_to_nova(self):
        self.assertIn('encrypted', self.reason(
            self.plan(disk=self.disk(encrypted=True))))

    def test_other_disk_formats_are_left_to_nova(self):
        self.assertIn('format ploop', self.reason(
            self.plan(disk=self.disk(format='ploop'))))

    def test_image_formats_that_need_seeking_are_left_to_nova(self):
        for image_format in ('vmdk', 'vdi'):
            self.assertIn(image_format, self.reason(
                self.plan(image_format=image_format)))

    def test_compressed_qcow2_is_left_to_nova_and_raw_is_not(self):
        self.flags(snapshot_compression=True, group='libvirt')
        self.assertIn('compressed', self.reason(self.plan()))
        self.assertEqual('backup', self.chosen(
            self.plan(image_format='raw')))

    def test_each_strategy_that_cannot_serve_gives_its_reason(self):
        reason = str(self.assertRaises(
            exception.NotServed, choose.choose, self.plan(running=False),
            self.strategies[:1]))
        self.assertIn('backup: the guest is shut off', reason)
