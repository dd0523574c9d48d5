# SPDX-License-Identifier: Apache-2.0
"""Tests that every strategy passes with a running guest.

A test case derives from these classes and from GuestTestCase, and sets the
strategy as ``strategy``.
"""

import contextlib
import difflib
import re

import libvirt

from nova_snapext import read
from tests.functional import base

BEFORE, AFTER = 0x22, 0x33


class FreezeAssertions:

    def content(self, frozen):
        """Return the set of all bytes in a frozen disk."""
        with read.Disk(frozen.uri) as disk:
            self.assertEqual(base.DISK_SIZE, disk.size)
            return {byte for _, chunk in disk.read([(0, disk.size)])
                    for byte in set(bytes(chunk))}

    def definitions(self, plan):
        """Return the live and the persistent definition of the guest.

        Without the numbers that libvirt assigns again at each start.
        """
        guest = self.host.get_guest(plan.instance)
        return (re.sub(r" (id|index)='\d+'", '', guest.get_xml_desc()),
                guest.get_xml_desc(dump_inactive=True))

    def assert_same(self, before, after):
        """Check that definitions are the same, and show the difference."""
        for old, new in zip(before, after, strict=True):
            self.assertEqual([], [
                line for line in difflib.ndiff(old.split('\n'),
                                               new.split('\n'))
                if not line.startswith(' ')])

    def freeze_fails(self, plan, error):
        """Check that freezing fails.

        :returns: the error's text
        """
        with contextlib.ExitStack() as stack:
            return str(self.assertRaises(
                error, stack.enter_context, self.strategy.freeze(plan)))


class RunningGuestContract(FreezeAssertions):

    def frozen_while_guest_writes(self, disk):
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual(libvirt.VIR_DOMAIN_RUNNING,
                             plan.guest._domain.state()[0])
            self.write_as_guest(plan, AFTER)
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_qcow2_is_frozen_and_the_guest_keeps_its_writes(self):
        self.frozen_while_guest_writes(self.qcow2())

    def test_backing_chain_is_frozen_and_the_guest_keeps_its_writes(self):
        self.frozen_while_guest_writes(self.chained_qcow2())

    def test_content_of_backing_file_is_read_through_the_chain(self):
        plan = self.guest(self.chained_qcow2())
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual({0x11}, self.content(frozen))

    def test_paused_guest_is_frozen_and_stays_paused(self):
        plan = self.guest(self.qcow2())
        plan.guest.pause()
        reason = self.strategy.unsupported_reason(plan)
        if reason is not None:
            # QEMU 10 would not merge the overlay: it is not frozen at all.
            self.assertIn('inactive-disks', reason)
            return
        before = self.definitions(plan)
        with self.strategy.freeze(plan) as frozen:
            self.assertEqual({0}, self.content(frozen))
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED,
                         plan.guest._domain.state()[0])
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_released_disk_can_be_frozen_again_at_once(self):
        plan = self.guest(self.chained_qcow2())
        before = self.definitions(plan)
        for _ in range(3):
            with self.strategy.freeze(plan):
                pass
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_error_during_the_freeze_releases_the_disk(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)

        def fail():
            with self.strategy.freeze(plan):
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)


class RawDiskContract:

    def test_raw_file_is_frozen_and_the_guest_keeps_its_writes(self):
        self.frozen_while_guest_writes(self.raw())

    def test_block_device_is_frozen_and_the_guest_keeps_its_writes(self):
        self.frozen_while_guest_writes(self.block())
