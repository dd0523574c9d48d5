# SPDX-License-Identifier: Apache-2.0

import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
from unittest import mock

import fixtures
import libvirt
from lxml import etree
import nova.privsep.path
from oslo_concurrency import processutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import active_commit
from nova_snapext.freeze import base as freeze_base
from nova_snapext.freeze import external
from nova_snapext.freeze import overlay
from nova_snapext.freeze import qemu_img
from nova_snapext.freeze import qemu_nbd
from nova_snapext import journal
from tests.functional import base
from tests.functional.freeze import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER


class ExternalTestCase(contract.FreezeAssertions, base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = external.ExternalStrategy(self.driver)

    def definitions(self, plan):
        # To the letter: it is the same QEMU all the time.
        guest = self.host.get_guest(plan.instance)
        return guest.get_xml_desc(), guest.get_xml_desc(dump_inactive=True)

    @contextlib.contextmanager
    def at_the_commit_s_begin(self, act):
        """Have the next commit take long, and something done when it begins.

        :yields: how often it was begun, all in all, as a list's length
        """
        begun = []
        commit = libvirt.virDomain.blockCommit

        def slowly(domain, disk, base, top, _bandwidth, flags):
            commit(domain, disk, base, top, 1, flags |
                   libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES)
            begun.append(domain)
            self.assertLess(domain.blockJobInfo(disk)['cur'],
                            domain.blockJobInfo(disk)['end'])
            act()

        with mock.patch.object(libvirt.virDomain, 'blockCommit', slowly):
            yield begun


class ExternalTest(contract.RunningGuestContract, contract.RawDiskContract,
                   ExternalTestCase):

    def overlay_of(self, plan):
        return self.images / plan.instance.uuid / 'disk.snapext'

    def live_chain(self, plan):
        """The paths of the root disk's chain, the active one first."""
        return [source.get('file') or source.get('dev')
                for source in etree.fromstring(self.definitions(plan)[0])
                .findall('./devices/disk')[0].iter('source')]

    def domain(self, plan):
        """The guest's domain, by a connection that libvirtd has not lost."""
        return self.host.get_guest(plan.instance)._domain

    def test_without_an_agent_it_is_crash_consistent(self):
        with self.strategy.freeze(self.guest(self.qcow2())) as frozen:
            self.assertEqual(freeze_base.Consistency.CRASH,
                             frozen.consistency)

    def test_only_the_root_disk_is_put_on_an_overlay(self):
        # libvirt takes a snapshot of every disk that it is not told to leave.
        plan = self.guest(self.qcow2())
        plan.guest.poweroff()
        config_drive = self.raw().path
        cdrom = self.raw().path
        definition = etree.fromstring(plan.guest.get_xml_desc())
        devices = definition.find('devices')
        for number, (device, path, mode) in enumerate((
                ('disk', config_drive, ''),
                ('disk', self.raw().path, '<readonly/>'),
                ('cdrom', cdrom, ''), ('cdrom', None, ''),
                ('floppy', self.raw().path, ''))):
            source = f'<source file="{path}"/>' if path else ''
            target, bus = {'disk': (f'vd{"cdefgh"[number]}', 'virtio'),
                           'cdrom': (f'sd{"abcdef"[number]}', 'sata'),
                           'floppy': ('fda', 'fdc')}[device]
            devices.append(etree.fromstring(
                f'<disk type="file" device="{device}">'
                f'<driver name="qemu" type="raw"/>{source}'
                f'<target dev="{target}" bus="{bus}"/>{mode}</disk>'))
        self.host.get_connection().defineXML(
            etree.tostring(definition, encoding='unicode')).create()
        before = self.definitions(plan)
        with self.strategy.freeze(plan):
            changed = [
                disk.find('target').get('dev')
                for disk, was in zip(*(
                    etree.fromstring(definitions[1]).findall('.//disk')
                    for definitions in (self.definitions(plan), before)),
                    strict=True)
                if etree.tostring(disk) != etree.tostring(was)]
            self.assertEqual(['vda'], changed)
            self.assertEqual(['disk.snapext'],
                             os.listdir(self.images / plan.instance.uuid))
        self.assertEqual(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_only_the_root_disk_is_served(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan) as frozen:
            exports = base.run('nbdinfo', '--list', frozen.uri)
        self.assertIn('export="vda"', exports)
        self.assertNotIn('vdb', exports)

    def test_nobody_else_on_the_host_can_read_it(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan) as frozen:
            socket = frozen.uri.partition('socket=')[2]
            attempt = subprocess.run(
                ['setpriv', '--reuid=65534', '--regid=65534',
                 '--clear-groups', sys.executable, '-c', 'import socket, sys;'
                 'socket.socket(socket.AF_UNIX).connect(sys.argv[1])',
                 socket], capture_output=True, text=True)
            self.assertIn('PermissionError', attempt.stderr)

    def test_nobody_can_write_to_what_is_served(self):
        for disk in (self.qcow2(), self.raw()):
            plan = self.guest(disk)
            with self.strategy.freeze(plan):
                plan.guest.poweroff()
                self.assertIn('lock', self.assertRaises(
                    subprocess.CalledProcessError, self.fill, disk,
                    AFTER).stderr)
            self.assert_nothing_left(plan)

    # A guest that ends, or is gone, by the time of the release.

    def powered_off_meanwhile(self, disk):
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        inactive = self.definitions(plan)[1]
        with self.strategy.freeze(plan) as frozen:
            self.write_as_guest(plan, AFTER)
            plan.guest.poweroff()
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertEqual(inactive, self.definitions(plan)[1])
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)
        plan.guest.launch()

    def test_a_guest_that_powers_off_has_its_writes_in_a_qcow2(self):
        self.powered_off_meanwhile(self.qcow2())

    def test_a_guest_that_powers_off_has_its_writes_above_the_base(self):
        disk = self.chained_qcow2()
        image = self.live_base(disk)
        before = self.digest(image)
        self.powered_off_meanwhile(disk)
        self.assertEqual(before, self.digest(image))

    def test_a_guest_that_powers_off_has_its_writes_in_a_raw_file(self):
        self.powered_off_meanwhile(self.raw())

    def test_a_guest_that_powers_off_has_its_writes_on_a_block_device(self):
        self.powered_off_meanwhile(self.block())

    def test_a_guest_that_is_started_again_meanwhile_goes_on(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan) as frozen:
            self.write_as_guest(plan, AFTER)
            plan.guest.poweroff()
            plan.guest.launch()
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_a_guest_that_is_suspended_meanwhile_resumes_on_its_disk(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
            plan.guest.save_memory_state()
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)
        self.assertTrue(plan.guest._domain.hasManagedSaveImage())
        plan.guest.launch()
        self.assertFalse(plan.guest._domain.hasManagedSaveImage())
        self.assertEqual(before[1], self.definitions(plan)[1])
        self.assertEqual([disk.path], self.live_chain(plan))

    def undefine(self, plan):
        """Undefine a guest; it is defined again for the clean-up."""
        plan.guest.poweroff()
        definition = plan.guest.get_xml_desc()
        plan.guest._domain.undefine()
        self.addCleanup(self.host.get_connection().defineXML, definition)

    def test_a_guest_that_is_undefined_meanwhile_keeps_its_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
            self.undefine(plan)
        self.assertEqual([], list(self.freezes.iterdir()))
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(disk, AFTER)

    def test_an_instance_that_is_deleted_meanwhile_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            self.undefine(plan)
            os.unlink(self.overlay_of(plan))
            os.unlink(plan.disk.path)
        self.assertEqual([], list(self.freezes.iterdir()))

    # What silently destroys data.

    def live_base(self, disk):
        """The image below a qcow2."""
        return base.run('qemu-img', 'info', '-U', disk.path).partition(
            'backing file: ')[2].splitlines()[0]

    def digest(self, path):
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()

    def test_without_an_overlay_nothing_is_committed_to_the_base(self):
        disk = self.chained_qcow2()
        image = self.live_base(disk)
        plan = self.guest(disk)
        self.write_as_guest(plan, AFTER)
        before = self.digest(image)
        commit = active_commit.ActiveCommit(
            plan, str(self.overlay_of(plan)))
        self.assertIs(active_commit.State.NOT_THERE, commit.run(plan.guest))
        self.assertRaises(libvirt.libvirtError, commit._begin, plan.guest)
        overlay.Overlay(self.host, plan).merge()
        self.assertEqual([disk.path, image], self.live_chain(plan))
        self.assertEqual(before, self.digest(image))

    def test_another_s_overlay_is_not_committed(self):
        plan = self.guest(self.chained_qcow2())
        other = self.images / 'other'
        plan.guest._domain.snapshotCreateXML(
            f'<domainsnapshot><disks><disk name="vda"><source file="{other}"/>'
            f'</disk><disk name="vdb" snapshot="no"/></disks>'
            f'</domainsnapshot>',
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY |
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)
        before = self.definitions(plan)
        with mock.patch.object(libvirt.virDomain, 'blockCommit') as commit:
            error = self.assertRaises(exception.ReleaseFailed,
                                      overlay.Overlay(self.host, plan).merge)
        commit.assert_not_called()
        self.assertIn(f'{plan.disk.path} <- {other}', str(error))
        self.assertIn(plan.instance.uuid, str(error))
        self.assertEqual(before, self.definitions(plan))
        self.assertIn(str(other), self.freeze_fails(
            plan, exception.FreezeFailed))

    def test_a_guest_can_not_start_from_the_frozen_disk_alone(self):
        # As Nova's hard reboot would have it.
        plan = self.guest(self.qcow2())
        definition = plan.guest.get_xml_desc(dump_inactive=True)
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
            plan.guest.poweroff()
            overlaid = plan.guest.get_xml_desc(dump_inactive=True)
            domain = self.host.get_connection().defineXML(definition)
            self.assertIn('lock', str(self.assertRaises(
                libvirt.libvirtError, domain.create)))
            self.host.get_connection().defineXML(overlaid)
        self.assert_nothing_left(plan)
        self.assert_holds(plan.disk, AFTER)

    def test_two_histories_are_not_mixed(self):
        disk = self.qcow2()
        plan = self.guest(disk)
        definition = plan.guest.get_xml_desc(dump_inactive=True)
        taken = overlay.Overlay(self.host, plan)
        taken.prepare(plan.guest)
        taken.create(plan.guest)
        taken.take(plan.guest)
        self.write_as_guest(plan, BEFORE)
        plan.guest.poweroff()
        self.host.get_connection().defineXML(definition).create()
        self.write_as_guest(plan, AFTER)
        for started in (True, False):
            error = self.assertRaises(exception.ReleaseFailed, taken.merge)
            self.assertIn('two histories', str(error))
            self.assertTrue(self.overlay_of(plan).exists())
            if started:
                plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_an_overlay_that_is_there_is_never_overwritten(self):
        plan = self.guest(self.qcow2())
        self.overlay_of(plan).write_text('of an earlier snapshot')
        error = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn(str(self.overlay_of(plan)), error)
        self.assertEqual('of an earlier snapshot',
                         self.overlay_of(plan).read_text())
        self.overlay_of(plan).unlink()
        self.assert_nothing_left(plan)

    def test_a_guest_on_an_overlay_is_put_on_no_other(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            self.assertIn('disk.snapext', str(self.assertRaises(
                ValueError, overlay.Overlay(self.host, plan).prepare,
                plan.guest)))
        self.assert_nothing_left(plan)

    def test_the_guest_is_never_defined_on_the_disk_before_it_is_whole(self):
        # From there Nova, or an operator, might start it.
        plan = self.guest(self.qcow2())
        defined_on = []
        run = active_commit.ActiveCommit.run

        def look(commit, guest):
            defined_on.append(self.definitions(plan)[1])
            state = run(commit, guest)
            defined_on.append(self.definitions(plan)[1])
            return state

        with mock.patch.object(active_commit.ActiveCommit, 'run', look), \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual([True, False], [
            str(self.overlay_of(plan)) in xml for xml in defined_on])

    # What gets in the way of a commit.

    def speed_up(self, plan):
        self.domain(plan).blockJobSetSpeed('vda', 0)

    def restart_libvirtd(self):
        self.libvirtd.kill()
        self.libvirtd.start()

    def test_a_libvirtd_that_was_restarted_still_releases_it(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)
        with self.strategy.freeze(plan) as frozen:
            self.write_as_guest(plan, AFTER)
            self.restart_libvirtd()
            self.assertEqual({BEFORE}, self.content(frozen))
        self.assertEqual(before, self.definitions(plan))
        self.assertFalse(self.overlay_of(plan).exists())
        self.domain(plan).destroy()
        self.assert_holds(disk, AFTER)

    def test_a_libvirtd_that_is_restarted_in_the_commit_releases_it(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)

        def restart():
            self.restart_libvirtd()
            self.speed_up(plan)

        with self.at_the_commit_s_begin(restart) as begun, \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual(1, len(begun))
        self.assertEqual(before, self.definitions(plan))
        self.assertFalse(self.overlay_of(plan).exists())
        self.domain(plan).destroy()
        self.assert_holds(disk, AFTER)

    def test_a_guest_that_powers_off_in_the_commit_has_its_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        inactive = self.definitions(plan)[1]
        with self.at_the_commit_s_begin(plan.guest.poweroff) as begun, \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual(1, len(begun))
        self.assertEqual(inactive, self.definitions(plan)[1])
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)

    def test_a_guest_that_vanishes_in_the_commit_has_its_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.at_the_commit_s_begin(lambda: self.undefine(plan)), \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual([], list(self.freezes.iterdir()))
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(disk, AFTER)

    def release_fails(self, plan, act):
        """Freeze, and have the release fail by something done inside.

        :returns: the error's text
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.strategy.freeze(plan))
            self.write_as_guest(plan, AFTER)
            act()
            error = self.assertRaises(exception.ReleaseFailed, stack.close)
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING,
                         plan.guest._domain.state()[0])
        self.assertEqual([], list(self.freezes.iterdir()))
        return str(error)

    def assert_still_merges(self, plan):
        """Check that nothing was lost by a release that failed."""
        self.assertEqual([str(self.overlay_of(plan)), plan.disk.path],
                         self.live_chain(plan)[:2])
        self.recover(plan)
        self.assertEqual([plan.disk.path], self.live_chain(plan))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(plan.disk, AFTER)

    def test_a_commit_that_is_ended_half_way_fails_and_can_be_finished(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        abort = lambda: plan.guest._domain.blockJobAbort('vda')  # noqa: E731
        with self.at_the_commit_s_begin(abort):
            error = self.release_fails(plan, lambda: None)
        for part in (plan.instance.uuid, 'still on the overlay',
                     'virsh blockcommit', str(self.overlay_of(plan))):
            self.assertIn(part, error)
        self.assert_still_merges(plan)

    def test_another_s_job_on_the_disk_fails_the_release_and_goes_on(self):
        plan = self.guest(self.qcow2())
        copy = self.images / 'copy'

        def mirror():
            plan.guest._domain.blockCopy(
                'vda', f'<disk><source file="{copy}"/>'
                       f'<driver type="qcow2"/></disk>', {},
                libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)

        error = self.release_fails(plan, mirror)
        self.assertIn("has the job 'copy'", error)
        self.assertIn('virsh blockjob', error)
        plan.guest._domain.blockJobAbort('vda')
        self.assert_still_merges(plan)

    def test_a_commit_that_stands_still_is_told(self):
        plan = self.guest(self.qcow2())
        conf.CONF.set_override('job_timeout', 1, 'snapext')
        self.addCleanup(conf.CONF.clear_override, 'job_timeout', 'snapext')
        with self.at_the_commit_s_begin(lambda: None):
            error = self.release_fails(plan, lambda: None)
        self.assertIn('no progress with its commit for 1 seconds', error)
        self.speed_up(plan)
        self.assert_still_merges(plan)

    def test_a_commit_that_nobody_waits_for_any_more_is_taken_up(self):
        # As after a restart of nova-compute.
        disk = self.qcow2()
        plan = self.guest(disk)
        taken = overlay.Overlay(self.host, plan)
        taken.prepare(plan.guest)
        taken.create(plan.guest)
        with contextlib.ExitStack() as stack:
            entry = stack.enter_context(journal.opened(plan, 'external'))
            entry.add(taken)
        taken.take(plan.guest)
        self.write_as_guest(plan, AFTER)
        plan.guest._domain.blockCommit(
            'vda', disk.path, taken.path, 0,
            libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        with self.at_the_commit_s_begin(lambda: None) as begun:
            self.freezes.mkdir()
            self.assert_still_merges(plan)
        self.assertEqual([], begun)

    # Guests that can't be frozen.

    def test_a_guest_with_a_job_is_refused_and_its_job_goes_on(self):
        plan = self.guest(self.qcow2())
        os.chmod(self.images, 0o777)  # QEMU makes the socket
        plan.guest._domain.backupBegin(
            f'<domainbackup mode="pull"><server transport="unix" '
            f'socket="{self.images}/s"/><disks><disk name="vdb" type="file">'
            f'<scratch file="{self.images}/scratch"/></disk></disks>'
            f'</domainbackup>', None, 0)
        self.assertIn("'backup'", self.freeze_fails(
            plan, exception.GuestBusy))
        plan.guest.abort_job()

    def test_a_disk_with_a_job_is_refused_and_its_job_goes_on(self):
        plan = self.guest(self.qcow2())
        copy = self.images / 'copy'
        plan.guest._domain.blockCopy(
            'vda', f'<disk><source file="{copy}"/><driver type="qcow2"/>'
                   f'</disk>', {},
            libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        error = self.freeze_fails(plan, exception.DiskBusy)
        self.assertIn("'copy'", error)
        self.assertIn('virsh blockjob', error)
        self.assertTrue(plan.guest._domain.blockJobInfo('vda'))
        plan.guest._domain.blockJobAbort('vda')
        self.assert_nothing_left(plan)

    def test_a_guest_that_can_not_reach_an_overlay_is_left_as_it_was(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        os.chmod(self.images / plan.instance.uuid, 0o700)
        self.assertIn('ermission denied', self.freeze_fails(
            plan, exception.FreezeFailed))
        self.assertEqual(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_a_disk_that_can_not_be_served_is_merged_at_once(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        serve = mock.patch.object(
            qemu_nbd, 'serve', side_effect=processutils.ProcessExecutionError(
                stderr='no qemu-nbd'))
        with serve:
            self.assertIn('no qemu-nbd', self.freeze_fails(
                plan, exception.FreezeFailed))
        self.assertEqual(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_a_guest_that_has_vanished_before_is_told_apart(self):
        plan = self.guest(self.qcow2())
        self.undefine(plan)
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                libvirt.libvirtError, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertEqual(libvirt.VIR_ERR_NO_DOMAIN, error.get_error_code())
        self.assertEqual([], list(self.freezes.iterdir()))
        self.assertFalse(self.overlay_of(plan).exists())

    def test_a_guest_that_is_shut_off_is_refused(self):
        self.assertIn('shut off', self.strategy.reason_against(
            self.guest(self.qcow2(), running=False)))


class NovaUserTest(ExternalTestCase):
    """Nova's user is neither root nor QEMU's.

    The tests' threads take its place, and root's where privsep does.
    """

    UID = 64742

    def setUp(self):
        super().setUp()
        self.freezes.mkdir(exist_ok=True)
        self.privileged = []
        for module, name in ((qemu_nbd, '_serve_block_device'),
                             (qemu_img, '_privileged_commit'),
                             (nova.privsep.path, 'chown')):
            self.useFixture(fixtures.MockPatchObject(
                module, name, self.as_root(name, getattr(module, name))))

    def as_root(self, name, function):
        def call(*args, **kwargs):
            os.setresuid(0, 0, 0)
            self.privileged.append(name)
            try:
                function(*args, **kwargs)
            finally:
                os.setresuid(self.UID, self.UID, 0)
        return call

    def freeze_as_nova(self, disk, act, mode=0o644, owner=UID):
        self.fill(disk, BEFORE)
        os.chown(disk.path, owner, owner)
        os.chmod(disk.path, mode)
        plan = self.guest(disk)
        for directory in (self.freezes, self.images / plan.instance.uuid):
            os.chown(directory, self.UID, self.UID)
        self.give_journal_to(self.UID)
        with contextlib.ExitStack() as stack:
            stack.callback(os.setresuid, 0, 0, 0)
            os.setresuid(self.UID, self.UID, 0)
            frozen = stack.enter_context(self.strategy.freeze(plan))
            self.write_as_guest(plan, AFTER)
            self.assertEqual({BEFORE}, self.content(frozen))
            act(plan)
        self.assert_nothing_left(plan)
        if plan.guest.is_active():
            plan.guest.poweroff()
        self.assertEqual((owner, owner), (os.stat(disk.path).st_uid,
                                          os.stat(disk.path).st_gid))
        self.assert_holds(disk, AFTER)

    def test_files_need_no_privilege(self):
        for disk in (self.qcow2(), self.raw()):
            self.freeze_as_nova(disk, lambda plan: None)
        self.assertEqual([], self.privileged)

    def test_a_file_is_given_back_when_its_guest_powers_off(self):
        for disk in (self.qcow2(), self.raw()):
            self.freeze_as_nova(disk, lambda plan: plan.guest.poweroff())
        self.assertEqual(['chown', 'chown'], self.privileged)

    def test_a_file_is_given_back_when_its_guest_ends_in_the_commit(self):
        disk = self.qcow2()
        plan = None

        def keep(of_guest):
            nonlocal plan
            plan = of_guest

        with self.at_the_commit_s_begin(lambda: plan.guest.poweroff()):
            self.freeze_as_nova(disk, keep)

    def test_a_device_that_only_its_group_can_read_is_served(self):
        self.freeze_as_nova(self.block(), lambda plan: None, mode=0o660)
        self.assertEqual(['_serve_block_device'], self.privileged)

    def test_a_device_is_committed_to_and_given_back(self):
        self.freeze_as_nova(self.block(), lambda plan: plan.guest.poweroff(),
                            mode=0o660, owner=0)
        self.assertEqual(
            ['_serve_block_device', 'chown', '_privileged_commit'],
            self.privileged)
