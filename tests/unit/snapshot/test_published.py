# SPDX-License-Identifier: Apache-2.0

import os
import pathlib
import signal
import subprocess
import sys
import time
from unittest import mock

from nova_snapext.snapshot import published
from tests.unit import base

ROOT = pathlib.Path(__file__).parents[3]


class PublicationTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.instance_ = self.plan().instance
        self.now = self.patch(time, 'monotonic')
        self.now.return_value = 100.0

    def patch(self, target, name, **kwargs):
        patch = mock.patch.object(target, name, **kwargs)
        self.addCleanup(patch.stop)
        return patch.start()

    def publication(self):
        return published.Publication(self.instance_, base.IMAGE_ID)

    def test_snapshot_is_seen_while_it_runs(self):
        with self.publication() as publication:
            [seen] = published.running()
            self.assertEqual(
                (self.instance_.uuid, base.IMAGE_ID, 'preparing', None),
                (seen.instance_uuid, seen.image_id, seen.phase, seen.sent))
            publication.set_phase(published.Phase.FREEZING, 'backup')
            [seen] = published.running()
            self.assertEqual(('freezing', 'backup'),
                             (seen.phase, seen.strategy))
        self.assertEqual([], published.running())

    def test_rate_and_rest_are_those_of_the_last_seconds(self):
        with self.publication() as publication:
            publication.set_frozen('2026-01-01T00:00:00')
            for second, sent in ((0, 0), (1, 1000), (20, 2000), (21, 4000)):
                self.now.return_value = 100.0 + second
                publication.on_progress(sent, 10000)
            [seen] = published.running()
        self.assertEqual((4000, 10000, 2000, 3), (
            seen.sent, seen.size, seen.rate, seen.seconds_left))
        self.assertEqual('2026-01-01T00:00:00', seen.frozen_at)

    def test_upload_that_begins_again_has_no_negative_rate(self):
        with self.publication() as publication:
            for second, sent in ((0, 5000), (1, 0), (2, 500)):
                self.now.return_value = 100.0 + second
                publication.on_progress(sent, 10000)
            [seen] = published.running()
        self.assertEqual(500, seen.rate)

    def test_progress_of_each_chunk_is_not_written(self):
        with self.publication() as publication, \
                mock.patch.object(os, 'pwrite') as write:
            for sent in range(1000):
                publication.on_progress(sent, 10000)
        self.assertEqual(1, write.call_count)

    def test_another_strategy_begins_without_progress(self):
        with self.publication() as publication:
            publication.on_progress(10, 10)
            publication.set_phase(published.Phase.PREPARING, 'cold')
            [seen] = published.running()
        self.assertEqual((None, None, None),
                         (seen.sent, seen.size, seen.frozen_at))

    def test_snapshots_of_another_journal_are_not_shown(self):
        with self.publication():
            self.flags(journal_directory='/other', group='snapext')
            self.assertEqual([], published.running())

    def test_nothing_of_it_fails_a_snapshot(self):
        for name in ('memfd_create', 'pwrite'):
            with mock.patch.object(
                    os, name, side_effect=OSError(28, 'full')), \
                    self.publication() as publication:
                publication.set_phase(published.Phase.UPLOADING)
                publication.on_progress(1, 2)
        with self.publication() as publication:
            publication.set_phase(published.Phase.UPLOADING, mock.Mock())

    def test_half_of_a_write_is_not_shown(self):
        with self.publication() as publication:
            os.pwrite(publication._descriptor, b'{', 9)
            self.assertEqual([], published.running())
            publication.set_phase(published.Phase.UPLOADING)
            self.assertEqual(1, len(published.running()))

    def test_what_another_version_writes_is_not_shown(self):
        with self.publication() as publication:
            publication._snapshot.new = 1
            publication._write()
            self.assertEqual([], published.running())


class ProcessTest(base.TestCase):
    """A snapshot of another process."""

    SCRIPT = '''
import sys, types
from nova_snapext import conf
from nova_snapext.snapshot import published
conf.CONF([], default_config_files=[], default_config_dirs=[])
conf.CONF.set_override('journal_directory', sys.argv[1], 'snapext')
conf.CONF.set_override('host', sys.argv[2])
with published.Publication(
        types.SimpleNamespace(uuid='u', name='n'), 'i') as publication:
    publication.on_progress(1, 2)
    print('runs', flush=True)
    sys.stdin.read()
'''

    def setUp(self):
        super().setUp()
        self.process = subprocess.Popen(
            [sys.executable, '-c', self.SCRIPT, self.journal, self.CONF.host],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        self.addCleanup(self.process.communicate)
        self.assertEqual(b'runs\n', self.process.stdout.readline())

    def test_snapshot_of_a_killed_process_is_gone(self):
        [seen] = published.running()
        self.assertEqual(('u', self.process.pid, 1, 2), (
            seen.instance_uuid, seen.pid, seen.sent, seen.size))
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.assertEqual([], published.running())

    def test_another_user_can_not_read_it(self):
        if os.geteuid() != 0:
            self.skipTest('only root can be another user')
        run = subprocess.run(
            ['sh', '-c', f'ls /proc/{self.process.pid}/fd'],
            user=65534, group=65534, extra_groups=[], capture_output=True,
            text=True, check=False)
        self.assertIn('Permission denied', run.stderr)
        self.assertEqual('', run.stdout)
