# SPDX-License-Identifier: Apache-2.0
"""Guests that known defects of QEMU would harm."""

import os
import re
import shutil
import time
from unittest import mock

from devcloud import wait
import libvirt
from lxml import etree

from nova_snapext import exception
from nova_snapext.hypervisor import qemu_process
from nova_snapext.snapshot import selection
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.functional import base
from tests.functional.strategies import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER

FIXED_IOTHREAD = (8, 2, 3)
INACTIVE_SINCE = (10, 0, 0)
INACTIVE_FIXED = (12, 8, 0)     # in libvirt

SCSI = """
<controller type='scsi' index='0' model='virtio-scsi'>
  <driver iothread='1'/>
</controller>
"""


class DefectTestCase(contract.FreezeAssertions, base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategies = {
            strategy.name: strategy(self.driver) for strategy in (
                backup.BackupStrategy, external.ExternalStrategy,
                cold.ColdStrategy, internal.InternalStrategy)}

    def changed_guest(self, disk, change, running=True):
        """Return the plan of a guest with a changed definition."""
        plan = self.guest(disk, running=False)
        definition = etree.fromstring(plan.guest.get_xml_desc())
        change(definition)
        domain = self.host.get_connection().defineXML(
            etree.tostring(definition, encoding='unicode'))
        if running:
            domain.create()
        return self.plan_of(plan.instance, disk)

    def reasons(self, plan):
        plan = self.plan_of(plan.instance, plan.disk)
        return {name: strategy.unsupported_reason(plan)
                for name, strategy in self.strategies.items()}

    @property
    def qemu(self):
        return qemu_process.installed_version(self.host)

    def select(self, plan, names):
        return selection.select(
            plan, selection.StrategyRequest.parse(names, 'a test'),
            self.strategies).name


def add_iothread(definition):
    etree.SubElement(definition, 'iothreads').text = '1'
    definition.find('./devices/disk/driver').set('iothread', '1')


def add_iothread_to_controller(definition):
    etree.SubElement(definition, 'iothreads').text = '1'
    definition.find('./devices').append(etree.fromstring(SCSI))
    disk = definition.find('./devices/disk')
    disk.find('target').set('bus', 'scsi')
    disk.remove(disk.find('address'))


class IothreadTest(DefectTestCase):

    def snapshot_leaves_guest_alive(self, change):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.changed_guest(disk, change)
        reason = self.reasons(plan)['backup']
        if self.qemu < FIXED_IOTHREAD:
            self.assertIn('nbd-iothread', reason)
            expected = 'external'
        else:
            self.assertIsNone(reason)
            expected = 'backup'
        name = self.select(plan, 'backup,external')
        self.assertEqual(expected, name)
        with self.strategies[name].freeze(plan) as frozen:
            # Two clients, one after the other.
            for _ in range(2):
                self.assertEqual({BEFORE}, self.content(frozen))
                if name == 'external':
                    break   # qemu-nbd ends with its last client
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING,
                         plan.guest._domain.state()[0])
        self.assert_nothing_left(plan)

    def test_guest_with_iothread_survives(self):
        self.snapshot_leaves_guest_alive(add_iothread)

    def test_guest_with_iothread_of_its_controller_survives(self):
        self.snapshot_leaves_guest_alive(add_iothread_to_controller)

    def test_request_for_refused_strategy_changes_nothing(self):
        if self.qemu >= FIXED_IOTHREAD:
            self.skipTest('this QEMU does not have the defect')
        plan = self.changed_guest(self.qcow2(), add_iothread)
        before = self.definitions(plan)
        error = self.assertRaises(
            exception.StrategyRefused, self.select, plan, 'backup')
        self.assertIn('nbd-iothread', str(error))
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_guest_that_is_shut_off_is_served(self):
        plan = self.changed_guest(self.qcow2(), add_iothread, running=False)
        self.assertIsNone(self.reasons(plan)['cold'])


class VersionTest(DefectTestCase):

    def test_guest_tells_the_version_of_its_qemu(self):
        plan = self.guest(self.qcow2())
        self.assertEqual(self.qemu, qemu_process.running_version(
            self.host, plan.guest))

    def own_emulator(self):
        """Return a guest with an emulator of its own."""
        installed = re.search(
            '<emulator>(.*)</emulator>',
            self.guest(self.qcow2(), running=False).guest.get_xml_desc())[1]
        # QEMU looks for its modules and firmware relative to itself.
        emulator = self.images / 'usr/bin/qemu-system-x86_64'
        emulator.parent.mkdir(parents=True)
        for name in ('lib', 'share'):
            (self.images / 'usr' / name).symlink_to(f'/usr/{name}')
        shutil.copy(os.path.realpath(installed), emulator)
        old_enough = (os.stat(emulator).st_ctime +
                      qemu_process.START_PRECISION + 1)
        wait.until('a start that is later than the copy',
                   lambda: time.time() > old_enough, 30)

        def change(definition):
            definition.find('./devices/emulator').text = str(emulator)
            add_iothread(definition)

        return self.changed_guest(self.qcow2(), change), emulator

    def test_emulator_that_is_replaced_makes_the_version_unknown(self):
        plan, emulator = self.own_emulator()
        self.assertEqual(self.qemu, qemu_process.running_version(
            self.host, plan.guest))
        replacement = emulator.with_name('new')
        shutil.copy(emulator, replacement)
        os.rename(replacement, emulator)
        self.assertIsNone(qemu_process.running_version(
            self.host, plan.guest))
        self.assertIn('version is unknown', self.reasons(plan)['backup'])
        self.assertIsNone(self.reasons(plan)['external'])

    def test_guest_that_is_shut_off_has_no_version(self):
        plan = self.guest(self.qcow2(), running=False)
        self.assertIsNone(qemu_process.running_version(self.host, plan.guest))
        self.assertIsNone(self.reasons(plan)['cold'])


class PausedTest(DefectTestCase):

    def setUp(self):
        super().setUp()
        self.inactive = (
            self.qemu >= INACTIVE_SINCE and
            qemu_process.libvirt_version(self.host) < INACTIVE_FIXED)

    def restored(self):
        """Return a guest that was restored while it was paused."""
        plan = self.guest(self.qcow2())
        plan.guest.pause()
        plan.guest.save_memory_state()
        plan.guest._domain.create()
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED,
                         plan.guest._domain.state()[0])
        self.assertTrue(qemu_process.is_incoming(plan.guest))
        return plan

    def test_paused_guest_is_only_refused_if_it_could_not_be_merged(self):
        plan = self.guest(self.qcow2())
        plan.guest.pause()
        reasons = self.reasons(plan)
        self.assertIsNone(reasons['backup'])
        self.assertIsNone(reasons['external'])
        self.assertEqual(self.inactive, reasons['cold'] is not None)

    def test_restored_guest_is_refused_as_long_as_it_has_not_run(self):
        plan = self.restored()
        reasons = self.reasons(plan)
        for name in ('backup', 'external', 'cold'):
            self.assertEqual(self.inactive, reasons[name] is not None, name)
        plan.guest.resume()
        plan.guest.pause()
        reasons = self.reasons(plan)
        for name in ('backup', 'external'):
            self.assertIsNone(reasons[name], name)

    def test_guest_that_is_not_refused_is_frozen_and_released(self):
        plan = self.restored()
        before = self.definitions(plan)
        for name, reason in self.reasons(plan).items():
            if reason is None:
                plan = self.plan_of(plan.instance, plan.disk)
                with self.strategies[name].freeze(plan) as frozen:
                    self.assertEqual({0}, self.content(frozen))
        self.assert_same(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_guest_that_was_migrated_while_paused_is_refused(self):
        # It has no lock of its disk then, whatever the version.
        plan = self.guest(self.qcow2())
        plan.guest.pause()
        with mock.patch.object(qemu_process, 'is_open_for_writing',
                               return_value=False), \
                mock.patch.object(qemu_process, 'is_incoming',
                                  return_value=True):
            reasons = self.reasons(plan)
        if self.qemu < INACTIVE_SINCE:
            self.assertIsNone(reasons['backup'])
            self.assertIn('inactive-disks-before-10', reasons['external'])
            self.assertIn('inactivated-twice', reasons['cold'])
        else:
            self.assertEqual(self.inactive, reasons['external'] is not None)
