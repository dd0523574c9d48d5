# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import shutil
import threading
from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
import tenacity

from nova_snapext import exception
from nova_snapext.freeze import active_commit
from nova_snapext.freeze import chain
from nova_snapext.freeze import overlay
from nova_snapext.freeze import qemu_img
from nova_snapext import monitor
from nova_snapext import plan as planning
from tests.unit import base

AWAY = nova_exception.HypervisorUnavailable()
GONE = nova_exception.InstanceNotFound(instance_id='gone')


def libvirt_error(code, domain):
    error = libvirt.libvirtError('libvirt says no')
    error.err = (code, domain, '', 0, None, None, None, 0, 0)
    return error


CONNECTION_LOST = libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR,
                                libvirt.VIR_FROM_RPC)
NOT_RUNNING = libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID,
                            libvirt.VIR_FROM_QEMU)


class MergeTest(base.TestCase):
    """What real guests can't be made to do at will."""

    def setUp(self):
        super().setUp()
        directory = pathlib.Path(self.useFixture(
            fixtures.TempDir()).path)
        self.flags(instances_path=str(directory))
        self.disk = directory / 'disk'
        self.disk.touch()
        plan = self.plan(disk=planning.RootDisk(
            target='vda', storage='file', path=str(self.disk), format='raw'))
        self.guest = plan.guest
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.get_guest.side_effect = GONE
        self.overlay = overlay.Overlay(self.host, plan)
        os.mkdir(os.path.dirname(self.overlay.path))
        self.commit = self.patch(qemu_img, 'commit')
        self.sleep = self.patch(tenacity.nap.time, 'sleep')

    def patch(self, target, name):
        return self.useFixture(fixtures.MockPatchObject(
            target, name)).mock

    def make(self):
        pathlib.Path(self.overlay.path).touch()

    def fails(self):
        return str(self.assertRaises(exception.ReleaseFailed,
                                     self.overlay.merge))

    def test_an_undefined_guest_s_overlay_is_committed_then_removed(self):
        self.make()
        self.overlay.merge()
        self.commit.assert_called_once()
        self.assertFalse(os.path.exists(self.overlay.path))

    def test_what_nova_deletes_meanwhile_is_no_error(self):
        self.make()

        def delete(*_args):
            os.unlink(self.overlay.path)
            raise processutils.ProcessExecutionError()

        self.commit.side_effect = delete
        self.overlay.merge()

    def delete_while_committing(self, **found):
        """Have Nova delete the files of a guest that is defined still."""
        self.patch(monitor, 'InstanceLook').return_value.configure_mock(
            **found)
        self.host.get_guest.side_effect = None
        self.host.get_guest.return_value = self.guest
        self.guest.is_active.return_value = False
        self.guest._domain.hasManagedSaveImage.return_value = False
        self.patch(chain, 'path_of').return_value = self.overlay.path
        self.patch(chain, 'find_disk')
        self.patch(chain, 'paths_of').return_value = [self.overlay.path]
        self.make()

        def commit(path, _disk):
            shutil.rmtree(os.path.dirname(path))
            raise processutils.ProcessExecutionError('could not open')

        self.commit.side_effect = commit

    def test_what_nova_deletes_with_its_instance_is_no_error(self):
        self.delete_while_committing(return_value=GONE)
        self.overlay.merge()

    def test_what_goes_while_its_instance_does_not_is_an_error(self):
        self.delete_while_committing(return_value=None)
        self.assertIn('could not open', self.fails())

    def test_what_goes_while_nobody_can_tell_why_is_an_error(self):
        self.delete_while_committing(side_effect=AWAY)
        self.assertIn('could not open', self.fails())

    def test_an_overlay_that_can_not_be_committed_is_kept(self):
        self.make()
        self.commit.side_effect = processutils.ProcessExecutionError(
            stderr='no space')
        error = self.fails()
        for part in ('no space', self.overlay.path, str(self.disk)):
            self.assertIn(part, error)
        self.assertTrue(os.path.exists(self.overlay.path))

    def test_an_overlay_whose_disk_is_gone_is_kept(self):
        self.make()
        self.disk.unlink()
        self.fails()
        self.assertTrue(os.path.exists(self.overlay.path))

    def test_a_libvirtd_that_is_away_is_waited_for(self):
        self.host.get_connection.side_effect = [AWAY, AWAY, mock.DEFAULT]
        self.overlay.merge()
        self.assertEqual(2, self.sleep.call_count)

    def test_a_libvirtd_that_stays_away_is_told(self):
        self.make()
        self.host.get_connection.side_effect = AWAY
        self.host.get_guest.side_effect = AWAY
        self.flags(job_timeout=1, group='snapext')
        self.sleep.side_effect = lambda _seconds: (
            threading.Event().wait(0.3))
        error = self.fails()
        self.assertIn('can\'t be told', error)
        self.assertIn(f'Do not start it from {self.disk}', error)
        self.assertTrue(os.path.exists(self.overlay.path))

    def running(self, *outcomes):
        """Have the guest run, and its commit end in these, one by one."""
        self.host.get_guest.side_effect = None
        self.host.get_guest.return_value = self.guest
        self.guest.is_active.return_value = True
        run = self.patch(active_commit.ActiveCommit, 'run')
        run.side_effect = outcomes
        return run

    def test_a_connection_that_is_lost_meanwhile_is_made_again(self):
        run = self.running(CONNECTION_LOST, active_commit.State.NOT_THERE)
        self.overlay.merge()
        self.assertEqual(2, run.call_count)
        self.assertEqual(2, self.host.get_connection.call_count)

    def test_an_error_of_a_guest_that_has_ended_is_no_error(self):
        def end(_guest):
            self.host.get_guest.side_effect = GONE
            raise NOT_RUNNING

        self.make()
        self.running().side_effect = end
        self.overlay.merge()
        self.commit.assert_called_once()

    def test_an_error_of_a_guest_that_runs_on_is_told(self):
        self.running(NOT_RUNNING)
        self.assertIn('libvirt says no', self.fails())
