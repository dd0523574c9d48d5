# SPDX-License-Identifier: Apache-2.0
"""Guests that a defect of the host's QEMU concerns."""

import re
import subprocess
from xml.etree import ElementTree

from tests.e2e import base

#: The first QEMU whose NBD server may be used with an iothread.
FIXED = (8, 2, 3)


class IothreadTest(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def give_iothread(self):
        """Give the root disk an iothread, as an operator can do.

        Nova's own reboot would define the guest again, without it.
        """
        domain = ElementTree.fromstring(
            self.host.virsh('dumpxml', '--inactive', self.server))
        iothreads = ElementTree.Element('iothreads')
        iothreads.text = '1'
        domain.insert(0, iothreads)
        domain.find('./devices/disk/driver').set('iothread', '1')
        definition = self.directory / 'iothread.xml'
        definition.write_text(ElementTree.tostring(domain, encoding='unicode'))
        self.host.virsh('define', str(definition))
        self.host.virsh('destroy', self.server)
        self.expect_lost_line(self.server)
        self.host.virsh('start', self.server)
        self.await_records(self.server, 3)

    def test_guest_with_iothread_survives_its_snapshot(self):
        self.give_iothread()
        version = subprocess.run(('qemu-system-x86_64', '--version'),
                                 capture_output=True, text=True).stdout
        is_fixed = tuple(map(int, re.search(
            r'version (\d+)\.(\d+)\.(\d+)', version).groups())) >= FIXED
        snapshot = self.snapshot(self.server)
        self.assert_snapshot_complete(snapshot)
        self.assertEqual('backup' if is_fixed else 'external',
                         snapshot.strategy)
        self.assertIn('running', self.host.virsh('domstate', self.server))
        self.assert_keeps_writing(self.server)
        if is_fixed:
            return
        refused = self.snapshot(self.server, strategy='backup')
        self.assertFalse(self.image_exists(refused.image))
        self.assertIn('nbd-iothread', refused.log)
        # What QEMU the host has is for operators only.
        self.assertIn('the host can\'t (ask an operator why)',
                      self.refusal_text(self.server))
        self.assert_keeps_writing(self.server)
        self.assert_nothing_left(self.server)
