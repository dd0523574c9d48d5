# SPDX-License-Identifier: Apache-2.0
"""Guests whose QEMU has written another header into their disk."""

import contextlib

from nova_snapext import exception
from nova_snapext.strategies import cold
from nova_snapext.strategies import external
from nova_snapext.strategies import internal
from tests.functional import base
from tests.functional.strategies import contract

SECRET = b'readable for Nova only\n' * 100
HEADER_SIZE = 64 << 10
GUEST = 0x33


class HostileHeaderTest(contract.FreezeAssertions, base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.secret = self.images / 'elsewhere' / 'secret'
        self.secret.parent.mkdir()
        self.secret.write_bytes(SECRET)
        self.headers = {
            'a data file': self.header('-o', f'data_file={self.secret}.new'),
            'a backing file': self.header(
                '-u', '-b', str(self.secret), '-F', 'raw'),
            'a node': self.header(
                '-u', '-b', f'json:{{"driver": "file", "filename": '
                            f'"{self.secret}"}}', '-F', 'raw'),
            'a server': self.header(
                '-u', '-b', 'nbd://127.0.0.1:1/x', '-F', 'raw'),
        }

    def header(self, *options):
        """Return the header of a disk that leads to the secret."""
        path = self.images / 'elsewhere' / 'donor'
        base.run('qemu-img', 'create', '-q', '-f', 'qcow2', *options,
                 str(path), str(base.DISK_SIZE))
        if 'data_file' in str(options):
            base.run('qemu-img', 'amend', '-f', 'qcow2', '-o',
                     f'data_file={self.secret}', str(path))
        return path.read_bytes()[:HEADER_SIZE]

    @staticmethod
    def rewrite(path, header):
        """Do what a QEMU of this disk could do at any time.

        :returns: the header that it had before
        """
        with open(path, 'r+b') as file:
            before = file.read(HEADER_SIZE)
            file.seek(0)
            file.write(header)
        return before

    def assert_refused(self, strategy, plan, error=exception.FreezeFailed):
        with contextlib.ExitStack() as stack:
            text = str(self.assertRaises(
                error, stack.enter_context, strategy.freeze(plan)))
        self.assertIn(plan.instance.uuid, text)
        self.assertIn(plan.disk.path, text)
        self.assertIn('header', text)
        self.assertEqual(SECRET, self.secret.read_bytes())

    def refused(self, strategy_class, running):
        strategy = strategy_class(self.driver)
        for name, header in self.headers.items():
            with self.subTest(name):
                disk = self.chained_qcow2()
                plan = self.guest(disk, running=running)
                if strategy.name == 'internal':
                    # All disks have to be able to contain a snapshot.
                    base.run('qemu-img', 'create', '-q', '-f', 'qcow2',
                             f'{self.images}/{plan.instance.uuid}.other', '1M')
                before = self.rewrite(disk.path, header)
                self.assert_refused(strategy, plan)
                if running:
                    plan.guest.poweroff()
                self.rewrite(disk.path, before)
                self.assert_nothing_left(plan)
                self.assert_holds(disk, 0x11)

    def test_external_opens_nothing_that_the_disk_names(self):
        self.refused(external.ExternalStrategy, running=True)

    def test_cold_opens_nothing_that_the_disk_names(self):
        self.refused(cold.ColdStrategy, running=True)

    def test_cold_opens_nothing_that_the_disk_of_a_guest_off_names(self):
        self.refused(cold.ColdStrategy, running=False)

    def test_internal_opens_nothing_that_the_disk_of_a_guest_off_names(self):
        self.refused(internal.InternalStrategy, running=False)

    def test_qcow2_inside_a_raw_disk_is_not_followed(self):
        for strategy, running in ((external.ExternalStrategy, True),
                                  (cold.ColdStrategy, True),
                                  (cold.ColdStrategy, False)):
            disk = self.raw()
            self.rewrite(disk.path, self.headers['a data file'])
            plan = self.guest(disk, running=running)
            with strategy(self.driver).freeze(plan) as frozen:
                self.assertIn(b'Q'[0], self.content(frozen))

    def test_middle_of_the_chain_is_checked(self):
        disk = self.chained_qcow2()
        top = self.qcow2(backing=disk.path)
        plan = self.guest(top, running=False)
        self.rewrite(disk.path, self.headers['a data file'])
        text = self.freeze_fails(plan, exception.FreezeFailed)
        self.assertIn(disk.path, text)
        self.assertEqual(SECRET, self.secret.read_bytes())

    def test_overlay_is_not_committed_through_a_data_file_of_the_disk(self):
        disk = self.qcow2()
        plan = self.guest(disk)
        before = b''
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                external.ExternalStrategy(self.driver).freeze(plan))
            self.write_as_guest(plan, GUEST)
            plan.guest.poweroff()
            before = self.rewrite(disk.path, self.headers['a data file'])
            text = str(self.assertRaises(
                exception.ReleaseFailed, stack.close))
        self.assertIn(plan.instance.uuid, text)
        self.assertIn(str(self.secret), text)
        self.assertEqual(SECRET, self.secret.read_bytes())
        self.rewrite(disk.path, before)
        self.recover(plan)
        self.assert_holds(disk, GUEST)

    @property
    def strategy(self):
        return cold.ColdStrategy(self.driver)
