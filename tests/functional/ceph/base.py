# SPDX-License-Identifier: Apache-2.0
"""Guests whose root disk is in Ceph."""

import threading
import unittest
from unittest import mock
import uuid

import fixtures
from oslo_config import fixture as config_fixture
from oslo_utils import uuidutils


from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext.hypervisor import ceph
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext.strategies import rbd
from nova_snapext.upload import location
from tests.functional import base
from tests.functional.ceph import cluster

DOMAIN = """
<domain type='{virt_type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'{discard}/>
      <source protocol='rbd' name='{image}'>
        <config file='{configuration}'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


class FakeInstance(base.FakeInstance):

    def __getitem__(self, name):
        return getattr(self, name)


class CephTestCase(base.GuestTestCase):
    """Guests on RBD images, which are as large as base.DISK_SIZE."""

    @classmethod
    def setUpClass(cls):
        reason = cluster.missing()
        if reason is not None:
            raise unittest.SkipTest(f'There is no Ceph: {reason}')
        super().setUpClass()
        directory = cls.directory / 'ceph'
        directory.mkdir()
        cls.cluster = cluster.Cluster(directory)
        cls.addClassCleanup(cls.cluster.__enter__().stop)

    def setUp(self):
        super().setUp()
        self.use_user('nova')
        self.strategy = rbd.RbdStrategy(self.driver)
        self.useFixture(fixtures.MockPatchObject(
            self.driver, 'strategies', {'rbd': self.strategy}))
        self.addCleanup(self.purge)

    def configure(self, group, **options):
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            group=group, **options)

    def use_user(self, user, pool='vms'):
        """Have Nova use a user of the cluster, and a pool for disks."""
        self.configure(
            'libvirt', rbd_user=user, images_rbd_pool=pool,
            images_rbd_ceph_conf=str(self.cluster.configuration))

    def purge(self):
        self.cluster.resume()
        self.cluster.purge()

    def rbd(self):
        """Create an empty disk."""
        image = ceph.ImageSpec('vms', f'{uuid.uuid4()}_disk')
        self.cluster.create(image, base.DISK_SIZE)
        return self.disk(image)

    @staticmethod
    def disk(image):
        return planning.RootDisk('vda', 'network', f'rbd:{image}', 'raw')

    def cloned_rbd(self, pattern, length=base.DISK_SIZE):
        """Create a disk that is a clone of an image in Glance's pool.

        :param length: of the pattern at the beginning of that image, in bytes
        """
        parent = ceph.ImageSpec('images', str(uuid.uuid4()))
        self.cluster.create(parent, base.DISK_SIZE)
        self.write(parent, pattern, length=length)
        image = ceph.ImageSpec('vms', f'{uuid.uuid4()}_disk')
        self.cluster.clone(parent, image)
        return self.disk(image)

    def write(self, image, pattern, offset=0, length=base.DISK_SIZE):
        """Write to an image that no guest uses."""
        with self.cluster.image(image) as opened:
            opened.write(bytes([pattern]) * length, offset)

    def discard(self, image, offset, length):
        with self.cluster.image(image) as opened:
            opened.discard(offset, length)

    def fill(self, disk, pattern):
        self.write(ceph.image_of(disk), pattern)

    def content_of(self, image, snapshot=None):
        """Return the content of an image or a snapshot."""
        with self.cluster.image(image, snapshot) as opened:
            return opened.read(0, opened.size())

    def snapshots(self, image):
        with self.cluster.image(image) as opened:
            return [snapshot['name'] for snapshot in opened.list_snaps()]

    def guest(self, disk, running=True, discard=None):
        instance = FakeInstance(f'guest-{uuid.uuid4()}')
        image = ceph.image_of(disk)
        if uuidutils.is_uuid_like(image.name.removesuffix('_disk')):
            instance.uuid = image.name.removesuffix('_disk')
        instance.image_ref = str(uuid.uuid4())
        (self.images / instance.uuid).mkdir()
        defined = self.host.get_connection().defineXML(DOMAIN.format(
            virt_type=conf.CONF.libvirt.virt_type, name=instance.name,
            uuid=instance.uuid, image=image,
            discard=f' discard=\'{discard}\'' if discard else '',
            configuration=self.cluster.configuration))
        self.addCleanup(self.remove, instance)
        if running:
            defined.create()
        return self.plan_of(instance, disk)

    @staticmethod
    def await_calls():
        """Wait for calls of Ceph that were left alone after a time limit."""
        for thread in threading.enumerate():
            if thread.name == 'snapext-ceph':
                thread.join(60)

    def assert_nothing_left(self, plan):
        super().assert_nothing_left(plan)
        self.assertEqual([], self.snapshots(ceph.image_of(plan.disk)))

    def assert_deletable(self, plan):
        """Check that Nova can delete the disk."""
        image = ceph.image_of(plan.disk)
        if plan.guest.is_active():
            plan.guest.poweroff()
        self.cluster.remove(image)
        self.assertNotIn(image.name, self.cluster.images(image.pool))


class ImageTestCase(CephTestCase):
    """Images made inside Ceph; Glance is a fake."""

    def setUp(self):
        super().setUp()
        self.token = cancel.CancelToken()
        self.progress = []
        glance = mock.create_autospec(location.LocatedImage, instance=True)
        glance.__enter__ = mock.Mock(return_value=glance)
        glance.wait_until_hashed.return_value = True
        glance.is_taken_over.return_value = False
        glance.locations.return_value = []
        self.glance = glance
        self.useFixture(fixtures.MockPatchObject(
            location, 'LocatedImage', return_value=glance))
        self.useFixture(fixtures.MockPatchObject(
            self.driver, '_image_api'))
        self.complete = mock.Mock()


class DiskOfExtents(read.Disk):
    """A frozen disk with the extents that its strategy knows."""

    def __init__(self, frozen):
        super().__init__(frozen.uri)
        self._frozen = frozen

    def extents(self):
        return iter(self._frozen.extents(cancel.CancelToken()))
