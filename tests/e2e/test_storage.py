# SPDX-License-Identifier: Apache-2.0

from oslo_utils import units

from tests.e2e import base


class _OneGuest:
    """Snapshots of a running and a stopped guest, in both image formats."""

    #: libvirt's type and format of the root disk, as in its definition.
    DISK = ''
    #: The image's format where none is configured.
    IMAGE_FORMAT = ''

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot(cls.guest_image())

    @classmethod
    def guest_image(cls):
        return 'snap-guest'

    def test_its_root_disk_is_of_the_kind_that_is_tested(self):
        definition = self.host.virsh('dumpxml', self.server)
        disk = definition[definition.index('<disk'):]
        self.assertRegex(disk[:disk.index('</disk>')], self.DISK)

    def test_a_running_guest_s_image_is_whole(self):
        self.take('backup', self.IMAGE_FORMAT)
        self.assert_writes_on(self.server)

    def test_the_other_image_format_is_whole_too(self):
        other = {'raw': 'qcow2', 'qcow2': 'raw'}[self.IMAGE_FORMAT]
        self.configure(f'libvirt.snapshot_image_format={other}')
        shot = self.take('backup', other)
        # A qcow2 leaves out what is zero, which most of the disk is; a raw
        # image has all of it.
        size = self.image(shot.image)['size']
        if other == 'raw':
            self.assertEqual(units.Gi, size)
        else:
            self.assertLess(size, units.Gi // 2)

    def test_a_stopped_guest_s_image_is_whole_and_it_starts_again(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            self.take('cold', self.IMAGE_FORMAT)
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 3)

    def take(self, strategy, image_format):
        shot = self.snapshot(self.server)
        self.assertEqual(strategy, shot.strategy)
        self.assert_snapshot_right(shot, image_format)
        self.assert_nothing_left(self.server)
        return shot


class RawFileTest(_OneGuest, base.CloudTestCase):
    CONFIGURATION = ('libvirt.images_type=raw',)
    DISK = r"type='file'(.|\n)*type='raw'"
    IMAGE_FORMAT = 'raw'


class BlockDeviceTest(_OneGuest, base.CloudTestCase):
    CONFIGURATION = ('libvirt.images_type=lvm',)
    DISK = r"type='block'(.|\n)*type='raw'"
    IMAGE_FORMAT = 'raw'


class FlatQcow2Test(_OneGuest, base.CloudTestCase):
    # Nova copies the image as it is, with no backing file.
    CONFIGURATION = ('libvirt.images_type=flat',
                     'DEFAULT.force_raw_images=False')
    DISK = r"type='file'(.|\n)*type='qcow2'"
    IMAGE_FORMAT = 'qcow2'

    @classmethod
    def guest_image(cls):
        # One that Nova has not cached yet, as it caches them in raw format
        # under the other configurations.
        return cls.copy_image('snap-guest')
