# SPDX-License-Identifier: Apache-2.0
"""A driver whose snapshots reach neither libvirt, nor Glance, nor a disk."""

import contextlib
import datetime
from unittest import mock

import fixtures
import libvirt
from nova import objects
from nova.virt import fake
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as libvirt_guest

from nova_snapext import checks
from nova_snapext import driver
from nova_snapext.snapshot import direct
from nova_snapext.snapshot import job
from nova_snapext import strategies
from nova_snapext import upload
from tests.unit import base

DOMAIN = """
<domain type='qemu'><os><type>hvm</type></os><devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='{}'/><source file='/i/disk'/>
    <target dev='vda' bus='virtio'/>
  </disk>
</devices><seclabel model='dac'><label>+0:+0</label></seclabel></domain>
"""

#: A guest whose ephemeral disk comes before its root disk.
EPHEMERAL_FIRST = DOMAIN.format('qcow2').replace('<devices>', """<devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='qcow2'/><source file='/i/disk.eph0'/>
    <target dev='vda' bus='virtio'/>
  </disk>""").replace("""<source file='/i/disk'/>
    <target dev='vda'""", """<source file='/i/disk'/>
    <target dev='vdb'""")

RBD_DOMAIN = DOMAIN.format('raw').replace(
    "type='file'", "type='network'").replace(
    "<source file='/i/disk'/>",
    "<source protocol='rbd' name='vms/i_disk'/>")


class SnapshotTestCase(base.TestCase):
    """Takes snapshots of a running guest.

    :ivar steps: the task states, and 'freeze', 'stream' and 'release'
    :ivar set_metadata: of the image
    :ivar refused: names of properties that Glance refuses
    :ivar native: Nova's own snapshot()
    :ivar stream: reads, encodes and uploads
    :ivar discard: deletes an image
    :ivar checks: those that ran periodically
    :ivar token: of the last snapshot
    """

    def setUp(self):
        super().setUp()
        self.flags(virt_type='qemu', group='libvirt')
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI(), read_only=True)
        self.domain = mock.MagicMock()
        self.domain.XMLDesc.return_value = DOMAIN.format('qcow2')
        self.domain.isActive.return_value = 1
        self.domain.state.return_value = [
            libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]
        self.domain.info.return_value = [libvirt.VIR_DOMAIN_RUNNING] * 5
        self.domain.jobStats.return_value = {
            'type': libvirt.VIR_DOMAIN_JOB_NONE}
        self.domain.blockJobInfo.return_value = {}
        self.domain.hasManagedSaveImage.return_value = 0
        self.steps = []
        self.update_task_state = mock.Mock(
            side_effect=lambda task_state, **_expected:
                self.steps.append(task_state))
        self.image = {'id': base.IMAGE_ID, 'name': 'snap', 'properties': {}}
        self.native = mock.create_autospec(nova_driver.LibvirtDriver.snapshot)
        self.patch(nova_driver.LibvirtDriver, 'snapshot', self.native)
        self.patch(self.driver._host, 'get_guest',
                   lambda _instance: libvirt_guest.Guest(self.domain))
        self.patch(self.driver, '_image_api').get.return_value = self.image
        glance_image = self.patch(upload, 'GlanceImage').return_value
        glance_image.__exit__.return_value = None
        self.glance_image = glance_image.__enter__.return_value
        self.set_metadata = self.glance_image.set_metadata
        self.set_metadata.side_effect = self.describe
        self.refused = frozenset()
        self.discard = self.patch(upload, 'discard')
        self.discard.return_value = None
        self.stream = self.patch(job, 'stream')
        self.stream.side_effect = lambda *_: self.step(
            'stream', direct.Stored(1, 2))
        for name in ('backup', 'cold'):
            self.patch(self.driver.strategies[name], 'freeze', self.freeze)
        self.event = self.patch(objects, 'InstanceActionEvent')
        self.checks = []
        self.patch(checks, 'run_periodically', self.run_periodically)

    def patch(self, target, name, *value):
        return self.useFixture(
            fixtures.MockPatchObject(target, name, *value)).mock

    def describe(self, attributes, informing):
        self.assertNotIn('freeze', self.steps)
        return self.refused & informing.keys()

    def step(self, name, result=None):
        self.steps.append(name)
        return result

    @contextlib.contextmanager
    def run_periodically(self, intervals, token, _instance):
        self.token = token
        self.checks.extend(intervals)
        yield lambda: None

    @contextlib.contextmanager
    def freeze(self, plan, entry):
        self.steps.append('freeze')
        try:
            yield strategies.FrozenDisk(
                'nbd:', strategies.Consistency.CRASH, 0.03,
                datetime.datetime(2026, 11, 1, 12, 0, 0, 250000))
        finally:
            self.steps.append('release')

    def snapshot(self, vm_state=None, **extra_specs):
        instance = self.instance()
        instance.save = mock.Mock()
        instance.vm_state = vm_state
        instance.flavor.extra_specs = extra_specs
        self.snapshot_of(instance)
        return instance

    def snapshot_of(self, instance):
        self.driver.snapshot(None, instance, base.IMAGE_ID,
                             self.update_task_state)
