# SPDX-License-Identifier: Apache-2.0

from concurrent import futures
import signal
import threading

from devcloud import wait
import fixtures
import libvirt

from nova_snapext.freeze import libvirtd
from tests.functional import base

# Far more than the timeout of the watch, and what else a busy host takes.
SOON = 60


class HungLibvirtdTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.daemon = self.libvirtd.daemons[1].identity()
        # Of the watch, as Nova opens its connections otherwise.
        self.connections = threading.Semaphore(0)
        self.useFixture(fixtures.MockPatchObject(
            libvirtd.libvirt, 'open', self.connect))
        watch = libvirtd.Watch(self.libvirtd.uri, 3)
        watch.start()
        self.addCleanup(watch.stop)
        self.threads = futures.ThreadPoolExecutor(3)
        self.addCleanup(self.threads.shutdown)
        # The first of all cleanups: all others need its answers.
        self.addCleanup(lambda: self.daemon.signal(signal.SIGCONT))

    def connect(self, uri, original=libvirt.open):
        connection = original(uri)
        self.connections.release()
        return connection

    def test_nothing_waits_for_one_that_hangs_and_all_is_well_after(self):
        connection = self.host.get_connection()
        self.assertTrue(self.connections.acquire(timeout=SOON))
        self.daemon.signal(signal.SIGSTOP)
        # Several on one connection, of which libvirt itself would end one;
        # and one that connects, for which it has no bound at all.
        waiting = [self.threads.submit(call) for call in (
            connection.listAllDomains, connection.getLibVersion,
            lambda: libvirt.open(self.libvirtd.uri))]
        for one in waiting:
            self.assertRaises(libvirt.libvirtError, one.result, SOON)
        self.daemon.signal(signal.SIGCONT)
        answered = wait.until('an answer of libvirtd', self.connected, SOON)
        self.assertEqual([], answered.listAllDomains())

    def connected(self):
        try:
            return self.host._get_connection()
        except libvirt.libvirtError:
            return None

    def test_one_that_is_killed_and_comes_back_is_watched_again(self):
        self.assertTrue(self.connections.acquire(timeout=SOON))
        self.libvirtd.kill()
        self.libvirtd.start()
        self.daemon = self.libvirtd.daemons[1].identity()
        self.test_nothing_waits_for_one_that_hangs_and_all_is_well_after()
