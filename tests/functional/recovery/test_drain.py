# SPDX-License-Identifier: Apache-2.0
"""The command ``nova-snapext drain`` on real guests."""

import contextlib
import io
import os
import pathlib
from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from nova import objects

from nova_snapext.cmd import drain
from nova_snapext import conf
from nova_snapext import journal
from nova_snapext.recovery import leftovers
from nova_snapext.resources import internal_snapshot
from nova_snapext.strategies import backup
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.functional import base
from tests.functional.recovery import test_recover

BEFORE, AFTER = test_recover.BEFORE, test_recover.AFTER


class DrainTestCase(test_recover.RecoveryTestCase):

    def setUp(self):
        super().setUp()
        self.get = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'get_by_uuid')).mock

    def drain(self, command=drain._drain):
        """Return whether nothing is left, and all that was printed."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(printed):
            return command(self.driver), printed.getvalue()

    def found(self):
        """Return the texts of all that is left."""
        return '\n'.join(map(str, leftovers.find(self.driver)))

    def guest_of_nova(self):
        """Start a guest whose disk is where Nova has it."""
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk, running=False)
        path = self.images / plan.instance.uuid / 'disk'
        os.rename(disk.path, path)
        self.host.get_connection().defineXML(plan.guest.get_xml_desc(
            dump_inactive=True).replace(disk.path, str(path)))
        plan.guest.launch()
        self.get.return_value = plan.instance
        return self.plan_of(plan.instance, base.planning.RootDisk(
            'vda', 'file', str(path), 'qcow2'))

    def left_unrecorded(self):
        """Leave a guest on an overlay that no journal knows."""
        plan = self.guest_of_nova()
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        self.forget_journal(plan)
        test_recover.end_qemu_nbds(plan.disk.path)
        [directory] = self.freezes.glob('*/*')
        leftovers.work_directory.remove_tree(str(directory))
        return plan


class DrainTest(DrainTestCase):

    def assert_drained(self, plan):
        is_clean, printed = self.drain()
        self.assertTrue(is_clean, printed)
        self.assertIn('This host has nothing of nova-snapext left', printed)
        self.assertEqual(plan.disk.path, self.live_chain(plan)[0])
        self.assertFalse(self.overlay_of(plan).exists())
        plan.guest.poweroff()
        self.assert_holds(plan.disk, AFTER)

    def test_host_without_anything_left_is_drained(self):
        plan = self.guest_of_nova()
        self.write_as_guest(plan, AFTER)
        self.assert_drained(plan)

    def test_overlay_in_the_journal_is_merged(self):
        plan = self.guest_of_nova()
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        self.assert_drained(plan)

    def test_overlay_that_no_journal_knows_is_merged(self):
        self.assert_drained(self.left_unrecorded())

    def test_dry_run_names_the_overlay_and_changes_nothing(self):
        plan = self.left_unrecorded()
        is_clean, printed = self.drain(drain._dry_run)
        self.assertFalse(is_clean)
        for text in (str(self.overlay_of(plan).parent),
                     f'defined on the overlay {self.overlay_of(plan)}'):
            self.assertIn(text, printed)
        self.assertEqual(str(self.overlay_of(plan)), self.live_chain(plan)[0])
        self.assert_drained(plan)
        is_clean, printed = self.drain(drain._dry_run)
        self.assertTrue(is_clean)
        self.assertIn('Nothing of nova-snapext is left', printed)

    def test_overlay_that_can_not_be_merged_is_named_with_a_remedy(self):
        plan = self.left_unrecorded()
        plan.guest.poweroff()
        os.rename(plan.disk.path, f'{plan.disk.path}.away')
        is_clean, printed = self.drain()
        self.assertFalse(is_clean)
        for text in (str(self.overlay_of(plan)), 'Do not start',
                     'run this command again'):
            self.assertIn(text, printed)
        os.rename(f'{plan.disk.path}.away', plan.disk.path)
        plan.guest.launch()
        self.assert_drained(plan)

    def test_instance_that_nova_does_not_know_is_not_touched(self):
        plan = self.left_unrecorded()
        self.get.side_effect = nova_exception.InstanceNotFound(instance_id='i')
        is_clean, printed = self.drain()
        self.assertFalse(is_clean)
        self.assertIn('nothing of it is touched', printed)
        self.assertEqual(str(self.overlay_of(plan)), self.live_chain(plan)[0])

    def test_instance_of_another_host_is_left_to_that_host(self):
        plan = self.left_unrecorded()
        plan.instance.host = 'elsewhere'
        is_clean, printed = self.drain()
        self.assertTrue(is_clean, printed)
        self.assertIn('is on host elsewhere', printed)
        self.assertTrue(self.overlay_of(plan).exists())
        plan.instance.host = None
        self.assert_drained(plan)


class LeftoversTest(DrainTestCase):
    """What is found without a journal."""

    def test_fence_without_its_overlay_is_found_and_removed(self):
        plan = self.left_unrecorded()
        plan.guest.poweroff()
        test_recover.recover.ensure_recovered(
            self.driver, None, plan.instance)
        self.assertEqual('', self.found())
        leftovers.fence.Fence(str(self.overlay_of(plan))).create()
        self.assertIn('disk.info', self.found())
        self.assertTrue(self.drain()[0])

    def test_backup_job_and_its_work_directory_are_found(self):
        plan = self.guest_of_nova()
        self.leave(backup.BackupStrategy, plan)
        self.assertIn('The journal records', self.found())
        path = pathlib.Path(journal.find(plan.instance.uuid).path)
        content = path.read_text()
        path.unlink()
        found = self.found()
        self.assertIn(f'virsh domjobabort {plan.instance.name}', found)
        [directory] = self.freezes.glob('*/*')
        self.assertIn(f'{directory} is the work directory', found)
        path.write_text(content)
        self.assertTrue(self.drain()[0])

    def test_backup_job_of_somebody_else_is_not_ours(self):
        plan = self.guest_of_nova()
        directory = self.images / 'other'
        directory.mkdir()
        os.chmod(directory, 0o777)
        plan.guest._domain.backupBegin(
            f'<domainbackup mode="pull"><server transport="unix" '
            f'socket="{directory}/nbd"/><disks><disk name="vda" '
            f'type="file" backup="yes"><driver type="qcow2"/><scratch '
            f'file="{directory}/scratch"/></disk></disks></domainbackup>',
            None, 0)
        self.addCleanup(plan.guest.abort_job)
        self.assertEqual('', self.found())

    def test_internal_snapshot_of_a_guest_is_found(self):
        plan = self.guest(self.qcow2(), running=False)
        with mock.patch.object(internal.InternalStrategy, 'auto_skip_reason',
                               create=True):
            self.leave(internal.InternalStrategy, plan)
        self.forget_journal(plan)
        found = self.found()
        self.assertIn(f'qemu-img snapshot -d snapext-{plan.image_id} '
                      f'{plan.disk.path}', found)
        self.assertIn('qemu-nbd, process', found)
        test_recover.end_qemu_nbds(plan.disk.path)

    def test_metadata_of_an_internal_snapshot_is_found(self):
        plan = self.guest(self.qcow2(), running=False)
        self.assertEqual('', self.found())
        name = f'snapext-{plan.image_id}'
        plan.guest.create_snapshot(
            internal_snapshot.LibvirtConfigKnownSnapshot(
                name, plan.guest.get_xml_desc()).to_xml(),
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        self.addCleanup(plan.guest.forget_snapshot, name)
        self.assertIn(f'"virsh snapshot-delete {plan.guest.name} {name} '
                      f'--metadata"', self.found())
        plan.guest.forget_snapshot(name)
        self.assertEqual('', self.found())

    def test_journal_that_was_set_aside_is_found(self):
        path = pathlib.Path(conf.CONF.snapext.journal_directory, 'x.json')
        path.write_text('')
        self.assertIn(f"{path} of the journal can't be used", self.found())
        journal.set_aside_unreadable()
        self.assertIn(f'{path}.unreadable', self.found())
