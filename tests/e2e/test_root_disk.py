# SPDX-License-Identifier: Apache-2.0
"""A server whose ephemeral disk comes before its root disk."""

import subprocess

from devcloud import layout
from devcloud import servers

from tests.e2e import base

# Of the guest's own boot loader.
COMMAND_LINE = 'console=ttyS0 quiet panic=1 rdinit=/init'


class SecondDiskTest(base.CloudTestCase):
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

    def assert_root_disk_is_taken(self, strategy, snapshot):
        self.assertEqual(strategy, snapshot.strategy)
        self.assert_snapshot_complete(snapshot)
        with self.downloaded(snapshot.image) as file:
            content = file.read_bytes()
        self.assertEqual([True, False], [
            data in content for data in (self.RECORD, self.MARK)])
        self.assert_nothing_left(self.server)

    def test_each_strategy_takes_the_root_disk_of_a_running_guest(self):
        for strategy in ('backup', 'external', 'cold'):
            with self.subTest(strategy=strategy):
                self.assert_root_disk_is_taken(
                    strategy, self.snapshot(self.server, strategy=strategy))
                self.assert_keeps_writing(self.server)

    def test_root_disk_of_a_stopped_guest_is_taken(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            self.assert_root_disk_is_taken('cold', self.snapshot(self.server))
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 1)

    def test_snapshot_of_nova_is_refused_and_its_image_deleted(self):
        self.configure('snapext.strategy=native')
        snapshot = self.snapshot(self.server)
        self.assertIn('its root disk is vdb', self.refusal_text(self.server))
        self.assertFalse(self.image_exists(snapshot.image))
        self.assert_keeps_writing(self.server)

    def test_shelved_server_keeps_its_root_disk(self):
        server = self.server
        last = self.last_record(server)
        self.action(server, 'shelve', 'SHELVED_OFFLOADED')
        self.action(server, 'unshelve', 'ACTIVE')
        self.await_records(server, 1)
        self.assertGreater(self.last_record(server), last)

    def test_disks_that_were_exchanged_are_refused(self):
        # The records disagree: root_device_name is now the ephemeral disk.
        server = self.server
        self.action(server, 'os-stop', 'SHUTOFF')
        try:
            definition = self.host.virsh('dumpxml', server, '--inactive')
            self.redefine(definition.replace('vdb', 'vdx').replace(
                'vda', 'vdb').replace('vdx', 'vda'))
            snapshot = self.snapshot(server)
            self.assertIn('RootDiskUnknown', snapshot.log)
            self.assertFalse(self.image_exists(snapshot.image))
            self.redefine(definition)
        finally:
            self.action(server, 'os-start', 'ACTIVE')
        self.await_records(server, 1)

    def redefine(self, definition):
        file = self.directory / 'definition.xml'
        file.write_text(definition)
        self.host.virsh('define', str(file))
