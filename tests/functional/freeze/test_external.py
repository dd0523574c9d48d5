# SPDX-License-Identifier: Apache-2.0

import os


from nova_snapext import conf
from nova_snapext.freeze import external
from nova_snapext import read
from tests.functional import base

BEFORE, AFTER = 0x22, 0x33


class ExternalTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        conf.CONF.set_override('instances_path', str(self.images))
        self.addCleanup(conf.CONF.clear_override, 'instances_path')
        self.strategy = external.ExternalStrategy(self.driver)

    def guest(self, *args, **kwargs):
        plan = super().guest(*args, **kwargs)
        os.mkdir(self.images / plan.instance.uuid)
        return plan

    def content(self, frozen):
        """The set of bytes that a frozen disk consists of."""
        with read.Disk(frozen.uri) as disk:
            self.assertEqual(base.DISK_SIZE, disk.size)
            return {byte for _, piece in disk.read([(0, disk.size)])
                    for byte in set(bytes(piece))}

    def definitions(self, plan):
        guest = self.host.get_guest(plan.instance)
        return guest.get_xml_desc(), guest.get_xml_desc(dump_inactive=True)

    def assert_nothing_left(self, plan):
        super().assert_nothing_left(plan)
        self.assertEqual([], os.listdir(self.images / plan.instance.uuid))

    def frozen_while_the_guest_writes(self, disk):
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)
        with self.strategy.freeze(plan) as frozen:
            self.write_as_guest(plan, AFTER)
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertEqual(before, self.definitions(plan))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_a_qcow2_keeps_its_instant_and_the_guest_its_writes(self):
        self.frozen_while_the_guest_writes(self.qcow2())

    def test_a_backing_chain_keeps_its_instant_and_the_guest_its_writes(self):
        self.frozen_while_the_guest_writes(self.chained_qcow2())

    def test_a_raw_file_keeps_its_instant_and_the_guest_its_writes(self):
        self.frozen_while_the_guest_writes(self.raw())

    def test_a_block_device_keeps_its_instant_and_the_guest_its_writes(self):
        self.frozen_while_the_guest_writes(self.block())
