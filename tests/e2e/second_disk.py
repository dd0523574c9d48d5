# SPDX-License-Identifier: Apache-2.0
"""A server whose ephemeral disk comes before its root disk."""

import subprocess

from devcloud import layout
from devcloud import servers

from tests.e2e import base

# Of the guest's own boot loader.
COMMAND_LINE = 'console=ttyS0 quiet panic=1 rdinit=/init'


class SecondDiskTestCase(base.CloudTestCase):
    """The image has root_device_name, and its kernel is another image.

    The firmware of such a guest would boot the ephemeral disk.

    :cvar MARK: the guest writes this to all disks but its root disk
    :cvar RECORD: the guest writes this to its root disk
    """

    MARK = b'SNAPMARK'
    RECORD = layout.RECORD_MAGIC

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot(cls.make_image(), 'snap.disks')

    @classmethod
    def make_image(cls):
        original = cls.image(servers.image_id(cls.client, 'snap-guest'))
        file, raw = cls.directory / 'qcow2', cls.directory / 'raw'
        servers.download(cls.client, original['id'], file)
        subprocess.run(['qemu-img', 'convert', '-O', 'raw', file, raw],
                       check=True)
        kernels = {}
        for name, disk_format, property_name in (
                ('vmlinuz', 'aki', 'kernel_id'),
                ('initrd', 'ari', 'ramdisk_id')):
            content = cls.directory / name
            subprocess.run(
                ['mcopy', '-i', f'{raw}@@{layout.BOOT.offset}', f'::{name}',
                 content], check=True)
            kernels[property_name] = cls.upload(
                content, disk_format=disk_format,
                container_format=disk_format)
        return cls.upload(
            file, disk_format='qcow2', container_format='bare',
            root_device_name='/dev/vdb', os_command_line=COMMAND_LINE,
            **kernels)

    @classmethod
    def upload(cls, file, **properties):
        image = cls.client.post('glance', '/images', {
            'name': 'e2e-root', **properties})['id']
        cls.addClassCleanup(cls.client.delete, 'glance', f'/images/{image}')
        with open(file, 'rb') as content:
            cls.client.open(
                'PUT', 'glance', f'/images/{image}/file', content,
                {'Content-Type': 'application/octet-stream'}).close()
        return image

    def setUp(self):
        super().setUp()
        definition = self.host.virsh('dumpxml', self.server)
        self.assertLess(definition.index('/disk.eph0'),
                        definition.index("/disk'"))
