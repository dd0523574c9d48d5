# SPDX-License-Identifier: Apache-2.0

import pkgutil

from lxml import etree
from oslotest import base

from nova_snapext.hypervisor import known_defects
from nova_snapext import strategies

Mechanism = known_defects.Mechanism

NEWEST = (99, 0, 0)

DOMAIN = """
<domain>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' {driver}/>
      <target dev='vda' bus='{bus}'/>
      {address}
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' iothread='2'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    {controllers}
  </devices>
  {seclabel}
</domain>
"""

CONTROLLER = """
<controller type='scsi' index='{index}' model='virtio-scsi'>
  <driver {driver}/>
</controller>
"""

ADDRESS = "<address type='drive' controller='{}' bus='0' target='0' unit='0'/>"

APPARMOR = """
<seclabel type='dynamic' model='apparmor' relabel='yes'>
  <label>libvirt-UUID</label>
</seclabel>
"""


def subject(*, paused=False, inactive=False, driver='', bus='virtio',
            address='', controllers='', seclabel='', target='vda'):
    return known_defects.Subject(
        definition=etree.fromstring(DOMAIN.format(
            driver=driver, bus=bus, address=address, controllers=controllers,
            seclabel=seclabel)),
        target=target, paused=paused, inactive=inactive)


PLAIN = subject()
IOTHREAD = subject(driver="iothread='1'")
INACTIVE = subject(paused=True, inactive=True)

#: For each defect: a guest that has it, one that does not (None: all have it),
#: a pair of QEMU and libvirt with it, and pairs without it.
ROWS = {
    'missed-writes': (
        PLAIN, subject(paused=True), ((8, 2, 0), NEWEST),
        (((8, 1, 5), NEWEST), ((10, 0, 9), NEWEST), ((10, 2, 2), NEWEST))),
    'nbd-iothread': (
        IOTHREAD, PLAIN, ((8, 2, 2), NEWEST),
        (((8, 2, 3), NEWEST), ((9, 0, 0), (8, 0, 0)))),
    'inactive-disks': (
        INACTIVE, subject(paused=True), ((10, 0, 0), (12, 7, 0)),
        (((9, 2, 4), (12, 7, 0)), ((11, 1, 0), (12, 8, 0)))),
    'inactive-disks-after-resume': (
        subject(paused=True), PLAIN, ((11, 1, 0), (11, 3, 0)),
        (((9, 2, 4), (11, 3, 0)), ((10, 0, 0), (12, 8, 0)))),
    'inactivated-twice': (
        INACTIVE, subject(paused=True), ((6, 2, 0), NEWEST),
        (((10, 0, 0), NEWEST),)),
    'inactive-disks-before-10': (
        INACTIVE, subject(paused=True), ((9, 2, 4), NEWEST),
        (((10, 0, 0), NEWEST),)),
    'apparmor-resumed-overlay': (
        subject(seclabel=APPARMOR), PLAIN, (NEWEST, (12, 0, 0)),
        ((NEWEST, (12, 1, 0)),)),
    'apparmor-profile-made-again': (
        subject(seclabel=APPARMOR), PLAIN, (NEWEST, (8, 0, 0)),
        ((NEWEST, (12, 1, 0)),)),
    'mirror-pause-deadlock': (
        PLAIN, IOTHREAD, ((8, 2, 0), NEWEST),
        (((8, 1, 5), NEWEST), ((8, 2, 3), NEWEST), ((9, 0, 0), NEWEST))),
    'nbd-handshake': (
        PLAIN, None, ((8, 2, 6), NEWEST),
        (((7, 2, 14), NEWEST), ((8, 2, 7), NEWEST), ((9, 0, 3), NEWEST),
         ((9, 1, 0), NEWEST))),
    'lost-notifications': (
        IOTHREAD, PLAIN, ((8, 1, 0), NEWEST),
        (((8, 0, 5), NEWEST), ((8, 2, 2), NEWEST))),
    'drain-deadlock': (
        IOTHREAD, PLAIN, ((10, 0, 13), NEWEST),
        (((8, 2, 1), NEWEST), ((10, 1, 0), NEWEST))),
}


def names(mechanisms, guest, **versions):
    return [defect.name for defect in known_defects.find(
        mechanisms, guest, **versions)]


class TableTest(base.BaseTestCase):

    def test_every_row_is_tested(self):
        self.assertEqual(list(ROWS), [
            defect.name for defect in known_defects.DEFECTS])

    def test_guests_with_and_without_a_defect_are_told_apart(self):
        for defect in known_defects.DEFECTS:
            concerned, other, _affected, _fixed = ROWS[defect.name]
            self.assertTrue(defect.condition(concerned), defect.name)
            if other is not None:
                self.assertFalse(defect.condition(other), defect.name)

    def test_versions_with_and_without_a_defect_are_told_apart(self):
        for defect in known_defects.DEFECTS:
            _concerned, _other, affected, fixed = ROWS[defect.name]
            self.assertTrue(defect.affects(*affected), defect.name)
            for versions in fixed:
                self.assertFalse(defect.affects(*versions),
                                 (defect.name, versions))

    def test_unknown_qemu_has_every_defect_of_its_libvirt(self):
        for defect in known_defects.DEFECTS:
            _concerned, _other, (_qemu, libvirt), _fixed = ROWS[defect.name]
            self.assertTrue(defect.affects(None, libvirt), defect.name)

    def test_every_row_has_a_source(self):
        for defect in known_defects.DEFECTS:
            self.assertTrue(defect.sources, defect.name)

    def test_strategies_declare_the_mechanisms_of_the_list(self):
        for module in pkgutil.iter_modules(strategies.__path__,
                                           'nova_snapext.strategies.'):
            __import__(module.name)
        declared = {
            (mechanism, strategy.name)
            for strategy in strategies.FreezingStrategy.__subclasses__()
            if strategy.__module__.startswith('nova_snapext.')
            for mechanism in strategy.mechanisms}
        self.assertEqual(
            {(mechanism, name)
             for mechanism, found in known_defects.STRATEGIES.items()
             for name in found}, declared)

    def test_range_is_written_as_operators_compare_it(self):
        for versions, text in (
                (known_defects.Range(), 'all'),
                (known_defects.Range(fixed=(8, 2, 3)), 'older than 8.2.3'),
                (known_defects.Range(first=(10, 0, 0)), '10.0.0 and newer'),
                (known_defects.Range((8, 2, 0), (8, 2, 3)),
                 '8.2.0 and newer, older than 8.2.3'),
                (known_defects.Range(fixed=(10, 2, 2),
                                     backports=((7, 2, 14), (10, 0, 9))),
                 'older than 10.2.2; not 7.2.14 and newer of 7.2; not 10.0.9 '
                 'and newer of 10.0')):
            self.assertEqual(text, str(versions))

    def test_backport_fixes_its_own_series_only(self):
        versions = known_defects.Range(
            (8, 2, 0), (10, 2, 2), backports=((10, 0, 9),))
        for version, expected in (
                ((10, 0, 8), True), ((10, 0, 9), False), ((10, 0, 13), False),
                ((10, 1, 0), True), ((9, 2, 9), True), ((10, 2, 2), False)):
            self.assertEqual(expected, version in versions, version)


class IothreadTest(base.BaseTestCase):

    def assert_iothread(self, expected, **kwargs):
        self.assertEqual(
            expected, known_defects._has_iothread(subject(**kwargs)))

    def test_iothread_of_another_disk_is_none(self):
        self.assert_iothread(False)

    def test_iothread_of_the_disk_is_one(self):
        self.assert_iothread(True, driver="iothread='1'")

    def test_mapping_to_several_iothreads_is_one(self):
        guest = subject()
        etree.SubElement(etree.SubElement(
            guest.definition.find('./devices/disk/driver'), 'iothreads'),
            'iothread', id='2')
        self.assertTrue(known_defects._has_iothread(guest))

    def test_iothread_of_the_controller_of_the_disk_is_one(self):
        for index, expected in (('0', False), ('1', True)):
            self.assert_iothread(
                expected, bus='scsi', address=ADDRESS.format(index),
                controllers=CONTROLLER.format(index=0, driver='') +
                CONTROLLER.format(index=1, driver="iothread='1'"))

    def test_disk_without_address_may_be_on_any_controller(self):
        self.assert_iothread(
            True, bus='scsi',
            controllers=CONTROLLER.format(index=3, driver="iothread='1'"))

    def test_controller_of_other_disks_does_not_count(self):
        self.assert_iothread(
            False, controllers=CONTROLLER.format(
                index=0, driver="iothread='1'"))

    def test_disk_that_is_not_in_the_definition_may_have_one(self):
        self.assert_iothread(True, target='vdz')


class ApparmorTest(base.BaseTestCase):

    def test_guest_that_is_not_confined_has_no_such_defect(self):
        for label in ("<seclabel type='none' model='apparmor'/>",
                      # Only a guest that was started in a profile has one.
                      "<seclabel type='dynamic' model='apparmor'/>",
                      "<seclabel type='dynamic' model='dac'/>",
                      "<seclabel type='dynamic' model='selinux'/>"):
            self.assertFalse(known_defects._is_confined_by_apparmor(
                subject(seclabel=label)))


class FindTest(base.BaseTestCase):

    def found(self, mechanism, guest, running, installed=NEWEST,
              libvirt=NEWEST, **kwargs):
        return names({mechanism}, guest, running=running, installed=installed,
                     libvirt=libvirt, **kwargs)

    def test_running_qemu_counts_and_not_the_installed_one(self):
        for running, installed, expected in (
                ((7, 2, 22), (9, 0, 0), ['nbd-iothread']),
                ((9, 0, 0), (7, 2, 22), [])):
            self.assertEqual(expected, self.found(
                Mechanism.BACKUP_JOB, IOTHREAD, running, installed))

    def test_certain_defect_is_assumed_if_the_version_is_unknown(self):
        self.assertEqual(['nbd-iothread'], self.found(
            Mechanism.BACKUP_JOB, IOTHREAD, None))

    def test_race_is_that_of_the_installed_version_if_unknown(self):
        for installed, expected in (((8, 2, 2), ['mirror-pause-deadlock']),
                                    ((9, 0, 0), [])):
            self.assertEqual(expected, self.found(
                Mechanism.ACTIVE_COMMIT, PLAIN, None, installed))

    def test_mechanism_that_is_not_used_is_not_refused(self):
        for mechanism in Mechanism:
            self.assertEqual(
                mechanism is Mechanism.BACKUP_JOB, 'nbd-iothread' in
                self.found(mechanism, IOTHREAD, (7, 2, 22)))

    def test_guest_with_iothread_on_old_qemu_can_have_an_overlay(self):
        for running in ((6, 2, 0), (7, 2, 22), (8, 2, 2)):
            self.assertEqual([], self.found(
                Mechanism.ACTIVE_COMMIT, IOTHREAD, running))

    def test_defect_that_all_ways_have_refuses_none(self):
        for mechanism in Mechanism:
            self.assertEqual([], self.found(
                mechanism, IOTHREAD, (10, 0, 13)))

    def test_paused_guest_on_qemu_10_has_no_strategy_after_a_restore(self):
        for mechanism in Mechanism:
            self.assertNotEqual([], self.found(
                mechanism, INACTIVE, (10, 0, 13), libvirt=(11, 3, 0)))

    def test_paused_guest_on_qemu_10_that_has_run_is_only_not_suspended(self):
        for mechanism in Mechanism:
            self.assertEqual(
                mechanism is Mechanism.SUSPEND_AND_RESUME,
                bool(self.found(mechanism, subject(paused=True), (10, 0, 13),
                                libvirt=(11, 3, 0))))

    def test_backup_serves_a_guest_that_was_migrated_paused_before_10(self):
        for mechanism in Mechanism:
            self.assertEqual(
                mechanism is not Mechanism.BACKUP_JOB,
                bool(self.found(mechanism, INACTIVE, (7, 2, 22))))

    def test_stock_ubuntu_is_left_with_backup_and_external(self):
        guest = subject(seclabel=APPARMOR)
        refused = {mechanism for mechanism in Mechanism if self.found(
            mechanism, guest, (6, 2, 0), libvirt=(8, 0, 0))}
        self.assertEqual({Mechanism.SUSPEND_AND_RESUME}, refused)

    def test_defect_that_the_operator_says_is_fixed_is_ignored(self):
        self.assertEqual([], self.found(
            Mechanism.BACKUP_JOB, IOTHREAD, (7, 2, 22),
            ignored=['nbd-iothread']))

    def test_present_defects_are_those_of_both_versions(self):
        self.assertEqual(
            ['nbd-iothread', 'inactivated-twice', 'inactive-disks-before-10'],
            [defect.name for defect in known_defects.present(
                (7, 2, 22), (12, 8, 0))])
