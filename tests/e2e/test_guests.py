# SPDX-License-Identifier: Apache-2.0
"""Guests with other hardware: firmware, buses, and more than one disk."""

from devcloud import wait
from oslo_utils import units

from tests.e2e import base
from tests import in_full


class _Guest:
    """Snapshots of one guest, while it runs and while it is stopped.

    :cvar DEFINITION: patterns of the tested hardware in its definition
    """

    IMAGE = 'snap-guest'
    FLAVOR = 'snap.tiny'
    CONFIG_DRIVE = False
    DEFINITION: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot(cls.IMAGE, cls.FLAVOR,
                              config_drive=cls.CONFIG_DRIVE)

    def test_image_of_running_guest_is_its_complete_root_disk(self):
        self.take_snapshot('backup', 'filesystem')
        self.assert_keeps_running()

    def test_stopped_guest_is_snapshotted_and_starts_again(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            snapshot = self.take_snapshot('cold', 'offline')
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.assert_boots_with_records(
            self.server, self.assert_snapshot_complete(snapshot).records.last)
        self.assert_has_its_hardware(self.server)
        self.assert_keeps_running()

    def take_snapshot(self, strategy, consistency):
        """Take a snapshot, and check its image.

        :param strategy: the expected strategy
        :param consistency: the expected consistency
        """
        self.assert_has_its_hardware(self.server)
        snapshot = self.snapshot(self.server)
        self.assertEqual((strategy, consistency),
                         (snapshot.strategy, snapshot.consistency))
        self.assert_snapshot_complete(snapshot)
        self.assertEqual(units.Gi,
                         self.image(snapshot.image)['virtual_size'])
        self.assert_nothing_left(self.server)
        return snapshot

    def assert_has_its_hardware(self, server):
        definition = self.host.virsh('dumpxml', server)
        for pattern in self.DEFINITION:
            self.assertRegex(definition, pattern)

    def assert_keeps_running(self):
        self.assert_keeps_writing(self.server)


class UefiTest(_Guest, base.CloudTestCase):
    IMAGE = 'snap-guest-uefi'
    DEFINITION = (r"machine='pc-q35-", r"<loader [^>]*type='pflash'",
                  r'<nvram [^>]*>/.*_VARS\.fd')

    def test_second_guest_boots_with_uefi_from_image_of_running_guest(self):
        snapshot = self.snapshot(self.server)
        last = self.assert_snapshot_complete(snapshot).records.last
        inherited = {'hw_firmware_type': 'uefi', 'hw_machine_type': 'q35'}
        self.assertLessEqual(inherited.items(),
                             self.image(snapshot.image).items())
        # Its firmware does not know this disk: the image has no NVRAM.
        second = self.boot(snapshot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)
        self.assert_has_its_hardware(second)


class VirtioScsiTest(_Guest, base.CloudTestCase):
    IMAGE = 'snap-guest-scsi'
    DEFINITION = (r"<controller type='scsi' [^>]*model='virtio-scsi'",
                  r"<target dev='sda' bus='scsi'")


@in_full.only
class IdeTest(_Guest, base.CloudTestCase):
    IMAGE = 'snap-guest-ide'
    DEFINITION = (r"<target dev='hda' bus='ide'",)


class MoreDisksTest(_Guest, base.CloudTestCase):
    """A guest with an ephemeral disk, a swap disk and a config drive.

    :cvar MARK: the guest writes this to its ephemeral and its swap disk
    :cvar RECORD: the guest writes this to its root disk
    """

    FLAVOR = 'snap.disks'
    CONFIG_DRIVE = True
    DEFINITION = (r"/disk\.eph0'", r"/disk\.swap'", r"/disk\.config'")

    MARK = b'SNAPMARK'
    RECORD = b'SNAPREC1'

    def take_snapshot(self, strategy, consistency):
        """Take a snapshot, and check that it has no data of other disks."""
        snapshot = super().take_snapshot(strategy, consistency)
        uuid = self.server.encode()
        with self.downloaded(snapshot.image) as file:
            content = file.read_bytes()
        self.assertEqual(
            [True, False, False],
            [data in content for data in (self.RECORD, self.MARK, uuid)])
        # The data that the image lacks is on the other disks.
        directory = self.state.instances / self.server
        for disk, data in (('disk.eph0', self.MARK), ('disk.swap', self.MARK),
                           ('disk.config', uuid)):
            self.assertIn(data, (directory / disk).read_bytes())
        return snapshot

    def assert_keeps_running(self):
        super().assert_keeps_running()
        before = self.marks()
        wait.until(
            f'new marks on the ephemeral and the swap disk of {self.server}',
            lambda: all(self.marks().get(disk, 0) > before.get(disk, 0)
                        for disk in ('vdb', 'vdc')), base.BOOT_TIMEOUT)

    def marks(self):
        """Return the number of the last mark on each disk, by its name."""
        return {words[1]: int(words[2])
                for words in map(str.split, self.console(self.server).lines)
                if words[:1] == ['MARK']}
