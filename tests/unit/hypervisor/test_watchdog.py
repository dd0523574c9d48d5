# SPDX-License-Identifier: Apache-2.0

import gc
import itertools
import os
import socket
import threading
from unittest import mock
import weakref

from devcloud import wait
import fixtures
import libvirt

from nova_snapext.hypervisor import watchdog
from tests.unit import base

LOST = base.libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR,
                          domain=libvirt.VIR_FROM_RPC)

LOGGER = 'nova_snapext.hypervisor.watchdog'


class WatchdogTest(base.TestCase):

    def setUp(self):
        super().setUp()
        for name, value in (('RETRY_INTERVAL', 0), ('STARTUP_TIMEOUTS', 1)):
            self.useFixture(
                fixtures.MockPatchObject(watchdog, name, value))
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.connection = mock.Mock()
        self.open = self.useFixture(fixtures.MockPatchObject(
            libvirt, 'open')).mock
        self.open.return_value = self.connection
        self.client, self.server = self.connect('libvirt-sock')

    def start(self, uri='qemu:///system'):
        dog = watchdog.Watchdog(uri, 0.05)
        dog.start()
        self.addCleanup(dog.stop)

    def connect(self, name):
        """Return both ends of a connection to a socket of this name."""
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(f'{self.directory}/{name}')
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(f'{self.directory}/{name}')
        server, _address = listener.accept()
        self.addCleanup(server.close)
        return client, server

    def hang(self, *_args):
        """Wait for a response on the socket, as libvirt does."""
        self.client.recv(1)
        raise LOST

    def assert_closed(self, client):
        self.assertEqual(b'', client.recv(1))

    def assert_open(self, client, server):
        server.send(b'!')
        self.assertEqual(b'!', client.recv(1))

    def test_hung_libvirtd_loses_its_connections_and_no_others(self):
        clients = [self.client] + [self.connect(name)[0] for name in (
            'virtqemud-sock', 'uri-sock')]
        other = self.connect('other-sock')
        self.connection.getLibVersion.side_effect = self.hang
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            self.start(f'qemu:///system?socket={self.directory}/uri-sock')
            for client in clients:
                self.assert_closed(client)
            wait.until('the error in the log', lambda: logs.output, 60)
        self.assertIn('libvirtd hangs', logs.output[0])
        self.assertIn('Restart libvirtd', logs.output[0])
        self.assert_open(*other)

    def test_libvirtd_that_accepts_no_connection_loses_those_it_has(self):
        self.open.side_effect = self.hang
        self.start()
        self.assert_closed(self.client)

    def test_restarted_libvirtd_is_watched_again(self):
        second = mock.Mock()
        second.getLibVersion.side_effect = self.hang
        self.connection.getLibVersion.side_effect = [9, LOST]
        self.open.side_effect = itertools.chain(
            [self.connection, LOST, LOST], itertools.repeat(second))
        self.start()
        self.assert_closed(self.client)

    def test_responsive_libvirtd_keeps_its_connections(self):
        called = threading.Semaphore(0)
        self.connection.getLibVersion.side_effect = called.release
        self.start()
        for _time in range(2 * watchdog.CHECKS_PER_TIMEOUT):
            called.acquire()
        self.assert_open(self.client, self.server)

    def test_failed_connect_is_logged_and_repeated(self):
        self.open.side_effect = itertools.chain(
            [OSError('too many open files')],
            itertools.repeat(self.connection))
        self.connection.getLibVersion.side_effect = self.hang
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            self.start()
            self.assert_closed(self.client)
        self.assertIn('too many open files', logs.output[0])

    def test_failed_close_is_logged_and_repeated(self):
        descriptors = os.listdir('/proc/self/fd')
        self.useFixture(fixtures.MockPatchObject(
            watchdog.os, 'listdir', mock.Mock(side_effect=itertools.chain(
                [OSError('too many open files')],
                itertools.repeat(descriptors)))))
        self.open.side_effect = self.hang
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            self.start()
            self.assert_closed(self.client)
        self.assertIn('too many open files', logs.output[0])

    def test_only_libvirtd_of_this_host_is_served(self):
        self.assertEqual(
            [True, True, False, False], list(map(watchdog.Watchdog.serves, (
                'qemu:///system', 'qemu+unix:///system?socket=/s',
                'qemu+ssh://host/system', 'qemu+tcp:///system'))))


class CallTest(base.TestCase):

    def test_failed_call_keeps_nothing(self):
        # The collector would free it too, some time later. Until then a
        # connection to libvirtd would stay open.
        gc.disable()
        self.addCleanup(gc.enable)

        class Connection:
            def call(self):
                raise ZeroDivisionError()

        connection = Connection()
        found = weakref.ref(connection)
        try:
            watchdog._call(connection.call, 60)
        except ZeroDivisionError:
            del connection
        self.assertIsNone(found())
