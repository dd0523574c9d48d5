# SPDX-License-Identifier: Apache-2.0
"""The strategy that the documentation shows as an example."""

import importlib.util
import os
import pathlib
import shutil
import tempfile

import libvirt
from oslo_config import fixture as config_fixture

from nova_snapext import conf
from nova_snapext import read
from nova_snapext.recovery import recover
from nova_snapext.snapshot import selection
from nova_snapext import strategies
from tests.functional import base
from tests.functional.recovery import test_recover
from tests.functional.strategies import contract

EXAMPLE = (pathlib.Path(__file__).parents[3] /
           'doc/source/contributor/reflink.py')

BEFORE, AFTER = contract.BEFORE, contract.AFTER


def load_example():
    spec = importlib.util.spec_from_file_location('reflink', EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ReflinkExampleTest(test_recover.RecoveryTestCase):

    @classmethod
    def setUpClass(cls):
        cls.mount = cls.make_file_system()
        # Its libvirtd sees only what is mounted when it starts.
        super().setUpClass()
        cls.example = load_example()

    @classmethod
    def make_file_system(cls):
        mount = pathlib.Path(tempfile.mkdtemp(prefix='snapext-xfs-'))
        cls.addClassCleanup(shutil.rmtree, mount)
        mount.chmod(0o755)
        with tempfile.NamedTemporaryFile() as image:
            image.truncate(512 << 20)
            base.run('mkfs.xfs', '-q', image.name)
            device = base.run('losetup', '--find', '--show',
                              image.name).strip()
        cls.addClassCleanup(base.run, 'losetup', '--detach', device)
        base.run('mount', device, str(mount))
        cls.addClassCleanup(base.run, 'umount', str(mount))
        return mount

    def setUp(self):
        super().setUp()
        self.images = self.mount
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            instances_path=str(self.images))
        self.strategy = self.example.ReflinkStrategy(self.driver)
        self.install(self.strategy)

    def install(self, strategy):
        """Load a strategy, as the driver does at its start."""
        self.driver.strategies[strategy.name] = strategy
        self.addCleanup(self.driver.strategies.pop, strategy.name, None)

    def copies(self):
        return list(self.images.glob('*.reflink'))

    def assert_nothing_left(self, plan):
        super().assert_nothing_left(plan)
        self.assertEqual([], self.copies())

    def assert_running(self, plan):
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, plan.guest.state()[0])

    def test_disk_is_frozen_and_guest_keeps_its_writes(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan) as frozen:
            self.assert_running(plan)
            self.write_as_guest(plan, AFTER)
            with read.Disk(frozen.uri) as nbd:
                self.assertEqual({BEFORE}, {
                    byte for _, chunk in nbd.read([(0, nbd.size)])
                    for byte in set(bytes(chunk))})
        self.assert_nothing_left(plan)
        self.assert_running(plan)
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_paused_guest_is_frozen_and_stays_paused(self):
        plan = self.guest(self.qcow2())
        plan.guest.pause()
        with self.strategy.freeze(plan):
            pass
        self.assert_nothing_left(plan)
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED, plan.guest.state()[0])

    def test_strategy_is_selected_by_its_name(self):
        plan = self.guest(self.qcow2())
        self.assertIs(self.strategy, selection.select(
            plan, selection.StrategyRequest(('reflink',), 'a test'),
            {'reflink': self.strategy}))
        self.assertIsInstance(self.strategy, strategies.FreezingStrategy)

    def interrupt(self, plan):
        """Leave behind a snapshot whose process was killed."""
        with test_recover.killed(), self.strategy.freeze(plan):
            pass

    def test_interrupted_snapshot_is_recovered_by_resource_of_strategy(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        before = self.definitions(plan)
        self.interrupt(plan)
        self.assertEqual(1, len(self.copies()))
        self.assertEqual(1, len(test_recover.qemu_nbds(disk.path)))
        self.write_as_guest(plan, AFTER)
        self.assert_recovers_running(plan, before)

    def test_guest_paused_by_interrupted_snapshot_is_resumed(self):
        plan = self.guest(self.qcow2())
        before = self.definitions(plan)
        with test_recover.killed_before(
                self.example.processutils, 'execute'), \
                test_recover.killed_before(
                    self.example.ReflinkCopy, 'resume'):
            self.interrupt(plan)
        self.assertEqual(libvirt.VIR_DOMAIN_PAUSED, plan.guest.state()[0])
        self.write_as_guest(plan, AFTER)
        self.assert_recovers_running(plan, before)

    def test_uninstalled_strategy_leaves_its_copy_and_blocks_no_start(self):
        plan = self.guest(self.qcow2())
        self.interrupt(plan)
        del self.driver.strategies['reflink']
        error = self.fails(plan, 'reflink copy')
        self.assertFalse(error.blocks_start)
        self.assertEqual(1, len(self.copies()))
        self.assertEqual([], os.listdir(self.freezes))
        recover.ensure_recovered(self.driver, None, plan.instance)
        self.install(self.strategy)
        self.recover(plan)
        self.assert_nothing_left(plan)
