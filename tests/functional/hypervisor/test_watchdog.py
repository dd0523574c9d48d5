# SPDX-License-Identifier: Apache-2.0

from concurrent import futures
import signal
import threading

from devcloud import wait
import fixtures
import libvirt
from testtools import content

from nova_snapext.hypervisor import watchdog
from tests.functional import base

# Seconds: far more than the watchdog's timeout, for a busy host.
TIMEOUT = 60


class HungLibvirtdTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.daemon = self.libvirtd.daemons[1].identity()
        # Counts the watchdog's connections; Nova opens its own in another way.
        self.connections = threading.Semaphore(0)
        self.useFixture(fixtures.MockPatchObject(
            watchdog.libvirt, 'open', self.connect))
        dog = watchdog.Watchdog(self.libvirtd.uri, 3)
        dog.start()
        self.addCleanup(dog.stop)
        self.threads = futures.ThreadPoolExecutor(3)
        self.addCleanup(self.threads.shutdown)
        # Runs before all other cleanups, which need libvirtd's answers.
        self.addCleanup(lambda: self.daemon.signal(signal.SIGCONT))

    def connect(self, uri, original=libvirt.open):
        connection = original(uri)
        self.connections.release()
        return connection

    def test_calls_to_hung_libvirtd_fail_and_work_again_afterwards(self):
        connection = self.host.get_connection()
        self.assertTrue(self.connections.acquire(timeout=TIMEOUT))
        self.daemon.signal(signal.SIGSTOP)
        # Two calls on one connection, where libvirt's keepalive would end one;
        # and a new connection, which has no time limit at all.
        calls = [self.threads.submit(call) for call in (
            connection.listAllDomains, connection.getLibVersion,
            lambda: libvirt.open(self.libvirtd.uri))]
        for call in calls:
            self.assertRaises(libvirt.libvirtError, call.result, TIMEOUT)
        self.daemon.signal(signal.SIGCONT)
        connection = wait.until('an answer of libvirtd', self.reconnect,
                                TIMEOUT)
        self.assertEqual([], connection.listAllDomains())

    def reconnect(self):
        # As systemd does, if libvirtd did not survive the signals.
        self.libvirtd.start()
        try:
            return self.host._get_connection()
        except libvirt.libvirtError as error:
            self.addDetail('last error of libvirt',
                           content.text_content(str(error)))
            return None

    def test_restarted_libvirtd_is_watched_again(self):
        self.assertTrue(self.connections.acquire(timeout=TIMEOUT))
        self.libvirtd.kill()
        self.libvirtd.start()
        self.daemon = self.libvirtd.daemons[1].identity()
        self.test_calls_to_hung_libvirtd_fail_and_work_again_afterwards()
