# SPDX-License-Identifier: Apache-2.0

import errno
import os
import pathlib
import subprocess
from unittest import mock

import fixtures
from lxml import etree
from oslotest import base

from nova_snapext.hypervisor import confinement

SHIPPED = (pathlib.Path(__file__).parents[3] /
           'etc/apparmor.d/abstractions/libvirt-qemu.d/nova-snapext')
WORK_DIRECTORY = '/var/lib/nova/instances/snapshots'
PROFILE = 'libvirt-11111111-2222-4333-8444-555555555555'


def guest(*labels):
    return etree.fromstring(f'<domain>{"".join(labels)}</domain>')


CONFINED = guest(
    '<seclabel type="dynamic" model="dac"><label>+64:+64</label></seclabel>',
    f'<seclabel type="dynamic" model="apparmor"><label>{PROFILE}</label>'
    f'</seclabel>')


class AppArmorTestCase(base.BaseTestCase):

    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.MockPatchObject(
            confinement, 'APPARMOR', self.root))

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class ProfileTest(AppArmorTestCase):

    def test_label_of_the_running_guest_names_its_profile(self):
        self.assertEqual(PROFILE, confinement.apparmor_profile(CONFINED))

    def test_guest_without_a_label_has_no_profile(self):
        for label in ('', '<seclabel type="none" model="apparmor"/>',
                      '<seclabel type="dynamic" model="apparmor"/>',
                      '<seclabel type="dynamic" model="selinux"><label>x'
                      '</label></seclabel>'):
            self.assertIsNone(confinement.apparmor_profile(guest(label)))

    def forbidding(self, text, path='/i/disk', definition=CONFINED):
        self.write(f'libvirt/{PROFILE}.files', text)
        return confinement.profile_that_forbids_write(definition, path)

    def test_rule_that_denies_writing_is_found(self):
        self.assertEqual(
            self.root / 'libvirt' / f'{PROFILE}.files',
            self.forbidding('  "/i/disk" rk,\n  deny "/i/disk" w,\n'
                            '  "/i/disk" rwk,\n'))

    def test_rule_for_another_file_or_permission_is_not_meant(self):
        for text in ('  "/i/disk" rwk,', '  deny "/i/disk.config" w,',
                     '  deny "/i/other/i/disk" w,', '  deny "/i/disk" x,',
                     '  # deny "/i/disk" w,'):
            self.assertIsNone(self.forbidding(text), text)

    def test_link_to_the_disk_is_followed_as_libvirt_does(self):
        disk = self.root / 'disk'
        disk.touch()
        (self.root / 'link').symlink_to(disk)
        self.assertIsNotNone(self.forbidding(
            f'  deny "{os.path.realpath(disk)}" w,', self.root / 'link'))

    def test_profile_that_can_not_be_read_forbids_nothing_known(self):
        self.assertIsNone(
            confinement.profile_that_forbids_write(CONFINED, '/i/disk'))
        self.assertIsNone(self.forbidding(
            'deny "/i/disk" w,', definition=guest()))


class RulesTest(AppArmorTestCase):

    def rules(self, text):
        self.write('abstractions/libvirt-qemu', text)
        return list(confinement.guest_rules())

    def allowed(self, text, directory=WORK_DIRECTORY):
        return confinement.allows_sockets(self.rules(text), directory)

    def open(self, text):
        return confinement.open_rules(self.rules(text), WORK_DIRECTORY)

    def test_shipped_rules_allow_own_sockets_and_open_nothing(self):
        text = SHIPPED.read_text()
        self.assertTrue(self.allowed(text))
        self.assertEqual([], self.open(text))
        for rule in self.rules(text):
            self.assertTrue(rule.path.startswith(
                f'{WORK_DIRECTORY}/@{{profile_name}}/*/'), rule)

    def test_shipped_rules_are_for_the_default_directory_alone(self):
        self.assertFalse(self.allowed(SHIPPED.read_text(), '/srv/snapshots'))

    def test_rules_are_found_through_each_kind_of_include(self):
        for include, name in (
                ('include if exists <abstractions/libvirt-qemu.d>',
                 'abstractions/libvirt-qemu.d/nova-snapext'),
                ('#include <local/abstractions/libvirt-qemu>',
                 'local/abstractions/libvirt-qemu'),
                (f'include "{self.root}/mine"', 'mine')):
            self.assertFalse(self.allowed(include), include)
            self.write(name, SHIPPED.read_text())
            self.assertTrue(self.allowed(include), include)

    def test_include_of_itself_ends(self):
        self.assertFalse(self.allowed(
            'include <abstractions/libvirt-qemu>'))

    def test_missing_abstraction_has_no_rules(self):
        self.assertEqual([], list(confinement.guest_rules()))

    def test_rule_for_one_of_both_places_of_the_socket_does_not_suffice(self):
        lines = [line for line in SHIPPED.read_text().splitlines()
                 if not line.endswith('/nbd rw,')]
        socket = f'{WORK_DIRECTORY}/@{{profile_name}}/*/nbd rw,'
        self.assertFalse(self.allowed('\n'.join([*lines, socket])))

    def test_rule_that_only_reads_or_is_a_comment_allows_no_socket(self):
        for text in (SHIPPED.read_text().replace(' rw,', ' r,'),
                     '\n'.join(f'# {line}' for line in
                               SHIPPED.read_text().splitlines()),
                     f'deny {WORK_DIRECTORY}/@{{profile_name}}/** rw,'):
            self.assertFalse(self.allowed(text), text)

    def test_rule_for_all_of_the_own_directory_suffices(self):
        for rule in (f'{WORK_DIRECTORY}/@{{profile_name}}/** rwk,',
                     f'owner "{WORK_DIRECTORY}/@{{profile_name}}/**" rwk,',
                     f'rw {WORK_DIRECTORY}/@{{profile_name}}/**,',
                     '/var/lib/nova/{instances,x}/snapshots/'
                     '@{profile_name}/** rw,'):
            self.assertTrue(self.allowed(rule), rule)
            self.assertEqual([], self.open(rule), rule)

    def test_rule_that_other_guests_match_is_open(self):
        for path in (f'{WORK_DIRECTORY}/**', '/var/lib/nova/**', '/**',
                     f'{WORK_DIRECTORY}/*/*/scratch',
                     f'{WORK_DIRECTORY}/libvirt-*/**',
                     f'{WORK_DIRECTORY}/{{a,libvirt-*}}/[0-9a-f]*/scratch'):
            self.assertEqual([path], self.open(f'{path} rwk,'), path)
            self.assertEqual([path], self.open(f'owner {path} rw,'), path)
            self.assertEqual([], self.open(f'deny {path} rw,'), path)
        self.assertEqual([], self.open('/var/lib/nova/instances/*/disk rw,'))

    def test_what_is_no_pattern_matches_itself_alone(self):
        for path in ('/x/{a', '/x/[b-a]', '/x/}'):
            self.assertEqual([], self.open(f'{path} rw,'))


class HelperTest(base.BaseTestCase):

    def forbids(self, **result):
        self.useFixture(fixtures.MockPatchObject(
            confinement, 'HELPERS', ('/none', os.devnull)))
        with mock.patch.object(subprocess, 'run', **result):
            return confinement.helper_forbids_merge()

    def prints(self, text):
        return {'return_value': mock.Mock(stdout='', stderr=text)}

    def test_printed_profile_tells_whether_the_merge_is_forbidden(self):
        disk = confinement._DISK
        overlay = f'  "{disk}.snapext" rwk,\n  "{disk}" rk,\n'
        self.assertIs(True, self.forbids(
            **self.prints(f'{overlay}  deny "{disk}" w,\n')))
        self.assertIs(False, self.forbids(**self.prints(overlay)))

    def test_program_that_fails_or_prints_nothing_tells_nothing(self):
        for result in ({'side_effect': OSError}, self.prints(''),
                       {'side_effect': subprocess.TimeoutExpired('x', 1)},
                       {'side_effect': subprocess.CalledProcessError(1, 'x')}):
            self.assertIsNone(self.forbids(**result))

    def test_host_without_the_program_tells_nothing(self):
        self.useFixture(fixtures.MockPatchObject(
            confinement, 'HELPERS', ('/none',)))
        self.assertIsNone(confinement.helper_forbids_merge())


class LabelTest(base.BaseTestCase):

    LABEL = 'system_u:object_r:svirt_image_t:s0:c3,c7'

    def setUp(self):
        super().setUp()
        self.setxattr = self.useFixture(
            fixtures.MockPatchObject(os, 'setxattr')).mock

    def label(self):
        confinement.label_for_guest('/w', guest(
            f'<seclabel type="dynamic" model="selinux"><imagelabel>'
            f'{self.LABEL}</imagelabel></seclabel>'))

    def test_label_of_images_is_set(self):
        self.label()
        self.setxattr.assert_called_once_with(
            '/w', 'security.selinux', self.LABEL.encode() + b'\0')

    def test_guest_that_selinux_does_not_confine_has_no_label(self):
        for definition in (CONFINED, guest(
                '<seclabel type="none" model="selinux"/>')):
            confinement.label_for_guest('/w', definition)
        self.setxattr.assert_not_called()

    def test_file_system_without_labels_is_accepted(self):
        self.setxattr.side_effect = OSError(errno.ENOTSUP, 'not supported')
        self.label()

    def test_label_that_is_refused_is_an_error(self):
        self.setxattr.side_effect = PermissionError(errno.EACCES, 'denied')
        self.assertRaises(PermissionError, self.label)
