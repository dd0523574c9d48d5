# SPDX-License-Identifier: Apache-2.0

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

import fixtures
import libvirt
from lxml import etree
from oslo_concurrency import processutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import privsep
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import overlay
from nova_snapext.strategies import external
from tests.functional import base
from tests.functional.strategies import contract

BEFORE, AFTER = contract.BEFORE, contract.AFTER


class ExternalTestCase(contract.FreezeAssertions, base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.strategy = external.ExternalStrategy(self.driver)

    def definitions(self, plan):
        # Exactly the same: the QEMU does not change.
        guest = self.host.get_guest(plan.instance)
        return guest.get_xml_desc(), guest.get_xml_desc(dump_inactive=True)

    @contextlib.contextmanager
    def when_the_commit_begins(self, act):
        """Slow down all commits, and call a function when one begins.

        :yields: a list with one element for each commit that has begun
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
        """Return the paths of the root disk's chain, the active one first."""
        return [source.get('file') or source.get('dev')
                for source in etree.fromstring(self.definitions(plan)[0])
                .findall('./devices/disk')[0].iter('source')]

    def domain(self, plan):
        """Return the guest's domain, on a connection that works."""
        return self.host.get_guest(plan.instance)._domain

    def test_disk_is_crash_consistent_without_an_agent(self):
        with self.strategy.freeze(self.guest(self.qcow2())) as frozen:
            self.assertEqual(planning.Consistency.CRASH,
                             frozen.consistency)

    def test_only_the_root_disk_is_switched_to_an_overlay(self):
        # libvirt includes every disk that the snapshot does not exclude.
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
            self.assertEqual(
                {'disk.snapext', 'disk.snapext.unmerged', 'disk.snapext.base',
                 'disk.info'},
                set(os.listdir(self.images / plan.instance.uuid)))
        self.assertEqual(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_only_the_root_disk_is_served(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan) as frozen:
            exports = base.run('nbdinfo', '--list', frozen.uri)
        self.assertIn('export="vda"', exports)
        self.assertNotIn('vdb', exports)

    def test_other_users_of_the_host_can_not_read_the_export(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan) as frozen:
            socket = frozen.uri.partition('socket=')[2]
            attempt = subprocess.run(
                ['setpriv', '--reuid=65534', '--regid=65534',
                 '--clear-groups', sys.executable, '-c', 'import socket, sys;'
                 'socket.socket(socket.AF_UNIX).connect(sys.argv[1])',
                 socket], capture_output=True, text=True)
            self.assertIn('PermissionError', attempt.stderr)

    def test_exported_disk_can_not_be_written(self):
        for disk in (self.qcow2(), self.raw()):
            plan = self.guest(disk)
            with self.strategy.freeze(plan):
                plan.guest.poweroff()
                self.assertIn('lock', self.assertRaises(
                    subprocess.CalledProcessError, self.fill, disk,
                    AFTER).stderr)
            self.assert_nothing_left(plan)

    # Guests that end, or are gone, when the disk is released.

    def powered_off_during_snapshot(self, disk):
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

    def test_guest_that_powers_off_keeps_its_writes_in_a_qcow2(self):
        self.powered_off_during_snapshot(self.qcow2())

    def test_guest_that_powers_off_keeps_its_writes_above_the_base(self):
        disk = self.chained_qcow2()
        image = self.live_base(disk)
        before = self.digest(image)
        self.powered_off_during_snapshot(disk)
        self.assertEqual(before, self.digest(image))

    def test_guest_that_powers_off_keeps_its_writes_in_a_raw_file(self):
        self.powered_off_during_snapshot(self.raw())

    def test_guest_that_powers_off_keeps_its_writes_on_a_block_device(self):
        self.powered_off_during_snapshot(self.block())

    def test_guest_restarted_during_the_snapshot_continues_on_its_disk(self):
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

    def test_guest_suspended_during_the_snapshot_resumes_on_its_disk(self):
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
        """Undefine a guest; the clean-up defines it again."""
        plan.guest.poweroff()
        definition = plan.guest.get_xml_desc()
        plan.guest._domain.undefine()
        self.addCleanup(self.host.get_connection().defineXML, definition)

    def test_guest_undefined_during_the_snapshot_keeps_its_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
            self.undefine(plan)
        self.assertEqual([], list(self.freezes.iterdir()))
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(disk, AFTER)

    def test_instance_deleted_during_the_snapshot_leaves_nothing(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            self.undefine(plan)
            shutil.rmtree(self.overlay_of(plan).parent)
            os.unlink(plan.disk.path)
        self.assertEqual([], list(self.freezes.iterdir()))

    # Faults that would destroy data silently.

    def live_base(self, disk):
        """The image below a qcow2."""
        return base.run('qemu-img', 'info', '-U', disk.path).partition(
            'backing file: ')[2].splitlines()[0]

    def digest(self, path):
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()

    def test_disk_without_an_overlay_is_not_committed_to_its_base(self):
        disk = self.chained_qcow2()
        image = self.live_base(disk)
        plan = self.guest(disk)
        self.write_as_guest(plan, AFTER)
        before = self.digest(image)
        commit = block_commit.ActiveCommit(
            plan, str(self.overlay_of(plan)))
        self.assertIs(block_commit.CommitState.NOT_THERE,
                      commit.run(plan.guest))
        self.assertRaises(libvirt.libvirtError, commit._begin, plan.guest)
        overlay.Overlay(self.host, plan).merge()
        self.assertEqual([disk.path, image], self.live_chain(plan))
        self.assertEqual(before, self.digest(image))

    def test_foreign_overlay_is_not_committed(self):
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

    def test_guest_can_not_start_from_the_frozen_disk_alone(self):
        # Nova's hard reboot would define it so.
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

    def test_overlay_and_disk_with_two_histories_are_not_merged(self):
        disk = self.qcow2()
        plan = self.guest(disk)
        definition = plan.guest.get_xml_desc(dump_inactive=True)
        created = overlay.Overlay(self.host, plan)
        created.prepare(plan.guest)
        created.create(plan.guest)
        created.switch_to_overlay(plan.guest)
        self.write_as_guest(plan, BEFORE)
        plan.guest.poweroff()
        self.host.get_connection().defineXML(definition).create()
        self.write_as_guest(plan, AFTER)
        for started in (True, False):
            error = self.assertRaises(exception.ReleaseFailed, created.merge)
            self.assertIn('Do not commit it' if started else 'make copies',
                          str(error))
            self.assertTrue(self.overlay_of(plan).exists())
            if started:
                plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_existing_overlay_is_never_overwritten(self):
        plan = self.guest(self.qcow2())
        self.overlay_of(plan).write_text('of an earlier snapshot')
        error = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn(str(self.overlay_of(plan)), error)
        self.assertEqual('of an earlier snapshot',
                         self.overlay_of(plan).read_text())
        self.overlay_of(plan).unlink()
        self.assert_nothing_left(plan)

    def test_guest_on_an_overlay_is_not_switched_to_another(self):
        plan = self.guest(self.qcow2())
        with self.strategy.freeze(plan):
            self.assertIn('disk.snapext', str(self.assertRaises(
                exception.UnexpectedState,
                overlay.Overlay(self.host, plan).prepare, plan.guest)))
        self.assert_nothing_left(plan)

    def test_guest_is_not_defined_on_its_disk_before_the_merge_ends(self):
        # Nova, or an operator, might start it from there.
        plan = self.guest(self.qcow2())
        defined_on = []
        run = block_commit.ActiveCommit.run

        def observe(commit, guest):
            defined_on.append(self.definitions(plan)[1])
            state = run(commit, guest)
            defined_on.append(self.definitions(plan)[1])
            return state

        with mock.patch.object(block_commit.ActiveCommit, 'run', observe), \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual([True, False], [
            str(self.overlay_of(plan)) in xml for xml in defined_on])

    # Faults during a commit.

    def speed_up(self, plan):
        self.domain(plan).blockJobSetSpeed('vda', 0)

    def restart_libvirtd(self):
        self.libvirtd.kill()
        self.libvirtd.start()

    def test_libvirtd_restart_during_the_snapshot_keeps_the_merge(self):
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

    def test_libvirtd_restart_during_the_commit_keeps_the_merge(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)

        def restart():
            self.restart_libvirtd()
            self.speed_up(plan)

        with self.when_the_commit_begins(restart) as begun, \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual(1, len(begun))
        self.assertEqual(before, self.definitions(plan))
        self.assertFalse(self.overlay_of(plan).exists())
        self.domain(plan).destroy()
        self.assert_holds(disk, AFTER)

    def test_guest_that_powers_off_during_the_commit_keeps_its_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        inactive = self.definitions(plan)[1]
        with self.when_the_commit_begins(plan.guest.poweroff) as begun, \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual(1, len(begun))
        self.assertEqual(inactive, self.definitions(plan)[1])
        self.assert_nothing_left(plan)
        self.assert_holds(disk, AFTER)

    def test_guest_restarted_during_the_commit_is_merged_in_its_new_qemu(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)

        with contextlib.ExitStack() as slowly:
            def restart():
                plan.guest.poweroff()
                plan.guest.launch()
                slowly.close()

            begun = slowly.enter_context(self.when_the_commit_begins(restart))
            with self.strategy.freeze(plan):
                self.write_as_guest(plan, AFTER)
        self.assertEqual(1, len(begun))
        self.assertEqual([disk.path], self.live_chain(plan))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_guest_undefined_during_the_commit_keeps_its_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.when_the_commit_begins(lambda: self.undefine(plan)), \
                self.strategy.freeze(plan):
            self.write_as_guest(plan, AFTER)
        self.assertEqual([], list(self.freezes.iterdir()))
        self.assertFalse(self.overlay_of(plan).exists())
        self.assert_holds(disk, AFTER)

    def release_fails(self, plan, act):
        """Freeze a disk, and check that the release fails.

        :param act: called while the disk is frozen
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
        """Check that a release that failed has lost nothing."""
        self.assertEqual([str(self.overlay_of(plan)), plan.disk.path],
                         self.live_chain(plan)[:2])
        self.recover(plan)
        self.assertEqual([plan.disk.path], self.live_chain(plan))
        self.assert_nothing_left(plan)
        plan.guest.poweroff()
        self.assert_holds(plan.disk, AFTER)

    def test_commit_aborted_half_way_fails_and_can_be_completed(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        abort = lambda: plan.guest._domain.blockJobAbort('vda')  # noqa: E731
        with self.when_the_commit_begins(abort):
            error = self.release_fails(plan, lambda: None)
        for part in (plan.instance.uuid, 'still on the overlay',
                     'merges the overlay by itself',
                     str(self.overlay_of(plan))):
            self.assertIn(part, error)
        self.assert_still_merges(plan)

    def test_foreign_job_on_the_disk_fails_the_release_and_continues(self):
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

    def test_stalled_commit_is_reported(self):
        plan = self.guest(self.qcow2())
        conf.CONF.set_override('operation_timeout', 1, 'snapext')
        self.addCleanup(
            conf.CONF.clear_override, 'operation_timeout', 'snapext')
        with self.when_the_commit_begins(lambda: None):
            error = self.release_fails(plan, lambda: None)
        self.assertIn('no progress with its commit for 1 seconds', error)
        self.speed_up(plan)
        self.assert_still_merges(plan)

    def test_commit_of_a_process_that_ended_is_continued(self):
        # As after a restart of nova-compute.
        disk = self.qcow2()
        plan = self.guest(disk)
        created = overlay.Overlay(self.host, plan)
        created.prepare(plan.guest)
        created.create(plan.guest)
        with contextlib.ExitStack() as stack:
            entry = stack.enter_context(journal.new_entry(plan, 'external'))
            entry.add(created)
        created.switch_to_overlay(plan.guest)
        self.write_as_guest(plan, AFTER)
        plan.guest._domain.blockCommit(
            'vda', disk.path, created.path, 0,
            libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        with self.when_the_commit_begins(lambda: None) as begun:
            self.freezes.mkdir()
            self.assert_still_merges(plan)
        self.assertEqual([], begun)

    # Guests that can't be frozen.

    def test_guest_with_a_job_is_refused_and_its_job_continues(self):
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

    def test_disk_with_a_job_is_refused_and_its_job_continues(self):
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

    def test_guest_that_can_not_open_the_overlay_is_unchanged(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        os.chmod(self.images / plan.instance.uuid, 0o700)
        self.assertIn('ermission denied', self.freeze_fails(
            plan, exception.FreezeFailed))
        self.assertEqual(before, self.definitions(plan))
        self.assert_nothing_left(plan)

    def test_disk_that_can_not_be_exported_is_merged_at_once(self):
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

    def test_undefined_guest_raises_the_error_of_libvirt(self):
        plan = self.guest(self.qcow2())
        self.undefine(plan)
        with contextlib.ExitStack() as stack:
            error = self.assertRaises(
                libvirt.libvirtError, stack.enter_context,
                self.strategy.freeze(plan))
        self.assertEqual(libvirt.VIR_ERR_NO_DOMAIN, error.get_error_code())
        self.assertEqual([], list(self.freezes.iterdir()))
        self.assertFalse(self.overlay_of(plan).exists())

    def test_shut_off_guest_is_refused(self):
        self.assertIn('shut off', self.strategy.unsupported_reason(
            self.guest(self.qcow2(), running=False)))


class NovaUserTest(ExternalTestCase):
    """Nova's user is neither root nor QEMU's.

    The threads of the tests run as Nova's user, and as root where privsep
    would.
    """

    UID = 64742

    def setUp(self):
        super().setUp()
        self.freezes.mkdir(exist_ok=True)
        self.privileged = []
        for name in ('read_qcow2', 'chown', 'read_owner_label',
                     'write_owner_label'):
            self.useFixture(fixtures.MockPatchObject(
                privsep, name, self.as_root(name, getattr(privsep, name))))

    def as_root(self, name, function):
        def call(*args, **kwargs):
            os.setresuid(0, 0, 0)
            self.privileged.append(name)
            try:
                return function(*args, **kwargs)
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

    def test_file_is_served_and_merged_without_privilege(self):
        for disk in (self.qcow2(), self.raw()):
            self.freeze_as_nova(disk, lambda plan: None)
        self.assertEqual([], self.privileged)

    def test_file_gets_its_owner_back_when_its_guest_powers_off(self):
        for disk in (self.qcow2(), self.raw()):
            self.freeze_as_nova(disk, lambda plan: plan.guest.poweroff())
        self.assertEqual(['chown', 'chown'], self.privileged)

    def test_file_gets_its_owner_back_when_its_guest_ends_in_the_commit(self):
        disk = self.qcow2()
        plan = None

        def keep(of_guest):
            nonlocal plan
            plan = of_guest

        with self.when_the_commit_begins(lambda: plan.guest.poweroff()):
            self.freeze_as_nova(disk, keep)

    def test_device_that_only_its_group_can_read_is_served(self):
        self.freeze_as_nova(self.block(), lambda plan: None, mode=0o660)
        self.assertEqual({'chown', 'read_owner_label'},
                         set(self.privileged) - {'write_owner_label'})

    def test_device_is_committed_and_gets_its_owner_back(self):
        self.freeze_as_nova(self.block(), lambda plan: plan.guest.poweroff(),
                            mode=0o660, owner=0)
        self.assertEqual({'chown', 'read_owner_label'}, set(self.privileged))

    def test_device_gets_its_owner_back_whatever_libvirt_has_noted(self):
        other = f'+{self.UID}:+{self.UID}'.encode()
        for change in (
                # As libvirt 12.8: nothing is left for the pivot.
                lambda path: [os.removexattr(path, privsep.LABEL + part)
                              for part in privsep.LABEL_PARTS],
                # As if the overlay had been the disk.
                lambda path: os.setxattr(path, f'{privsep.LABEL}dac', other)):
            with self.when_switched(change):
                for act in (lambda plan: None,
                            lambda plan: plan.guest.poweroff()):
                    self.freeze_as_nova(self.block(), act, mode=0o660,
                                        owner=self.UID + 1)

    @contextlib.contextmanager
    def when_switched(self, change):
        """Call a function, as root, with the path of each new overlay."""
        switch = overlay.Overlay.switch_to_overlay

        def switch_and_change(subject, guest):
            switch(subject, guest)
            self.as_root('change', change)(subject.path)

        with mock.patch.object(overlay.Overlay, 'switch_to_overlay',
                               switch_and_change):
            yield
