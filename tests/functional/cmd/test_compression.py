# SPDX-License-Identifier: Apache-2.0
"""What ``nova-snapext check`` tells of compression, with real guests."""

import argparse
import os
import random
import tempfile
from unittest import mock

import fixtures
from oslo_utils import units
import psutil

from nova_snapext.cmd.check import compression
from nova_snapext.cmd.check import item
from nova_snapext import conf
from nova_snapext.encode import streaming
from nova_snapext.hypervisor import chain
from tests.functional import base

METADATA = """<metadata>
  <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
    <nova:root type='image' uuid='6b1ee8b6-7a3f-4a0c-a3a4-1d1c0c9cb0c7'/>
  </nova:instance>
</metadata>"""
DOMAIN = base.DOMAIN.replace("  <memory", f"  {METADATA}\n  <memory")

CLUSTER = 64 * units.Ki
# Of a cluster: what is left of it that no compression makes smaller.
SHARE = 0.4


class CompressionTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(base, 'DOMAIN', DOMAIN))
        self.enterContext(mock.patch.object(
            tempfile, 'tempdir', self.useFixture(
                fixtures.TempDir(rootdir=str(self.directory))).path))

    def fill(self, disk, share=SHARE):
        """Fill a disk with data; a share of it can't be compressed."""
        generator = random.Random(1)
        size = int(CLUSTER * share)
        source = self.images / 'source'
        source.write_bytes(b''.join(
            generator.randbytes(size) + b'x' * (CLUSTER - size)
            for _cluster in range(base.DISK_SIZE // CLUSTER)))
        base.run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', disk.format,
                 str(source), disk.path)
        source.unlink()
        return disk

    def guest(self, disk, running=True):
        """Define a guest whose disk is where Nova has it."""
        plan = super().guest(disk, running=False)
        path = str(self.images / plan.instance.uuid / 'disk')
        if disk.storage == 'file':
            os.rename(disk.path, path)
        else:
            os.symlink(disk.path, path)
        moved = base.planning.RootDisk('vda', disk.storage, path, disk.format)
        connection = self.host.get_connection()
        connection.defineXML(plan.guest.get_xml_desc().replace(
            disk.path, path))
        if running:
            plan.guest._domain.create()
        return self.plan_of(plan.instance, moved)

    def checked(self):
        [found] = compression.compression(item.Host(
            argparse.Namespace(debug=False), is_nova=True, libvirt=True,
            driver=self.driver))
        self.assertIs(item.Status.OK, found.status)
        self.assert_nothing_is_left()
        return found

    def assert_nothing_is_left(self):
        self.assertEqual([], list(self.freezes.glob('*')))
        self.assertEqual([], os.listdir(self.journal))
        self.assertEqual([], [
            process.info for process in psutil.process_iter(
                ['name', 'cmdline'])
            if process.info['name'] == 'qemu-nbd' and
            tempfile.gettempdir() in ' '.join(
                process.info['cmdline'] or ())])
        self.assertEqual([], os.listdir(tempfile.gettempdir()))

    def assert_gain(self, percent, found):
        self.assertRegex(found.text, r'about \d+ % smaller')
        said = int(found.text.partition(' % smaller')[0].split()[-1])
        self.assertAlmostEqual(percent, said, delta=2)

    def test_gain_is_that_of_the_data_and_the_guest_runs_on(self):
        plan = self.guest(self.fill(self.qcow2()))
        before = plan.guest.get_xml_desc()
        found = self.checked()
        self.assert_gain(60, found)
        self.assertIn('4 MiB of the root disks of 1 instance', found.text)
        self.assertIn('[libvirt]snapshot_compression = true', found.remedy)
        self.assertEqual(before, plan.guest.get_xml_desc())
        self.run_as_guest(plan, 'write -P 7 0 65536')

    def test_whole_backing_chain_is_sampled(self):
        below = self.fill(self.qcow2())
        plan = self.guest(self.qcow2(backing=below.path))
        # The guest was started with it.
        self.assertEqual(2, len(chain.paths_of(chain.find_disk(
            plan.guest.get_xml_desc(), 'vda'))))
        self.assert_gain(60, self.checked())

    def test_raw_disk_needs_qcow2_images(self):
        self.guest(self.fill(self.raw()))
        found = self.checked()
        self.assert_gain(60, found)
        self.assertIn('[libvirt]snapshot_image_format = qcow2', found.remedy)

    def test_block_device_is_left_out(self):
        self.guest(self.fill(self.block()))
        self.assertIn('block storage', self.checked().text)

    def test_random_data_is_not_worth_it(self):
        self.guest(self.fill(self.qcow2(), share=1))
        self.assertIn('is not worth it', self.checked().text)

    def test_compression_that_is_on_is_said(self):
        conf.CONF.set_override('snapshot_compression', True, 'libvirt')
        self.addCleanup(conf.CONF.clear_override, 'snapshot_compression',
                        'libvirt')
        self.guest(self.fill(self.qcow2()))
        found = self.checked()
        self.assertIn('images are compressed', found.text)
        self.assert_gain(60, found)

    def test_running_guest_comes_before_one_that_is_shut_off(self):
        self.enterContext(mock.patch.object(compression, 'DISKS', 1))
        for _number in range(3):
            self.guest(self.fill(self.qcow2(), share=1), running=False)
        self.guest(self.fill(self.qcow2()))
        self.assert_gain(60, self.checked())

    def while_sampled(self, action):
        """Do something while qemu-nbd has the disk open."""
        estimate_size = streaming.estimate_size

        def act_and_estimate(*args):
            action()
            return estimate_size(*args)

        # A busy host must not end the sample before the action.
        with mock.patch.object(streaming, 'estimate_size',
                               side_effect=act_and_estimate) as estimated, \
                mock.patch.object(compression, 'SAMPLE_TIMEOUT', 120), \
                mock.patch.object(compression, 'TIMEOUT', 120):
            found = self.checked()
        estimated.assert_called_once()
        return found

    def check_start_and_stop(self, disk):
        plan = self.guest(self.fill(disk), running=False)
        domain = plan.guest._domain

        def start_and_stop():
            domain.create()
            domain.destroy()
            domain.create()

        self.assert_gain(60, self.while_sampled(start_and_stop))
        self.assertTrue(domain.isActive())
        domain.destroy()
        domain.create()

    def test_guest_starts_and_stops_while_its_qcow2_is_sampled(self):
        self.check_start_and_stop(self.qcow2())

    def test_guest_starts_and_stops_while_its_raw_disk_is_sampled(self):
        self.check_start_and_stop(self.raw())

    def test_snapshot_of_the_guest_goes_on_while_its_disk_is_sampled(self):
        plan = self.guest(self.fill(self.qcow2()))

        def take_snapshots():
            for name in ('backup', 'external'):
                with self.driver.strategies[name].freeze(plan):
                    self.run_as_guest(plan, 'write -P 7 0 1M')

        found = self.while_sampled(take_snapshots)
        self.assertIn('smaller', found.text)
        self.assertEqual(
            ['disk'], os.listdir(self.images / plan.instance.uuid))

    def test_header_that_names_another_file_is_not_followed(self):
        plan = self.guest(self.fill(self.qcow2()), running=False)
        directory = self.images / 'elsewhere'
        directory.mkdir()
        secret = directory / 'secret'
        secret.write_bytes(b's' * base.DISK_SIZE)
        base.run('qemu-img', 'rebase', '-u', '-b', str(secret), '-F', 'raw',
                 plan.disk.path)
        found = self.checked()
        self.assertIn('what compression would save is not known', found.text)
        self.assertIn('neither in the directory of the instance nor',
                      found.text)

    def test_disk_that_only_root_may_read_is_left_alone(self):
        plan = self.guest(self.fill(self.qcow2()))
        access = os.access
        with mock.patch.object(
                os, 'access', side_effect=lambda path, mode: (
                    path != plan.disk.path and access(path, mode))):
            self.assertIn('may not read', self.checked().text)
