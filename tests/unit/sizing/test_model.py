# SPDX-License-Identifier: Apache-2.0

import csv
import dataclasses
import pathlib
import re
import unittest

from sizingmodel import model as modelling

APPENDIX = (pathlib.Path(__file__).parents[3]
            / 'doc/source/admin/performance-appendix.rst')


def model(**fields):
    """Return 100 s of upload at 10 MiB/s, and a second that is fixed."""
    return modelling.Model(**{
        'data': 1000, 'disk': 2000, 'write_rate': 2, 'fixed': 1,
        'upload_rate': 10, 'concurrent': 4, **fields})


@dataclasses.dataclass(frozen=True)
class Measured:
    """A snapshot of the appendix: MiB, and seconds."""

    title: str
    kind: str
    read: int
    sent: float
    wall: float
    scratch: int
    memory: int


def measured():
    """Return all snapshots by the strategy backup in the appendix."""
    for section in re.split(r'\n(?=[^\n]+\n-{5,}\n)', APPENDIX.read_text()):
        sizes = re.search(r'([\d,]+) MiB of data other than zeros, ([\d,]+) '
                          r'MiB allocated', section)
        if not sizes:
            continue
        data, allocated = (int(size.replace(',', ''))
                           for size in sizes.groups())
        rows = [row for row in csv.reader(section.splitlines(),
                                          skipinitialspace=True)
                if row and row[0] in ('backup', 'backup, compressed')]
        # Each contestant has a row in a table of times and in one of costs.
        times = {row[0]: row[1:] for row in rows if len(row) in (7, 8)}
        costs = {row[0]: row[1:] for row in rows if len(row) == 5}
        for name, (transfer, space, _, memory) in costs.items():
            has_zeros = allocated > 2 * data
            sent = float(transfer.split(', ')[1])
            # Data that can't be compressed is sent as it is.
            kind = ('compressed' if sent < 0.9
                    else 'zeroes' if has_zeros else 'plain')
            yield Measured(
                section.strip().partition('\n')[0], kind,
                allocated if has_zeros else data,
                data / allocated if has_zeros else modelling.KINDS[kind].sent,
                float(times[name][0].split()[0]),
                int(re.search(r'\((\d+)\)', space)[1]), int(memory))


class ModelTest(unittest.TestCase):

    def test_snapshot_alone_takes_fixed_time_and_size_by_rate(self):
        self.assertEqual(101, model().snapshot_seconds(1, 1))

    def test_fewer_bytes_sent_take_less_time(self):
        self.assertEqual(51, model(sent=0.5).snapshot_seconds(1, 1))

    def test_slow_encoder_limits_upload_by_what_it_leaves(self):
        self.assertEqual(2, model(encode_rate=4, sent=0.5).upload_limit)

    def test_lowest_limit_of_a_host_is_shared_by_its_snapshots(self):
        for name, value in (('host_network', 20), ('host_read_rate', 20),
                            ('host_cores', 20 / 1024 * 2.3)):
            with self.subTest(name):
                one = model(**{name: value})
                self.assertAlmostEqual(10, one.rate(2, 7))
                self.assertAlmostEqual(5, one.rate(4, 7))

    def test_read_limit_counts_data_and_network_counts_what_is_sent(self):
        self.assertEqual(10, model(sent=0.5, host_read_rate=20).host_limit)
        self.assertEqual(20, model(sent=0.5, host_network=20).host_limit)

    def test_glance_is_shared_by_snapshots_of_all_hosts(self):
        self.assertEqual(2, model(glance_rate=40).rate(4, 5))

    def test_night_takes_full_rounds_and_rest(self):
        # Two rounds of four at 5 MiB/s, and two snapshots at 10 MiB/s.
        one = model(guests=10, host_network=20)
        self.assertEqual(201 + 201 + 101, one.night_seconds)

    def test_scratch_grows_with_writes_and_not_beyond_area_or_disk(self):
        self.assertEqual(202, model().kept(101))
        self.assertEqual(150, model(write_area=150).kept(101))
        self.assertEqual(2000, model().kept(1e6))

    def test_small_writes_keep_whole_clusters(self):
        self.assertEqual(32, model(write_size=4).growth)
        self.assertEqual(2, model(write_size=256).growth)

    def test_merge_also_copies_what_is_written_during_it(self):
        one = model(merge_rate=4)
        self.assertEqual(101, one.merge_seconds(101))
        self.assertEqual(202, one.snapshot_seconds(1, 1))
        self.assertEqual(404, one.host_space)

    def test_backup_merges_nothing(self):
        self.assertEqual(0, model().merge_seconds(101))

    def test_host_space_is_that_of_all_snapshots_at_once(self):
        self.assertEqual(3 * 202, model(guests=3).host_space)

    def test_demand_of_glance_is_limited_by_network_of_hosts(self):
        self.assertEqual(200, model(hosts=5, guests=9).glance_demand)
        self.assertEqual(
            75, model(hosts=5, guests=9, host_network=15).glance_demand)


class MeasuredTest(unittest.TestCase):
    """The defaults are those of the measured snapshots."""

    def test_measured_snapshots_take_at_most_a_quarter_longer(self):
        # With idle cores. On some days a machine of this kind is faster.
        snapshots = [one for one in measured()
                     if 'other guests' not in one.title]
        self.assertGreaterEqual(len(snapshots), 9)
        for one in snapshots:
            kind = modelling.KINDS[one.kind]
            seconds = modelling.Model(
                data=one.read, disk=one.read, write_rate=0, sent=one.sent,
                encode_rate=kind.encode_rate).snapshot_seconds(1, 1)
            with self.subTest(one.title, kind=one.kind):
                self.assertGreater(one.wall, 0.7 * seconds)
                self.assertLess(one.wall, 1.25 * seconds)

    def test_memory_covers_measured_snapshots(self):
        for one in measured():
            with self.subTest(one.title, kind=one.kind):
                self.assertLessEqual(
                    one.memory, modelling.KINDS[one.kind].memory)

    def test_scratch_of_guest_that_rewrites_is_as_measured(self):
        # 20 MB/s of an area of 256 MiB. The scratch file grows for a little
        # less than the wall time.
        rewriting, = (one for one in measured() if 'rewrites' in one.title)
        kept = modelling.Model(
            data=rewriting.read, disk=4096, write_rate=20e6 / 2 ** 20,
            write_area=256).kept(rewriting.wall)
        self.assertGreater(kept, rewriting.scratch)
        self.assertLess(kept, 1.1 * rewriting.scratch)
