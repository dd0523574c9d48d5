# SPDX-License-Identifier: Apache-2.0

import argparse
import array
import dataclasses
import json
import os
import pathlib
import tempfile
import threading
from unittest import mock

import jsonschema
import libvirt
from oslo_concurrency import processutils
from oslo_utils import units

from nova_snapext.cmd.check import command
from nova_snapext.cmd.check import compression
from nova_snapext.cmd.check import guests
from nova_snapext.cmd.check import item
from nova_snapext.encode import codec
from nova_snapext.encode import streaming
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext import read
from nova_snapext.resources import nbd_export
from nova_snapext.snapshot import published
from tests.unit import base
from tests.unit.encode import fake_disk

SCHEMA = pathlib.Path(__file__).parents[3] / 'doc/source/cli/check-schema.json'
CLUSTER = 64 * units.Ki
METADATA = """
<domain><metadata>
  <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
    <nova:root type='{root}' uuid='u'/>
  </nova:instance>
</metadata></domain>
"""


def sample(size, clusters=100, image_format='qcow2', count=64):
    """Return a sample whose clusters are all compressed to one size."""
    return compression._Sample(image_format, clusters, streaming.Estimate(
        array.array('I', [size] * count)))


class CompressionTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.host = item.Host(argparse.Namespace(debug=False),
                              driver=mock.Mock())
        self.flags(compression_type='zlib', group='snapext')

    def patch(self, target, name, *value, **kwargs):
        patch = mock.patch.object(target, name, *value, **kwargs)
        self.addCleanup(patch.stop)
        return patch.start()

    def text(self):
        """Return the only item's text and remedy; it is ok in each case."""
        found = [*compression.compression(self.host)]
        self.assertEqual([('compression', item.Status.OK)],
                         [(one.name, one.status) for one in found])
        jsonschema.validate(command.as_json(found),
                            json.loads(SCHEMA.read_text()))
        self.assertEqual(0, command.code(found))
        return found[0].text, found[0].remedy


class FindingTest(CompressionTestCase):

    def setUp(self):
        super().setUp()
        self.samples = self.patch(compression, '_samples')

    def sampled(self, *samples, left_out=()):
        self.samples.return_value = [*samples], [*left_out]
        return self.text()

    def test_without_a_driver_nothing_is_said(self):
        self.host.driver = None
        self.assertEqual([], [*compression.compression(self.host)])

    def test_gain_is_said_with_the_line_that_switches_it_on(self):
        self.assertEqual(
            ('images would be about 75 % smaller with compression (zlib, '
             'level 1; a sample of 12 MiB of the root disks of 3 instances)',
             'To switch it on, set [libvirt]snapshot_compression = true, and '
             'restart nova-compute.'),
            self.sampled(*[sample(CLUSTER // 4)] * 3))

    def test_larger_disk_counts_more(self):
        text, _remedy = self.sampled(sample(CLUSTER // 2, clusters=300),
                                     sample(CLUSTER // 4, clusters=100))
        self.assertIn('about 56 % smaller', text)

    def test_disk_that_would_stay_uncompressed_saves_nothing(self):
        # Each alone: a mean of both would hide it.
        text, _remedy = self.sampled(sample(CLUSTER // 2),
                                     sample(CLUSTER * 92 // 100))
        self.assertIn('about 25 % smaller', text)

    def test_zeros_are_no_gain_of_compression(self):
        one = sample(CLUSTER // 2)
        one.estimate.sizes.extend([0] * 64)
        text, _remedy = self.sampled(one)
        self.assertIn('about 50 % smaller', text)
        self.assertIn('8 MiB of the root disks of 1 instance)', text)

    def test_gain_below_the_minimum_is_said_not_to_be_worth_it(self):
        text, remedy = self.sampled(sample(CLUSTER * 92 // 100))
        self.assertIn('is not worth it', text)
        self.assertIn('[snapext]compression_min_saving_percent (10 %)', text)
        self.assertEqual('', remedy)

    def test_minimum_of_zero_compresses_whatever_it_saves(self):
        self.flags(compression_min_saving_percent=0, group='snapext')
        text, remedy = self.sampled(sample(CLUSTER))
        self.assertIn('would save less than 1 %', text)
        self.assertEqual('', remedy)

    def test_gain_that_rounds_to_nothing_is_said_to_be_small(self):
        text, _remedy = self.sampled(sample(CLUSTER // 2, clusters=1),
                                     sample(CLUSTER, clusters=10000))
        self.assertIn('would save less than 1 %', text)

    def test_libvirt_that_can_not_be_asked_is_no_failure(self):
        self.samples.side_effect = libvirt.libvirtError('it is away')
        self.assertEqual('what compression would save is not known: it is '
                         'away', self.text()[0])

    def test_compression_that_is_on_is_said_with_its_gain(self):
        self.flags(snapshot_compression=True, group='libvirt')
        text, remedy = self.sampled(sample(CLUSTER // 4))
        self.assertIn('images are compressed (zlib, level 1), and about 75 % '
                      'smaller', text)
        self.assertEqual('', remedy)

    def test_images_that_are_not_qcow2_need_another_line(self):
        one = sample(CLUSTER // 4, image_format='raw')
        self.assertIn('[libvirt]snapshot_compression = true and [libvirt]'
                      'snapshot_image_format = qcow2', self.sampled(one)[1])
        self.flags(snapshot_compression=True, group='libvirt')
        text, remedy = self.sampled(one)
        self.assertIn('would be about 75 % smaller', text)
        self.assertIn('set [libvirt]snapshot_image_format = qcow2, and',
                      remedy)

    def test_instances_that_are_left_out_are_said(self):
        text, _remedy = self.sampled(sample(CLUSTER // 4),
                                     left_out=['A (no)', 'B (nor)'])
        self.assertIn('instance); not sampled: A (no), B (nor)', text)

    def test_nothing_sampled_is_no_failure(self):
        self.assertEqual('what compression would save is not known: not '
                         'sampled: A (no)', self.sampled(left_out=['A (no)'])
                         [0])
        self.assertIn('Nova has no guest', self.sampled()[0])

    def test_zstd_that_is_not_installed_is_said(self):
        self.flags(compression_type='zstd', group='snapext')
        self.patch(codec, 'zstandard', None)
        self.assertIn('zstandard is not installed', self.sampled()[0])


class SamplesTest(CompressionTestCase):

    def setUp(self):
        super().setUp()
        self.guests = []
        self.running = set()
        self.host.driver._host.list_guests = self.list_guests
        self.patch(domain, 'Domain', lambda guest: guest)
        self.sample = self.patch(
            compression, '_sample', side_effect=lambda _driver, guest:
            self.results.get(guest.uuid, sample(CLUSTER // 4)))
        self.results = {}

    def list_guests(self, only_running=True):
        return [mock.Mock(uuid=guest.uuid, _domain=guest) for guest in
                self.guests if not only_running or guest.uuid in self.running]

    def add(self, uuid, running=True):
        guest = mock.Mock(uuid=uuid)
        guest.name = f'instance-{uuid}'
        guest.get_xml_desc.return_value = METADATA.format(root='image')
        self.guests.append(guest)
        if running:
            self.running.add(uuid)
        return guest

    def sampled(self):
        """Return the uuids of the guests that are sampled, or tried."""
        self.left_out = compression._samples(self.host.driver)[1]
        return [call.args[1].uuid for call in self.sample.mock_calls]

    def test_three_are_sampled_running_ones_first_in_the_same_order(self):
        for uuid, running in (('5', True), ('1', False), ('4', False),
                              ('2', True)):
            self.add(uuid, running)
        self.assertEqual(['2', '5', '1'], self.sampled())

    def test_guests_of_others_are_not_touched(self):
        self.add('1').get_xml_desc.return_value = '<domain/>'
        self.assertEqual([], self.sampled())

    def test_next_one_is_tried_and_not_all_of_the_host(self):
        self.sample.side_effect = compression._NotSampled('it is encrypted')
        for number in range(30):
            self.add(f'{number:02}')
        self.assertEqual(compression.TRIES, len(self.sampled()))
        self.assertEqual('instance-00 (it is encrypted)', self.left_out[0])

    def test_slow_storage_ends_the_search(self):
        clock = iter(range(0, 100, compression.SAMPLE_TIMEOUT + 1))
        self.patch(compression.time, 'monotonic', lambda: next(clock))
        self.add('1')
        self.add('2')
        self.assertEqual(['1'], self.sampled())

    def test_failure_of_qemu_nbd_is_said_without_its_command(self):
        self.sample.side_effect = processutils.ProcessExecutionError(
            cmd='qemu-nbd json:{}', stderr='qemu-nbd: Failed to blk_new_open '
            "'json:{}': Failed to get a lock\nIs it in use?\n")
        self.add('1')
        self.sampled()
        self.assertEqual([
            "instance-1 (qemu-nbd can't open its root disk: Failed to get a "
            'lock Is it in use?)'], self.left_out)


class SampleTest(CompressionTestCase):
    """Which disks are sampled, and what is left."""

    def setUp(self):
        super().setUp()
        self.images = pathlib.Path(self.useFixture(base.fixtures.TempDir())
                                   .path)
        (self.images / 'work').mkdir()
        self.enterContext(mock.patch.object(
            tempfile, 'tempdir', str(self.images / 'work')))
        self.path = self.images / 'disk'
        self.path.touch()
        self.disk = dataclasses.replace(base.QCOW2, path=str(self.path))
        self.guest = mock.Mock(uuid='6b1ee8b6-7a3f-4a0c-a3a4-1d1c0c9cb0c7')
        self.guest.name = 'instance-1'
        self.guest.get_xml_desc.return_value = METADATA.format(root='image')
        self.patch(published, 'running', return_value=[])
        self.patch(guests, 'plan_of', side_effect=lambda *_args: self.plan(
            disk=self.disk))
        self.export = self.patch(
            nbd_export, 'NbdExport').return_value
        self.read = self.patch(read, 'Disk').return_value.__enter__
        self.read_disk([(0, 8 * units.Mi)])

    def read_disk(self, data):
        self.read.return_value = fake_disk.FakeDisk(64 * units.Mi, data)
        self.read.return_value.abort = mock.Mock()

    def sampled(self):
        return compression._sample(self.host.driver, self.guest)

    def reason(self, error=compression._NotSampled):
        return str(self.assertRaises(error, self.sampled))

    def assert_nothing_left(self):
        self.assertEqual([], os.listdir(self.images / 'work'))
        self.export.release.assert_called_once_with()

    def test_data_is_read_without_locks_and_nothing_is_left(self):
        found = self.sampled()
        self.assertEqual(128, found.clusters)
        self.assertGreater(found.estimate.saving, 0.9)
        self.export.serve_unlocked.assert_called_once()
        self.export.serve.assert_not_called()
        self.assert_nothing_left()

    def test_disk_without_data_tells_nothing(self):
        self.read_disk([])
        self.assertEqual('its root disk has no data', self.reason())

    def test_disk_that_can_not_be_opened_leaves_nothing(self):
        self.export.serve_unlocked.side_effect = exception.UnexpectedHeader(
            path='/i/disk', reason='names another file')
        self.assertIn('names another file',
                      self.reason(exception.UnexpectedHeader))
        self.assert_nothing_left()

    def test_read_that_takes_too_long_is_aborted(self):
        self.patch(compression, 'SAMPLE_TIMEOUT', 0.01)
        aborted = threading.Event()

        def extents():
            self.assertTrue(aborted.wait(60))
            raise exception.DiskReadError(disk='x', reason='it was aborted')

        self.read.return_value = mock.Mock(
            size=units.Mi, extents=extents, abort=aborted.set)
        self.assertIn('within 0.01 seconds: it was aborted', self.reason())
        self.assert_nothing_left()

    def test_storage_that_hangs_is_not_waited_for(self):
        self.patch(compression, 'TIMEOUT', 0.1)
        goes_on = threading.Event()
        self.addCleanup(goes_on.set)
        self.export.serve_unlocked.side_effect = lambda *_args: goes_on.wait(
            60)
        self.assertIn('did not respond for 0.1 seconds',
                      self.reason(compression.bounded.NoResponse))
        self.assertEqual([], os.listdir(self.images / 'work'))

    def not_opened(self, text):
        self.assertIn(text, self.reason())
        self.export.serve_unlocked.assert_not_called()

    def test_encrypted_disk_is_not_opened(self):
        self.disk = dataclasses.replace(
            self.disk, unsupported_reason='its root disk is encrypted')
        self.not_opened('is encrypted')

    def test_disk_in_ceph_or_of_another_format_is_not_opened(self):
        for changed in ({'storage': 'network', 'format': 'raw'},
                        {'format': 'luks'}):
            self.disk = dataclasses.replace(self.disk, **changed)
            self.not_opened('its root disk has the format')

    def test_volume_is_not_opened(self):
        self.guest.get_xml_desc.return_value = METADATA.format(root='volume')
        self.not_opened('is a volume')

    def test_disk_that_nova_may_not_read_is_not_lent_and_not_opened(self):
        self.patch(os, 'access', return_value=False)
        self.not_opened(f'may not read {self.path}')

    def test_disk_of_a_snapshot_in_progress_is_not_opened(self):
        published.running.return_value = [mock.Mock(
            instance_uuid=self.guest.uuid, strategy='backup')]
        self.not_opened('snapshot is in progress')

    def test_guest_that_has_just_been_deleted_is_left_out(self):
        self.guest.get_xml_desc.side_effect = base.libvirt_error(
            libvirt.VIR_ERR_NO_DOMAIN)
        self.assertRaises(libvirt.libvirtError, self.sampled)
