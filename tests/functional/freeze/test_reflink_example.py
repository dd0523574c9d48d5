# SPDX-License-Identifier: Apache-2.0
"""The strategy that the documentation has for an example."""

import importlib.util
import pathlib
import shutil
import tempfile

from oslo_config import fixture as config_fixture

from nova_snapext import choose
from nova_snapext import conf
from nova_snapext import freeze
from nova_snapext import read
from tests.functional import base

EXAMPLE = (pathlib.Path(__file__).parents[3] /
           'doc/source/contributor/reflink.py')

BEFORE, AFTER = 0x55, 0x66


def example():
    spec = importlib.util.spec_from_file_location('reflink', EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ReflinkStrategy


class ReflinkExampleTest(base.GuestTestCase):

    @classmethod
    def setUpClass(cls):
        cls.mount = cls.make_file_system()
        # Its libvirtd sees what is mounted when it starts.
        super().setUpClass()
        cls.strategy = example()(cls.driver)

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
        self.freezes = self.mount / 'freezes'
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            freeze_directory=str(self.freezes), group='snapext')

    def test_it_freezes_the_instant_and_the_guest_goes_on(self):
        disk = self.qcow2()
        self.fill(disk, BEFORE)
        plan = self.guest(disk)
        with self.strategy.freeze(plan) as frozen:
            self.write_as_guest(plan, AFTER)
            with read.Disk(frozen.uri) as nbd:
                self.assertEqual({BEFORE}, {
                    byte for _, piece in nbd.read([(0, nbd.size)])
                    for byte in set(bytes(piece))})
        self.assert_nothing_left(plan)
        self.assertTrue(plan.guest.is_active())
        plan.guest.poweroff()
        self.assert_holds(disk, AFTER)

    def test_it_is_chosen_by_its_name(self):
        plan = self.guest(self.qcow2())
        self.assertIs(self.strategy, choose.choose(
            plan, choose.Wish('reflink', 'a test'),
            {'reflink': self.strategy}))
        self.assertIsInstance(self.strategy, freeze.FreezingStrategy)
