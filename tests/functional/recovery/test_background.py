# SPDX-License-Identifier: Apache-2.0
"""Recovery beside the service, of real guests."""

import os
import threading
from unittest import mock

import fixtures
import libvirt
from nova import objects
from nova.tests.unit import fake_instance
from nova.virt.libvirt import driver as nova_driver

from nova_snapext import driver
from nova_snapext import exception
from nova_snapext.recovery import gate
from nova_snapext.recovery import recover
from nova_snapext.resources import overlay
from nova_snapext.strategies import external
from tests.functional import base
from tests.functional.recovery import test_recover

BEFORE, AFTER = test_recover.BEFORE, test_recover.AFTER

# Seconds, to fail instead of waiting indefinitely.
LIMIT = 60


class BackgroundTestCase(test_recover.RecoveryTestCase):

    def setUp(self):
        super().setUp()
        self.patch(driver, 'START_TIMEOUT', 0)
        self.patch(gate, 'BUSY_TIMEOUT', 0)
        self.get = mock.Mock()
        self.patch(objects.Instance, 'get_by_uuid', self.get)
        # The watchdog would end the private libvirtd's connections.
        self.patch(self.driver, '_start_watchdog', mock.Mock())
        self.recovered = threading.Event()
        recover_instance = recover.recover_instance

        def recover_and_tell(*args):
            try:
                return recover_instance(*args)
            finally:
                self.recovered.set()

        self.patch(recover, 'recover_instance', recover_and_tell)
        self.addCleanup(self.stop)

    def patch(self, target, name, value):
        self.useFixture(fixtures.MockPatchObject(target, name, value))

    def start(self):
        self.driver.init_host('host')

    def stop(self):
        self.driver.gate.stop_retries()
        self.assertEqual([], self.driver.gate.wait(LIMIT))
        self.driver._may_recover = False
        self.driver._journal.close()

    def left(self):
        """Leave a running guest on its overlay."""
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        self.before = self.definitions(plan)
        self.leave(external.ExternalStrategy, plan)
        self.write_as_guest(plan, AFTER)
        self.get.return_value = plan.instance
        return plan

    def assert_merged(self, plan):
        plan = self.plan_of(plan.instance, plan.disk)
        self.assertEqual(plan.disk.path, self.live_chain(plan)[0])
        os.unlink(os.path.join(self.journal, 'lock'))
        self.assert_nothing_left(plan)
        if plan.guest.is_active():
            plan.guest.poweroff()
        self.assert_holds(plan.disk, AFTER)


class SlowMergeTest(BackgroundTestCase):
    """A merge that does not end while the service starts."""

    def setUp(self):
        super().setUp()
        self.merging, self.may_end = threading.Event(), threading.Event()
        self.addCleanup(self.may_end.set)
        merge = overlay.Overlay.merge

        def slow_merge(*args):
            self.merging.set()
            self.may_end.wait(LIMIT)
            merge(*args)

        self.patch(overlay.Overlay, 'merge', slow_merge)

    def use(self, plan):
        with self.driver.gate.exclusive(plan.instance.uuid):
            pass

    def finish(self):
        self.may_end.set()
        self.assertEqual([], self.driver.gate.wait(LIMIT))

    def test_service_starts_and_the_instance_is_refused_until_the_end(self):
        plan = self.left()
        self.start()
        self.assertTrue(self.merging.wait(LIMIT))
        for use in (lambda: self.use(plan),
                    lambda: self.driver.reboot(
                        None, plan.instance, None, 'HARD')):
            self.assertRaises(exception.RecoveryInProgress, use)
        self.assertEqual(str(self.overlay_of(plan)), self.live_chain(plan)[0])
        self.finish()
        self.use(plan)
        self.assert_merged(plan)

    def test_guest_is_resumed_after_a_boot_when_its_disk_is_merged(self):
        plan = self.left()
        plan.guest.poweroff()
        test_recover.end_qemu_nbds(plan.disk.path)
        instance = fake_instance.fake_instance_obj(
            None, uuid=plan.instance.uuid, host=None, vm_state='active',
            task_state='image_uploading')
        self.get.side_effect = [plan.instance, instance]
        resumed = threading.Event()

        def hard_reboot(*_args, **_kwargs):
            self.assertFalse(self.overlay_of(plan).exists())
            self.host.get_guest(plan.instance).launch()
            resumed.set()

        self.patch(self.driver, '_hard_reboot', hard_reboot)
        self.patch(nova_driver.LibvirtDriver, 'process_instances_at_startup',
                   lambda _self, _context, instances: instances)
        compute = mock.Mock()
        compute._init_instance = (
            lambda context, instance: self.driver.resume_state_on_host_boot(
                context, instance, None, None))
        self.patch(self.driver, 'virtapi', mock.Mock(_compute=compute))

        self.start()
        now = self.driver.process_instances_at_startup(
            None, objects.InstanceList(objects=[instance]))
        self.assertEqual([], list(now))
        self.assertTrue(self.merging.wait(LIMIT))
        self.assertFalse(resumed.is_set())
        self.finish()
        self.assertTrue(resumed.wait(LIMIT))
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.host.get_guest(
            plan.instance)._domain.state()[0])
        self.assert_merged(plan)


class ResumedTest(BackgroundTestCase):

    def paused(self):
        """Leave a guest on its overlay that could not be recovered."""
        plan = self.left()
        plan.guest.pause()
        with mock.patch.object(overlay.Overlay, 'merge',
                               side_effect=ZeroDivisionError):
            self.start()
            self.assertTrue(self.recovered.wait(LIMIT))
            self.assertEqual([], self.driver.gate.wait(LIMIT))
        self.recovered.clear()
        self.assertTrue(self.overlay_of(plan).exists())
        return plan

    def test_guest_that_nova_unpauses_is_recovered(self):
        plan = self.paused()
        self.driver.unpause(plan.instance)
        self.assertTrue(self.recovered.wait(LIMIT))
        self.assertEqual([], self.driver.gate.wait(LIMIT))
        self.assert_merged(plan)

    def test_guest_that_virsh_resumes_is_recovered(self):
        plan = self.paused()
        base.run('virsh', '-c', self.libvirtd.uri, 'resume',
                 plan.instance.name)
        self.assertTrue(self.recovered.wait(LIMIT))
        self.assertEqual([], self.driver.gate.wait(LIMIT))
        self.assert_merged(plan)
