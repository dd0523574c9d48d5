# SPDX-License-Identifier: Apache-2.0
"""Guests of other hardware: firmware, buses, and more than one disk."""

from devcloud import wait
from oslo_utils import units

from tests.e2e import base


class _Guest:
    """Snapshots of one guest while it runs, and while it is stopped."""

    IMAGE = 'snap-guest'
    FLAVOR = 'snap.tiny'
    CONFIG_DRIVE = False
    #: What its definition says of the hardware that is tested.
    DEFINITION: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot(cls.IMAGE, cls.FLAVOR,
                              config_drive=cls.CONFIG_DRIVE)

    def test_a_running_guest_s_image_is_its_root_disk_whole(self):
        self.take('backup', 'filesystem')
        self.assert_lives_on()

    def test_a_stopped_guest_s_image_is_whole_and_it_starts_again(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            shot = self.take('cold', 'offline')
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.assert_boots_with_records(
            self.server, self.assert_snapshot_right(shot).records.last)
        self.assert_has_its_hardware(self.server)
        self.assert_lives_on()

    def take(self, strategy, consistency):
        self.assert_has_its_hardware(self.server)
        shot = self.snapshot(self.server)
        self.assertEqual((strategy, consistency),
                         (shot.strategy, shot.consistency))
        self.assert_snapshot_right(shot)
        self.assertEqual(units.Gi, self.image(shot.image)['virtual_size'])
        self.assert_nothing_left(self.server)
        return shot

    def assert_has_its_hardware(self, server):
        definition = self.host.virsh('dumpxml', server)
        for pattern in self.DEFINITION:
            self.assertRegex(definition, pattern)

    def assert_lives_on(self):
        self.assert_writes_on(self.server)


class UefiTest(_Guest, base.CloudTestCase):
    IMAGE = 'snap-guest-uefi'
    DEFINITION = (r"machine='pc-q35-", r"<loader [^>]*type='pflash'",
                  r'<nvram [^>]*>/.*_VARS\.fd')

    def test_a_second_guest_boots_by_uefi_from_the_image_of_a_running_one(
            self):
        shot = self.snapshot(self.server)
        last = self.assert_snapshot_right(shot).records.last
        inherited = {'hw_firmware_type': 'uefi', 'hw_machine_type': 'q35'}
        self.assertLessEqual(inherited.items(),
                             self.image(shot.image).items())
        # Its firmware has never seen this disk: the NVRAM isn't in the image.
        second = self.boot(shot.image, add_cleanup=self.addCleanup)
        self.assert_boots_with_records(second, last)
        self.assert_has_its_hardware(second)


class VirtioScsiTest(_Guest, base.CloudTestCase):
    IMAGE = 'snap-guest-scsi'
    DEFINITION = (r"<controller type='scsi' [^>]*model='virtio-scsi'",
                  r"<target dev='sda' bus='scsi'")


class IdeTest(_Guest, base.CloudTestCase):
    IMAGE = 'snap-guest-ide'
    DEFINITION = (r"<target dev='hda' bus='ide'",)


class MoreDisksTest(_Guest, base.CloudTestCase):
    """A guest with an ephemeral disk, a swap disk and a config drive."""

    FLAVOR = 'snap.disks'
    CONFIG_DRIVE = True
    DEFINITION = (r"/disk\.eph0'", r"/disk\.swap'", r"/disk\.config'")

    #: What the guest writes to its other disks, and to its root disk.
    MARK = b'SNAPMARK'
    RECORD = b'SNAPREC1'

    def take(self, strategy, consistency):
        """Take a snapshot, and prove that it holds nothing of other disks."""
        shot = super().take(strategy, consistency)
        of_server = self.server.encode()
        with self.downloaded(shot.image) as file:
            content = file.read_bytes()
        self.assertEqual(
            [True, False, False],
            [word in content for word in (self.RECORD, self.MARK, of_server)])
        # What isn't in the image is on its own disk.
        place = self.state.instances / self.server
        for disk, word in (('disk.eph0', self.MARK), ('disk.swap', self.MARK),
                           ('disk.config', of_server)):
            self.assertIn(word, (place / disk).read_bytes())
        return shot

    def assert_lives_on(self):
        super().assert_lives_on()
        before = self.marks()
        wait.until(
            f'new marks on the ephemeral and the swap disk of {self.server}',
            lambda: all(self.marks().get(disk, 0) > before.get(disk, 0)
                        for disk in ('vdb', 'vdc')), base.BOOT_TIMEOUT)

    def marks(self):
        """The number of the last mark on each disk, by its name."""
        return {words[1]: int(words[2])
                for words in map(str.split, self.console(self.server).lines)
                if words[:1] == ['MARK']}
