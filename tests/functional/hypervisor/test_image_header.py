# SPDX-License-Identifier: Apache-2.0
"""Headers that QEMU's programs have written, and what they lead to."""

import json
import os
import pathlib
import struct
import subprocess

import fixtures
from oslo_concurrency import processutils
from oslo_config import fixture as config_fixture
from oslotest import base

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import image_opts
from nova_snapext.hypervisor import qemu_img
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext import plan as planning
from tests.functional import base as functional_base

SIZE = '1M'
SECRET, GUEST = b'root-only\n' * 100, 0x33


def qemu_img_run(*arguments):
    return functional_base.run('qemu-img', *map(str, arguments))


class HeaderTestCase(base.BaseTestCase):
    """A disk over an image of Nova's cache, and a file that is secret."""

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.instance, self.cache, self.other = (
            self.directory / name for name in ('uuid', '_base', 'other'))
        for directory in (self.instance, self.cache, self.other):
            directory.mkdir()
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            instances_path=str(self.directory))
        self.secret = self.other / 'secret'
        self.secret.write_bytes(SECRET)

    def create(self, path, *options, backing=None, backing_format='qcow2'):
        options += (('-u', '-b', backing, '-F', backing_format)
                    if backing else ())
        qemu_img_run('create', '-q', '-f', 'qcow2', *options, path, SIZE)
        return path

    def chained(self):
        """Create a disk over a base in Nova's cache.

        :returns: the disk, and the path of the base
        """
        base_path = self.create(self.cache / 'base')
        return self.disk(self.create(
            self.instance / 'disk', backing=base_path)), base_path

    def disk(self, path, image_format='qcow2'):
        return planning.RootDisk('vda', 'file', str(path), image_format)

    def overlay(self, disk):
        return str(self.create(self.instance / 'disk.snapext',
                               backing=disk.path, backing_format=disk.format))

    def with_data_file(self, path):
        """Create an image whose header names the secret as its data file."""
        self.create(path, '-o', f'data_file={self.other / "new"}')
        qemu_img_run('amend', '-f', 'qcow2', '-o',
                     f'data_file={self.secret}', path)

    def rebase(self, path, backing, backing_format='raw'):
        """Write another backing file into the header of an image."""
        qemu_img_run('rebase', '-u', '-f', 'qcow2', '-b', backing,
                     '-F', backing_format, path)

    def write(self, path, pattern=GUEST, size=SIZE):
        functional_base.run('qemu-io', '-f', 'qcow2', '-c',
                            f'write -q -P {pattern} 0 {size}', path)

    def refused(self, function, *args):
        """Check that a header is refused, and that nothing was touched.

        :returns: the error's text
        """
        text = str(self.assertRaises(
            exception.UnexpectedHeader, function, *args))
        self.assertEqual(SECRET, self.secret.read_bytes())
        return text


class HeaderTest(HeaderTestCase):

    def check_as_qemu(self, path):
        """Compare what is read of a header with what QEMU reads."""
        header = image_header.Header.read(str(path))
        info = json.loads(qemu_img_run(
            'info', '--output=json', '-f', 'qcow2', path))
        self.assertEqual(
            (info.get('backing-filename'),
             info.get('backing-filename-format')),
            (header.backing_file, header.backing_format))
        self.assertEqual(
            [snapshot['name'] for snapshot in info.get('snapshots', ())],
            image_header.snapshot_names(str(path)))
        header.check(str(path))

    def test_headers_of_all_kinds_are_read_as_qemu_does(self):
        base_path = self.create(self.cache / 'base')
        for number, options in enumerate((
                'compat=0.10', 'compat=1.1', 'extended_l2=on',
                'lazy_refcounts=on', 'compression_type=zstd',
                'cluster_size=512', 'cluster_size=2M', 'refcount_bits=1')):
            with self.subTest(options):
                path = self.instance / str(number)
                self.check_as_qemu(self.create(path, '-o', options))
                path.unlink()
                self.check_as_qemu(self.create(
                    path, '-o', options, backing=base_path))

    def test_snapshots_with_long_names_are_listed(self):
        path = self.create(self.instance / 'disk')
        for length in (1, 3, 4, 100):
            qemu_img_run('snapshot', '-c', 'ü' * length, path)
        self.check_as_qemu(path)

    def test_width_of_reference_counts_is_read(self):
        for bits in (1, 2, 4, 8, 16, 32, 64):
            disk = self.create(self.instance / f'{bits}',
                               '-o', f'refcount_bits={bits}')
            self.assertEqual(
                bits, image_header.Header.read(str(disk)).refcount_bits)
        old = self.create(self.instance / 'old', '-o', 'compat=0.10')
        self.assertEqual(
            16, image_header.Header.read(str(old)).refcount_bits)

    def test_most_snapshots_is_what_qemu_allows(self):
        for bits, most in ((1, 0), (2, 2), (4, 14)):
            disk = self.create(self.instance / f'{bits}',
                               '-o', f'refcount_bits={bits}')
            functional_base.run('qemu-io', '-f', 'qcow2', '-c',
                                f'write -q 0 {SIZE}', str(disk))
            self.assertEqual(
                most, image_header.Header.read(str(disk)).most_snapshots)
            for number in range(most):
                qemu_img_run('snapshot', '-c', f'n{number}', disk)
            self.assertRaises(subprocess.CalledProcessError, qemu_img_run,
                              'snapshot', '-c', 'one-too-many', disk)

    def test_bitmaps_are_no_reason_to_refuse(self):
        path = self.create(self.instance / 'disk')
        qemu_img_run('bitmap', '--add', path, 'bitmap')
        self.check_as_qemu(path)

    def test_relative_backing_file_begins_at_its_image(self):
        self.create(self.cache / 'base')
        path = self.create(self.instance / 'disk', backing='../_base/base')
        self.assertEqual(
            [str(path), f'{self.instance}/../_base/base'],
            [image.path for image in
             image_header.checked_chain(self.disk(path), None)])

    def test_image_without_format_of_its_backing_file_is_probed(self):
        disk, base_path = self.chained()
        for image_format in ('qcow2', 'raw'):
            qemu_img_run('create', '-q', '-f', image_format, base_path, SIZE)
            head = bytearray(pathlib.Path(disk.path).read_bytes())
            extension = struct.pack('>I', image_header.BACKING_FORMAT)
            head = head.replace(extension, b'\1\2\3\4')
            pathlib.Path(disk.path).write_bytes(head)
            self.assertEqual(
                image_format,
                image_header.checked_chain(disk, None)[1].format)

    def test_raw_disk_has_no_header(self):
        path = self.instance / 'disk'
        self.with_data_file(path)
        disk = self.disk(path, 'raw')
        [image] = image_header.checked_chain(disk, None)
        self.assertEqual('raw', image_opts.chain([image])['driver'])


class RefusedTest(HeaderTestCase):

    def chain_refused(self, disk, expected=None):
        return self.refused(image_header.checked_chain, disk, expected)

    def test_data_file_is_refused_in_the_disk_and_below_it(self):
        disk, base_path = self.chained()
        for path in (disk.path, base_path):
            with self.subTest(path):
                os.unlink(path)
                self.with_data_file(path)
                text = self.chain_refused(disk)
                self.assertIn(str(path), text)
                self.assertIn(str(self.secret), text)
                disk, base_path = self.chained()

    def test_unknown_feature_is_refused(self):
        disk, _base = self.chained()
        with open(disk.path, 'r+b') as file:
            file.seek(image_header.FEATURES_OFFSET)
            file.write((1 << 40).to_bytes(8, 'big'))
        self.assertIn('0x10000000000', self.chain_refused(disk))

    def test_backing_file_elsewhere_is_refused(self):
        disk, _base = self.chained()
        neighbour = self.directory / 'uuid-of-another' / 'disk'
        neighbour.parent.mkdir()
        self.create(neighbour)
        for backing in (self.secret, neighbour, '../other/secret',
                        '/dev/null', self.cache / '../other/secret'):
            with self.subTest(str(backing)):
                self.rebase(disk.path, backing)
                text = self.chain_refused(disk)
                self.assertIn(disk.path, text)
                self.assertIn(str(backing), text)

    def test_backing_file_that_is_no_path_is_refused(self):
        disk, _base = self.chained()
        node = {'driver': 'raw', 'file': {
            'driver': 'file', 'filename': str(self.secret)}}
        for backing in (f'json:{json.dumps(node)}', f'file:{self.secret}',
                        'nbd://localhost/x', 'nbd:unix:/s', 'fat:/etc'):
            for expected in (None, [backing]):
                with self.subTest(backing):
                    self.rebase(disk.path, backing)
                    self.assertIn('not a path',
                                  self.chain_refused(disk, expected))

    def test_backing_file_of_the_base_elsewhere_is_refused(self):
        disk, base_path = self.chained()
        self.rebase(base_path, self.secret)
        self.assertIn(str(self.secret), self.chain_refused(disk))

    def test_chain_that_the_guest_did_not_start_with_is_refused(self):
        disk, base_path = self.chained()
        image_header.checked_chain(disk, [str(base_path)])
        stranger = self.create(self.cache / 'stranger')
        self.rebase(disk.path, stranger)
        self.assertIn(str(stranger),
                      self.chain_refused(disk, [str(base_path)]))
        self.assertIn('none', self.chain_refused(disk, []))

    def test_chain_that_an_operator_has_shortened_is_accepted(self):
        disk, base_path = self.chained()
        image_header.checked_chain(disk, ['/gone', str(base_path)])

    def test_chain_elsewhere_that_the_guest_started_with_is_accepted(self):
        image = self.create(self.other / 'image')
        disk, _base = self.chained()
        self.rebase(disk.path, image, 'qcow2')
        self.assertEqual(2, len(image_header.checked_chain(
            disk, [str(image)])))

    def test_chain_in_a_circle_is_refused(self):
        disk, base_path = self.chained()
        self.rebase(base_path, disk.path, 'qcow2')
        self.assertIn('above it', self.chain_refused(disk))

    def test_raw_backing_file_called_qcow2_is_checked_as_qcow2(self):
        disk, base_path = self.chained()
        base_path.unlink()
        self.with_data_file(base_path)
        self.rebase(disk.path, base_path, 'raw')
        image_header.checked_chain(disk, None)
        self.rebase(disk.path, base_path, 'qcow2')
        self.assertIn(str(base_path), self.chain_refused(disk))

    def test_format_that_may_name_files_is_refused(self):
        disk, base_path = self.chained()
        for image_format in ('vmdk', 'qed', 'luks'):
            self.rebase(disk.path, base_path, image_format)
            self.assertIn(image_format, self.chain_refused(disk))


class QemuImgTest(HeaderTestCase):
    """qemu-img opens nothing that a header names."""

    def functions(self, overlay, disk):
        return (lambda: qemu_img.commit(overlay, disk),
                lambda: qemu_img.holds_data(overlay),
                lambda: qemu_img.holds_same_data(overlay, disk),
                lambda: qemu_img.backing_file(overlay),
                lambda: qemu_img.change_backing_file(overlay, disk),
                lambda: qemu_img.create_snapshot('name', overlay),
                lambda: qemu_img.delete_snapshot('name', overlay))

    def test_data_file_of_the_overlay_is_refused_by_all(self):
        disk, _base = self.chained()
        overlay = self.instance / 'disk.snapext'
        self.with_data_file(overlay)
        for function in self.functions(str(overlay), disk):
            self.refused(function)

    def test_data_file_of_the_disk_is_not_overwritten(self):
        path = self.instance / 'disk'
        self.with_data_file(path)
        disk = self.disk(path)
        overlay = self.overlay(disk)
        self.write(overlay)
        for function in self.functions(overlay, disk)[:1]:
            self.assertIn(str(self.secret), self.refused(function))

    def test_overlay_over_another_disk_is_refused(self):
        disk, base_path = self.chained()
        overlay = self.overlay(disk)
        for backing, image_format in ((base_path, 'qcow2'),
                                      (disk.path, 'raw'),
                                      (self.secret, 'raw')):
            self.rebase(overlay, backing, image_format)
            for function in self.functions(overlay, disk)[:1]:
                self.assertIn(str(backing), self.refused(function))

    def test_overlay_is_committed_into_its_disk_alone(self):
        disk, base_path = self.chained()
        self.write(str(base_path), 0x11)
        before = base_path.read_bytes()
        overlay = self.overlay(disk)
        self.write(overlay, size='64k')
        self.assertTrue(qemu_img.holds_data(overlay))
        qemu_img.commit(overlay, disk, [disk.path, str(base_path)])
        self.assertFalse(qemu_img.holds_data(overlay))
        self.assertEqual(before, base_path.read_bytes())
        for pattern, part in ((GUEST, '0 64k'), (0x11, '64k 64k')):
            self.assertNotIn('failed', functional_base.run(
                'qemu-io', '-r', '-f', 'qcow2', '-c',
                f'read -P {pattern} {part}', disk.path))

    def test_commit_into_large_clusters_reads_the_rest_from_the_base(self):
        base_path = self.create(self.cache / 'base')
        self.write(str(base_path), 0x11)
        disk = self.disk(self.create(
            self.instance / 'disk', '-o', 'cluster_size=1M',
            backing=base_path))
        overlay = self.overlay(disk)
        self.write(overlay, size='64k')
        qemu_img.commit(overlay, disk)
        self.assertNotIn('failed', functional_base.run(
            'qemu-io', '-r', '-f', 'qcow2', '-c', 'read -P 17 64k 960k',
            disk.path))

    def test_changed_image_keeps_its_header(self):
        base_path = self.create(self.cache / 'base')
        for options in ('compat=0.10', 'lazy_refcounts=on'):
            path = self.create(self.instance / options, '-o', options,
                               backing=base_path)
            before = image_header.Header.read(str(path))
            qemu_img.create_snapshot('name', str(path))
            self.assertTrue(qemu_img.holds_snapshot('name', str(path)))
            qemu_img.delete_snapshot('name', str(path))
            self.assertFalse(qemu_img.holds_snapshot('name', str(path)))
            after = image_header.Header.read(str(path))
            self.assertEqual(
                (before.backing_file, before.backing_format, before.features),
                (after.backing_file, after.backing_format, after.features))
            self.assertIn('No errors', qemu_img_run('check', path))

    def test_missing_file_has_no_snapshot(self):
        self.assertFalse(qemu_img.holds_snapshot(
            'name', str(self.instance / 'disk')))

    def test_backing_file_is_changed_without_opening_it(self):
        disk, _base = self.chained()
        overlay = self.overlay(disk)
        pathlib.Path(disk.path).unlink()
        qemu_img.change_backing_file(
            overlay, self.disk(self.instance / 'gone', 'raw'))
        self.assertEqual((str(self.instance / 'gone'), 'raw'),
                         qemu_img.backing_file(overlay))


class SameDataTest(HeaderTestCase):

    def raw(self, path):
        qemu_img_run('create', '-q', '-f', 'raw', path, SIZE)
        return self.disk(path, 'raw')

    def device(self):
        device = functional_base.run(
            'losetup', '--find', '--show',
            self.raw(self.other / 'image').path).strip()
        self.addCleanup(functional_base.run, 'losetup', '--detach', device)
        return planning.RootDisk('vda', 'block', device, 'raw')

    def qemu_io(self, path, command, image_format='qcow2'):
        functional_base.run('qemu-io', '-f', image_format, '-c', command,
                            path)

    def overlays(self):
        for disk in (self.raw(self.instance / 'raw'), self.device(),
                     self.chained()[0]):
            overlay = self.overlay(disk)
            yield disk, overlay
            os.unlink(overlay)

    def test_unused_overlay_is_the_same(self):
        for disk, overlay in self.overlays():
            self.qemu_io(disk.path, f'write -q -P 9 0 {SIZE}', disk.format)
            self.assertTrue(qemu_img.holds_same_data(overlay, disk))

    def test_data_is_compared(self):
        for disk, overlay in self.overlays():
            self.qemu_io(overlay, 'write -q -P 9 64k 64k')
            self.assertFalse(qemu_img.holds_same_data(overlay, disk))
            self.qemu_io(disk.path, 'write -q -P 9 64k 64k', disk.format)
            self.assertTrue(qemu_img.holds_same_data(overlay, disk))
            self.qemu_io(disk.path, 'write -q -P 8 64k 512', disk.format)
            self.assertFalse(qemu_img.holds_same_data(overlay, disk))

    def test_zeros_of_the_overlay_are_data(self):
        for disk, overlay in self.overlays():
            self.qemu_io(disk.path, 'write -q -P 9 0 128k', disk.format)
            self.qemu_io(overlay, 'write -q -z 0 64k')
            self.assertFalse(qemu_img.holds_same_data(overlay, disk))
            self.qemu_io(disk.path, 'write -q -z 0 64k', disk.format)
            self.assertTrue(qemu_img.holds_same_data(overlay, disk))

    def test_overlay_of_a_guest_that_grew_is_not_the_same(self):
        disk, _base = self.chained()
        overlay = self.overlay(disk)
        qemu_img_run('resize', '-q', '-f', 'qcow2', overlay, '2M')
        self.assertFalse(qemu_img.holds_same_data(overlay, disk))

    def test_overlay_that_is_in_use_is_an_error(self):
        disk, _base = self.chained()
        overlay = self.overlay(disk)
        pid_file = self.other / 'pid'
        functional_base.run(
            'qemu-nbd', '--fork', '--persistent', '--pid-file', str(pid_file),
            '--socket', str(self.other / 'socket'), '-f', 'qcow2', overlay)
        self.addCleanup(
            qemu_nbd.Server(int(pid_file.read_text()), 'uuid').stop)
        self.assertIn('lock', str(self.assertRaises(
            processutils.ProcessExecutionError,
            qemu_img.holds_same_data, overlay, disk)))


class ServeTest(HeaderTestCase):

    def serve(self, disk, base_chain=None):
        server = qemu_nbd.serve(
            disk, base_chain, str(self.other / 'socket'),
            str(self.other / 'pid'), 'uuid')
        self.addCleanup(server.stop)
        return server

    def test_chain_is_served(self):
        disk, base_path = self.chained()
        self.write(str(base_path), GUEST)
        self.serve(disk, [str(base_path)])
        self.assertNotIn('failed', functional_base.run(
            'qemu-io', '-r', '-f', 'raw', '-c', f'read -P {GUEST} 0 {SIZE}',
            f'nbd+unix:///vda?socket={self.other}/socket'))

    def test_hostile_header_is_not_served(self):
        disk, _base = self.chained()
        self.rebase(disk.path, self.secret)
        self.refused(self.serve, disk)
        os.unlink(disk.path)
        self.with_data_file(disk.path)
        self.refused(self.serve, disk)
        self.assertFalse((self.other / 'socket').exists())

    def test_header_that_changes_after_its_check_is_not_served(self):
        disk, _base = self.chained()
        execute = processutils.execute

        def change(*command, **kwargs):
            if command[0] == 'qemu-nbd':
                os.unlink(disk.path)
                self.with_data_file(disk.path)
            return execute(*command, **kwargs)

        self.useFixture(fixtures.MockPatchObject(
            processutils, 'execute', change))
        self.assertIn(str(self.secret), self.refused(self.serve, disk))
        pid = int((self.other / 'pid').read_text())
        self.assertFalse(pathlib.Path(f'/proc/{pid}/fd/0').exists())
