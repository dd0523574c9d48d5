# SPDX-License-Identifier: Apache-2.0
"""What snapshots leave in nova-compute."""

import collections

from devcloud import services
from oslo_utils import units
import psutil

from tests.e2e import held
from tests import in_full

ROUNDS = 3

# Threads and descriptors that nova-compute may have more than before: Nova's
# own pools of threads and of connections grow with their use. One for each
# snapshot would be twice as many.
GROWTH = 5

# Maximum growth of its memory, in bytes. The buffers of all snapshots'
# readers have more than this size.
MEMORY_GROWTH = 64 * units.Mi


class Process:
    """What nova-compute has."""

    def __init__(self, state):
        process = psutil.Process(
            services.nova_compute(state).daemon(state).identity().pid)
        self.threads = process.num_threads()
        self.descriptors = process.num_fds()
        self.memory = process.memory_info().rss
        self.children = collections.Counter(
            (child.name(), child.status() == psutil.STATUS_ZOMBIE)
            for child in process.children(recursive=True))
        self.files = [file.path for file in process.open_files()
                      if file.path.startswith(str(state.snapshots))]


@in_full.only
class ProcessTest(held.BootingGuestTestCase):

    @classmethod
    def setUpClass(cls):
        # Nova's pools start a thread for each task until they are full.
        cls.CONFIGURATION = (
            *cls.CONFIGURATION, 'DEFAULT.executor_thread_pool_size=4',
            'DEFAULT.default_thread_pool_size=4',
            'DEFAULT.max_concurrent_builds=2',
            'DEFAULT.max_concurrent_snapshots=2')
        super().setUpClass()

    def take(self, server, strategy, **faults):
        """Take a snapshot, and return whether it succeeds."""
        self.set_faults(**faults)
        snapshot = self.snapshot(server, add_cleanup=self.addCleanup,
                                 strategy=strategy)
        return snapshot.strategy == strategy

    def take_four(self, server):
        self.assertTrue(self.take(server, 'backup'))
        self.assertTrue(self.take(server, 'external'))
        self.assertTrue(self.take(server, 'backup', cut_after=[units.Mi]))
        self.assertFalse(self.take(server, 'external', answers=[403]))

    def test_nova_compute_is_as_before_after_twelve_snapshots(self):
        server = self.create_server()
        # The first ones start what nova-compute keeps, such as its privsep
        # daemon.
        self.take_four(server)
        before = Process(self.state)
        for _round in range(ROUNDS):
            self.take_four(server)
        after = Process(self.state)
        self.assertLessEqual(after.threads, before.threads + GROWTH)
        self.assertLessEqual(after.descriptors, before.descriptors + GROWTH)
        self.assertLess(after.memory, before.memory + MEMORY_GROWTH)
        self.assertEqual(before.children, after.children)
        self.assertEqual([], after.files)
        self.assert_nothing_left(server)
