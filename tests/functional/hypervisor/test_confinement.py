# SPDX-License-Identifier: Apache-2.0
"""What the AppArmor profile of a guest allows at each step of a snapshot.

libvirt's own program prints the profile that it would make, AppArmor's parser
compiles it, and the compiled rules are asked. Nothing is loaded: the kernel
needs no AppArmor, and whether it enforces the rules is not tested here.
"""

import contextlib
import os
import pathlib
import re
from unittest import mock
import uuid

import fixtures
from lxml import etree
from oslotest import base as testcase

from nova_snapext import conf
from nova_snapext.hypervisor import confinement
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import qemu_process
from nova_snapext.strategies import backup
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.functional import base
from tests.functional.hypervisor import apparmor_policy

RULES = (pathlib.Path(__file__).parents[3] /
         'etc/apparmor.d/abstractions/libvirt-qemu.d/nova-snapext')

PROFILE = """
include <tunables/global>
profile {name} flags=(attach_disconnected) {{
  include <abstractions/libvirt-qemu>
{rules}
}}
"""

TOKEN = '0123abcd'


class ConfinementTestCase(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.work_directory = conf.CONF.snapext.work_directory
        self.shipped = RULES.read_text().replace(
            '/var/lib/nova/instances/snapshots', self.work_directory)

    @staticmethod
    def definition(plan, at_start=False):
        """Return what libvirt hands to its program for a guest.

        :param at_start: libvirt does not know the backing chain yet
        """
        definition = etree.fromstring(plan.guest.get_xml_desc())
        if at_start:
            for element in definition.findall('.//backingStore'):
                element.getparent().remove(element)
        return etree.tostring(definition, encoding='unicode')

    def made(self, plan, *appended, at_start=False):
        """Return the text of a guest's rules as libvirt makes them.

        :param appended: files that libvirt labels afterwards
        """
        definition = self.definition(plan, at_start)
        return '\n'.join(self.helper(plan, definition, *arguments)
                         for arguments in [
                             (), *(('-F', path) for path in appended)])

    def helper(self, plan, definition, *arguments):
        helper = next(filter(os.path.exists, confinement.HELPERS))
        result = apparmor_policy.run(
            (helper, '-d', '-r', '-u', f'libvirt-{plan.instance.uuid}',
             *arguments), definition)
        rules = re.findall(r'^\s+(?:deny )?"[^"]*" \w+,$', result,
                           re.MULTILINE)
        self.assertNotEqual([], rules)
        return '\n'.join(rules)

    def policy(self, plan, rules):
        return apparmor_policy.Policy(PROFILE.format(
            name=f'libvirt-{plan.instance.uuid}', rules=rules))

    def path(self, instance_uuid, name):
        return os.path.join(
            self.work_directory, f'libvirt-{instance_uuid}', TOKEN, name)

    @property
    def is_defective(self):
        """Whether the installed libvirt has the defect, by its version."""
        version = qemu_process.libvirt_version(self.host)
        return any(defect.name == 'apparmor-resumed-overlay' for defect in
                   known_defects.present((99, 0, 0), version))


class OwnDirectoryTest(ConfinementTestCase):

    NAMES = ('qemu/nbd', 'nbd', 'scratch')

    def allowed(self, rules, instance_uuid=None):
        """Return what a guest may do in a work directory."""
        plan = self.guest(self.qcow2(), running=False)
        policy = self.policy(plan, rules)
        return [policy.allowed(self.path(
            instance_uuid or plan.instance.uuid, name))
            for name in self.NAMES]

    def test_stock_profile_forbids_the_socket_of_a_backup_job(self):
        self.assertEqual(['', '', ''], self.allowed(''))

    def test_shipped_rules_allow_sockets_and_scratch_of_the_guest(self):
        self.assertEqual(['rw', 'rw', 'rwk'], self.allowed(self.shipped))

    def test_shipped_rules_allow_nothing_of_another_guest(self):
        self.assertEqual(['', '', ''],
                         self.allowed(self.shipped, str(uuid.uuid4())))

    def test_shipped_rules_allow_nothing_else(self):
        plan = self.guest(self.qcow2(), running=False)
        policy = self.policy(plan, self.shipped)
        for name in ('', 'pid', 'qemu/other', 'qemu/nbd/x', '../nbd'):
            self.assertEqual('', policy.allowed(
                self.path(plan.instance.uuid, name)), name)

    def test_rule_for_all_snapshots_opens_those_of_another_guest(self):
        rule = f'{self.work_directory}/** rwk,'
        self.assertEqual(['rwk'] * 3, self.allowed(rule, str(uuid.uuid4())))
        self.assertEqual([f'{self.work_directory}/**'],
                         confinement.open_rules(
                             [confinement.Rule(rule.split()[0], 'rwk')],
                             self.work_directory))


class StepsTest(ConfinementTestCase):
    """The profile of a guest whose disk has a backing file."""

    def setUp(self):
        super().setUp()
        self.disk = self.chained_qcow2()

    @contextlib.contextmanager
    def frozen(self, strategy):
        plan = self.guest(self.disk)
        before = self.made(plan)
        with strategy(self.driver).freeze(plan):
            yield plan, before

    def test_guest_may_write_to_its_disk_and_not_below_it(self):
        plan = self.guest(self.disk)
        backing = plan.guest.get_xml_desc()
        path = etree.fromstring(backing).find(
            './devices/disk/backingStore/source').get('file')
        policy = self.policy(plan, self.made(plan))
        self.assertEqual(('rwk', 'rk'), (policy.allowed(self.disk.path),
                                         policy.allowed(path)))

    def test_backup_needs_the_shipped_rules_and_what_libvirt_adds(self):
        with self.frozen(backup.BackupStrategy) as (plan, _before):
            [scratch] = pathlib.Path(self.work_directory).glob(
                f'libvirt-{plan.instance.uuid}/*/scratch')
            socket = str(scratch.parent / 'nbd')
            created = str(scratch.parent / 'qemu' / 'nbd')
            stock = self.made(plan, str(scratch))
            again = self.made(plan)
        policy = self.policy(plan, stock)
        self.assertEqual(
            ('rwk', '', ''),
            tuple(map(policy.allowed, (str(scratch), created, socket))))
        for rules in (stock, again):
            policy = self.policy(plan, rules + self.shipped)
            self.assertEqual(
                ('rwk', 'rw', 'rw'),
                tuple(map(policy.allowed, (str(scratch), created, socket))))

    def test_directory_of_a_backup_is_labelled_before_all_that_is_in_it(self):
        labelled = []

        def label(path, definition):
            labelled.append((os.listdir(path), definition.findtext('uuid')))

        self.useFixture(fixtures.MockPatchObject(
            confinement, 'label_for_guest', label))
        with self.frozen(backup.BackupStrategy) as (plan, _before):
            self.assertEqual([([], plan.instance.uuid)], labelled)

    def test_external_may_merge_as_long_as_the_profile_is_only_added_to(self):
        with self.frozen(external.ExternalStrategy) as (plan, before):
            overlay = self.overlay(plan)
            rules = before + self.added(plan, overlay)
        policy = self.policy(plan, rules)
        self.assertEqual(('rwk', 'rwk'), (policy.allowed(overlay),
                                          policy.allowed(self.disk.path)))

    def test_external_may_not_merge_if_the_profile_was_made_again(self):
        with self.frozen(external.ExternalStrategy) as (plan, _before):
            overlay = self.overlay(plan)
            # libvirt adds the disk when the commit begins.
            rules = self.made(plan, self.disk.path)
        policy = self.policy(plan, rules)
        self.assertEqual('rwk', policy.allowed(overlay))
        self.assertEqual('rk' if self.is_defective else 'rwk',
                         policy.allowed(self.disk.path))

    def test_line_that_the_log_names_is_all_that_forbids_the_merge(self):
        with self.frozen(external.ExternalStrategy) as (plan, _before):
            rules = self.made(plan, self.disk.path)
        policy = self.policy(plan, re.sub(
            rf'^\s*deny "{re.escape(self.disk.path)}" w,$', '', rules,
            flags=re.MULTILINE))
        self.assertEqual('rwk', policy.allowed(self.disk.path))

    def test_cold_may_not_merge_as_the_profile_is_made_on_the_overlay(self):
        with self.frozen(cold.ColdStrategy) as (plan, _before):
            overlay = self.overlay(plan)
            rules = self.made(plan, self.disk.path, at_start=True)
        policy = self.policy(plan, rules)
        self.assertEqual('rwk', policy.allowed(overlay))
        self.assertEqual('rk' if self.is_defective else 'rwk',
                         policy.allowed(self.disk.path))

    def test_internal_needs_nothing_but_the_disk(self):
        plan = self.guest(self.disk, running=False)
        definition = etree.fromstring(plan.guest.get_xml_desc())
        # A raw disk can't hold a snapshot.
        devices = definition.find('./devices')
        devices.remove(devices.findall('./disk')[1])
        self.host.get_connection().defineXML(
            etree.tostring(definition, encoding='unicode')).create()
        plan = self.plan_of(plan.instance, self.disk)
        before = self.made(plan)
        with internal.InternalStrategy(self.driver).freeze(plan):
            self.assertEqual(before, self.made(plan))

    def overlay(self, plan):
        return str(self.images / plan.instance.uuid / 'disk.snapext')

    def added(self, plan, path):
        return '\n' + self.helper(plan, self.definition(plan), '-F', path)


class RefusalTest(ConfinementTestCase):

    STRATEGIES = (backup.BackupStrategy, external.ExternalStrategy,
                  internal.InternalStrategy, cold.ColdStrategy)

    def test_cold_alone_is_refused_beforehand_for_a_confined_guest(self):
        plan = self.guest(self.qcow2())
        definition = domain.Domain.get_xml_desc

        def confined(guest, *args, **kwargs):
            return definition(guest, *args, **kwargs).replace(
                '</domain>', f'<seclabel type="dynamic" model="apparmor">'
                f'<label>libvirt-{guest.uuid}</label></seclabel></domain>')

        def refused():
            return [strategy.name for strategy in self.STRATEGIES
                    if 'apparmor' in (strategy(
                        self.driver).unsupported_reason(plan) or '')]

        self.assertEqual([], refused())
        with mock.patch.object(domain.Domain, 'get_xml_desc', confined):
            self.assertEqual(['cold'] if self.is_defective else [], refused())


class LabelTest(testcase.BaseTestCase):

    def test_directory_gets_the_label_of_the_images_of_the_guest(self):
        path = self.useFixture(fixtures.TempDir()).path
        confinement.label_for_guest(path, etree.fromstring(
            '<domain><seclabel type="dynamic" model="selinux"><imagelabel>'
            'system_u:object_r:svirt_image_t:s0:c1,c2</imagelabel></seclabel>'
            '</domain>'))
        self.assertEqual(b'system_u:object_r:svirt_image_t:s0:c1,c2\0',
                         os.getxattr(path, 'security.selinux'))


class HelperTest(ConfinementTestCase):

    def test_defect_is_found_by_what_the_installed_program_prints(self):
        self.assertEqual(self.is_defective,
                         confinement.helper_forbids_merge())
