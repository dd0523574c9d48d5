# SPDX-License-Identifier: Apache-2.0

import dataclasses
import functools
from unittest import mock

import fixtures

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import read
from nova_snapext.strategies import rbd
from nova_snapext.strategies import rbd_extents
from tests.unit import base

DISK = dataclasses.replace(base.QCOW2, storage='network', format='raw',
                           path='rbd:vms/uuid_disk')
TOKEN = cancel.CancelToken()
SPEC = ceph.SnapSpec(ceph.ImageSpec('vms', 'uuid_disk'), 'snapext-1')


class UnsupportedReasonTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.strategy = rbd.RbdStrategy(mock.Mock())
        self.installed = self.useFixture(fixtures.MockPatchObject(
            ceph, 'is_installed', return_value=True)).mock

    def reason(self, disk):
        return self.strategy.unsupported_guest_reason(mock.Mock(disk=disk))

    def test_rbd_disk_is_supported(self):
        self.assertIsNone(self.reason(DISK))

    def test_disk_of_another_protocol_is_refused(self):
        self.assertIn('iscsi:target', self.reason(
            dataclasses.replace(DISK, path='iscsi:target')))

    def test_missing_binding_is_refused_with_its_package(self):
        self.installed.return_value = False
        self.assertIn('python3-rbd', self.reason(DISK))


class ExtentsTest(base.TestCase):

    def extents(self, size, *parts):
        with mock.patch.object(ceph, 'allocated',
                               return_value=(size, list(parts))):
            return [(extent.offset, extent.length, extent.data)
                    for extent in rbd_extents.of_snapshot(SPEC, TOKEN)]

    def test_extents_cover_the_disk(self):
        self.assertEqual(
            [(0, 4, False), (4, 8, True), (12, 4, False), (16, 4, True)],
            self.extents(20, (4, 4), (8, 4), (16, 4)))
        self.assertEqual([(0, 8, True), (8, 2, False)],
                         self.extents(10, (0, 8)))

    def test_empty_disk_has_no_data(self):
        self.assertEqual([(0, 10, False)], self.extents(10))

    def test_part_beyond_a_smaller_snapshot_is_left_out(self):
        self.assertEqual([(0, 4, False), (4, 4, True)],
                         self.extents(8, (4, 8), (16, 4)))

    def test_part_that_parent_and_clone_have_is_read_once(self):
        self.assertEqual([(0, 10, True)],
                         self.extents(10, (0, 8), (4, 4), (6, 4)))

    def test_what_ceph_does_not_tell_is_left_to_qemu(self):
        with mock.patch.object(
                ceph, 'allocated', side_effect=exception.CephTimeout(
                    action='list', seconds='1')):
            self.assertIsNone(rbd_extents.of_snapshot(SPEC, TOKEN))

    def test_extents_are_those_of_the_reader(self):
        with mock.patch.object(ceph, 'allocated', return_value=(4, [])):
            self.assertEqual([read.Extent(0, 4, False)],
                             list(rbd_extents.of_snapshot(SPEC, TOKEN)))


class SupersetTest(base.TestCase):
    """What Ceph tells of a disk that a backup job has frozen."""

    def test_search_does_not_hold_up_the_freeze_for_longer_than_allowed(self):
        # The scratch file grows before anybody checks the space.
        self.flags(operation_timeout=7, group='snapext')
        patch = functools.partial(mock.patch.object, rbd_extents)
        stack = mock.Mock()
        with patch('ceph') as ceph_, patch('rbd_snapshot'), \
                patch('_can_discard', return_value=False):
            ceph_.allocated.side_effect = exception.CephTimeout(
                action='list', seconds='7')
            self.assertIsNone(rbd_extents.superset_of_frozen(
                self.plan(DISK), stack))
        ceph_.allocated.assert_called_once_with(mock.ANY, mock.ANY, 7)
        stack.mark_released.assert_called_once()
