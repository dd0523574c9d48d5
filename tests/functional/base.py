# SPDX-License-Identifier: Apache-2.0
"""Guests of a private libvirtd, as Nova's libvirt driver sees them."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import uuid

from devcloud import libvirtd as devcloud_libvirtd
import fixtures
import libvirt
import libvirt_qemu
from nova import objects
from nova.tests import fixtures as nova_fixtures
from nova import thread_pool_factory
from nova.virt import fake
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils
from oslo_utils import units
from oslotest import base

from nova_snapext import conf
from nova_snapext import driver
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import privsep
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.recovery import recover

# Without it, as in CI, those tests are left out that take a minute each, and
# whose neighbours are run.
DISK_SIZE = 8 * units.Mi

IMAGE_ID = '5f3c8a4e-19a2-4c40-9d0b-6f8e1c1d2b7a'

DOMAIN = """
<domain type='{virt_type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='{storage}' device='disk'>
      <driver name='qemu' type='{format}' discard='{discard}'/>
      <source {attribute}='{path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{other}'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


def run(*command):
    return subprocess.run(command, check=True, capture_output=True,
                          text=True).stdout


def end_threads(host):
    """End what Nova's Host leaves running, which would outlive the tests."""
    def end():
        raise SystemExit  # an Exception would be logged, and no more

    host.cleanup()
    host._conn_event_handler_queue.put(end)
    thread_pool_factory.reset_all_executors()


class FakeInstance:
    """As much of an instance as freezing looks at."""

    def __init__(self, name):
        self.uuid = str(uuid.uuid4())
        self.host = None
        self.name = name
        self.image_meta = objects.ImageMeta.from_dict({'properties': {}})
        self.numa_topology = None
        self.root_device_name = '/dev/vda'
        self.vm_state = None


class GuestTestCase(base.BaseTestCase):
    """Tests with guests.

    :cvar DISCARD: what the guests' root disks do with discards
    """

    # Not Nova's base class: it forbids libvirt's event thread.

    DISCARD = 'ignore'

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.directory = pathlib.Path(tempfile.mkdtemp(prefix='snapext-'))
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.libvirtd = devcloud_libvirtd.Libvirtd(cls.directory)
        cls.libvirtd.start()
        cls.addClassCleanup(cls.libvirtd.stop)
        objects.register_all()
        with config_fixture.Config(conf.CONF) as config:
            config.config(connection_uri=cls.libvirtd.uri, group='libvirt')
            cls.driver = driver.SnapextDriver(fake.FakeVirtAPI())
        cls.host = cls.driver._host
        cls.host.initialize()
        cls.addClassCleanup(end_threads, cls.host)

    def setUp(self):
        super().setUp()
        self.useFixture(nova_fixtures.PrivsepFixture())
        for context in (privsep.context, privsep.label_context):
            self.useFixture(fixtures.MockPatchObject(
                context, 'client_mode', False))
        self.freezes = self.directory / self.id().rpartition('.')[2][:20]
        config = self.useFixture(config_fixture.Config(conf.CONF))
        config.config(work_directory=str(self.freezes), group='snapext')
        self.journal = self.useFixture(fixtures.TempDir(
            rootdir=str(self.directory))).path
        config.config(journal_directory=self.journal, group='snapext')
        config.config(
            libvirt_config_directory=str(self.directory / 'etc' / 'qemu'),
            libvirt_save_directory=str(
                self.directory / 'lib' / 'qemu' / 'save'),
            group='snapext')
        config.config(
            connection_uri=self.libvirtd.uri,
            virt_type='kvm' if self.libvirtd.has_kvm else 'qemu',
            group='libvirt')
        self.images = pathlib.Path(self.useFixture(
            fixtures.TempDir(rootdir=str(self.directory))).path)
        os.chmod(self.images, 0o755)
        config.config(instances_path=str(self.images))

    def qcow2(self, backing=None):
        path = self.images / f'disk-{uuid.uuid4()}.qcow2'
        options = ('-b', str(backing), '-F', 'qcow2') if backing else ()
        run('qemu-img', 'create', '-q', '-f', 'qcow2', *options, str(path),
            str(DISK_SIZE))
        return planning.RootDisk('vda', 'file', str(path), 'qcow2')

    def chained_qcow2(self):
        base = self.qcow2()
        self.fill(base, 0x11)
        return self.qcow2(backing=base.path)

    def raw(self):
        path = self.images / f'disk-{uuid.uuid4()}.raw'
        run('qemu-img', 'create', '-q', '-f', 'raw', str(path),
            str(DISK_SIZE))
        return planning.RootDisk('vda', 'file', str(path), 'raw')

    def block(self):
        device = run('losetup', '--find', '--show', self.raw().path).strip()
        self.addCleanup(run, 'losetup', '--detach', device)
        return planning.RootDisk('vda', 'block', device, 'raw')

    def fill(self, disk, pattern):
        """Write a pattern over the disk, with no guest about."""
        run('qemu-io', '-f', disk.format,
            '-c', f'write -q -P {pattern} 0 {DISK_SIZE}', disk.path)

    def guest(self, disk, running=True):
        """Define a guest, and start it.

        :returns: the plan of a snapshot of it
        """
        instance = FakeInstance(f'guest-{uuid.uuid4()}')
        (self.images / instance.uuid).mkdir()
        other = self.images / f'{instance.uuid}.other'
        run('qemu-img', 'create', '-q', '-f', 'raw', str(other), '1M')
        domain = self.host.get_connection().defineXML(DOMAIN.format(
            virt_type=conf.CONF.libvirt.virt_type,
            name=instance.name, uuid=instance.uuid, storage=disk.storage,
            attribute={'file': 'file', 'block': 'dev'}[disk.storage],
            format=disk.format, discard=self.DISCARD, path=disk.path,
            other=other))
        self.addCleanup(self.remove, instance)
        if running:
            domain.create()
        return self.plan_of(instance, disk)

    def plan_of(self, instance, disk):
        """The plan of a snapshot of a guest that is defined."""
        guest = domain.get(self.host, instance)
        return planning.Plan(
            context=None, instance=instance, guest=guest,
            running=bool(guest.is_active()), disk=disk, image_id=IMAGE_ID,
            image_format='qcow2', image_properties={}, metadata={})

    @classmethod
    def remove(cls, instance):
        domain = cls.host.get_guest(instance)._domain
        if domain.isActive():
            domain.destroy()
        domain.undefine()

    def recover(self, plan):
        """Clean up after a snapshot, as when nova-compute starts."""
        recover.recover_entry(
            self.driver, journal.find(plan.instance.uuid),
            instance=plan.instance)

    @staticmethod
    def forget_journal(plan):
        """Have the journal not know of the guest's snapshot."""
        os.unlink(journal.find(plan.instance.uuid).path)

    def give_journal_to(self, uid):
        os.chown(self.journal, uid, uid)

    def write_as_guest(self, plan, pattern):
        """Have the guest's disk device overwrite the whole disk."""
        self.run_as_guest(plan, f'write -P {pattern} 0 {DISK_SIZE}')

    def run_as_guest(self, plan, command):
        """Have the guest's disk device carry out a command of qemu-io."""
        libvirt_qemu.qemuMonitorCommand(
            plan.guest._domain, jsonutils.dumps({
                'execute': 'human-monitor-command',
                'arguments': {'command-line': (
                    'qemu-io -d /machine/peripheral/virtio-disk0/'
                    f'virtio-backend "{command}"')}}),
            0)

    def assert_holds(self, disk, pattern):
        """Check a disk's whole content, with no guest about."""
        output = run('qemu-io', '-r', '-f', disk.format, '-c',
                     f'read -P {pattern} 0 {DISK_SIZE}', disk.path)
        self.assertNotIn('verification failed', output)

    def assert_nothing_left(self, plan):
        self.assertEqual([], os.listdir(self.journal))
        self.assertEqual([], list(self.freezes.glob('*')))
        self.assertEqual(
            [], list((self.images / plan.instance.uuid).glob('*')))
        self.assertTrue(plan.guest._domain.isPersistent())
        if plan.guest.is_active():
            self.assertEqual(libvirt.VIR_DOMAIN_JOB_NONE,
                             plan.guest._domain.jobInfo()[0])
