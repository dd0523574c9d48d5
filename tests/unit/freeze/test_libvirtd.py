# SPDX-License-Identifier: Apache-2.0

import queue
import socket
from unittest import mock

from devcloud import wait
import fixtures
import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host

from nova_snapext.freeze import libvirtd
from tests.unit import base


def libvirt_error(domain):
    error = libvirt.libvirtError('libvirt says no')
    error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, domain, 'libvirt says no', 0,
                 None, None, None, 0, 0)
    return error


LOST = libvirt_error(libvirt.VIR_FROM_RPC)


class WatchTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(libvirtd, 'PAUSE', 0))
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.connection = mock.Mock()
        self.asked = queue.SimpleQueue()
        self.connection.registerCloseCallback.side_effect = (
            lambda callback, ends: self.asked.put(
                lambda reason: callback(self.connection, reason, ends)))
        self.open = self.useFixture(fixtures.MockPatchObject(
            libvirt, 'open')).mock
        self.open.return_value = self.connection

    def watch(self, uri='qemu:///system', timeout=30):
        watch = libvirtd.Watch(uri, timeout)
        watch.start()
        self.addCleanup(watch.stop)

    def connected(self, name):
        """Connect to a socket of this name."""
        server = socket.socket(socket.AF_UNIX)
        self.addCleanup(server.close)
        server.bind(f'{self.directory}/{name}')
        server.listen()
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(f'{self.directory}/{name}')
        answering, _address = server.accept()
        self.addCleanup(answering.close)
        return client, answering

    def end(self, reason):
        self.asked.get()(reason)

    def test_a_connection_ends_after_the_time_asked_for(self):
        self.watch()
        self.asked.get()
        wait.until('keepalive', lambda: self.connection.setKeepAlive.called,
                   60)
        # So often without an answer, and the time for the last.
        interval, count = self.connection.setKeepAlive.call_args.args
        self.assertEqual(30, interval * (count + 1))

    def test_one_that_hangs_is_hung_up_on_and_nobody_else(self):
        waiting = [self.connected(name)[0] for name in (
            'libvirt-sock', 'virtqemud-sock', 'asked-sock')]
        other, answering = self.connected('other-sock')
        with self.assertLogs('nova_snapext.freeze.libvirtd', 'ERROR') as logs:
            self.watch(f'qemu:///system?socket={self.directory}/asked-sock')
            self.end(libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE)
            for one in waiting:
                self.assertEqual(b'', one.recv(1))
            self.asked.get()
        self.assertIn('libvirtd hangs', logs.output[0])
        self.assertIn('Restart it', logs.output[0])
        answering.send(b'!')
        self.assertEqual(b'!', other.recv(1))

    def test_one_that_is_restarted_is_watched_again(self):
        waiting, _answering = self.connected('libvirt-sock')
        self.open.side_effect = [
            self.connection, LOST, LOST, self.connection, self.connection]
        self.watch()
        self.end(libvirt.VIR_CONNECT_CLOSE_REASON_EOF)
        self.end(libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE)
        self.assertEqual(b'', waiting.recv(1))

    def test_one_that_does_not_answer_who_connects_is_hung_up_on(self):
        waiting, _answering = self.connected('libvirt-sock')

        def hang(_uri):
            # As libvirt does.
            waiting.recv(1)
            raise LOST

        self.open.side_effect = hang
        self.watch(timeout=1)
        self.assertEqual(b'', waiting.recv(1))


class OutlivedTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(libvirtd, 'PAUSE', 0))
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)

    def outlived(self, *answers):
        attempt = mock.Mock(side_effect=answers)
        return libvirtd.outlived(self.host, attempt, self.plan().instance)

    def test_whatever_a_lost_connection_ends_in_is_attempted_again(self):
        translated = nova_exception.InternalError('looking up failed')
        translated.__context__ = LOST
        self.assertEqual('answer', self.outlived(
            LOST, nova_exception.HypervisorUnavailable(), translated,
            'answer'))

    def test_what_else_is_said_is_an_error_at_once(self):
        for error in (libvirt_error(libvirt.VIR_FROM_QEMU),
                      nova_exception.InternalError('no')):
            self.assertRaises(type(error), self.outlived, error, 'answer')

    def test_one_that_goes_each_time_is_not_asked_for_ever(self):
        self.assertRaises(libvirt.libvirtError, self.outlived,
                          *[LOST] * libvirtd.MOST_LOSSES, 'answer')
