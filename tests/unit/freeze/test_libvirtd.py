# SPDX-License-Identifier: Apache-2.0

import itertools
import os
import socket
import threading
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
        for name, value in (('PAUSE', 0), ('STARTING', 1)):
            self.useFixture(
                fixtures.MockPatchObject(libvirtd, name, value))
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.connection = mock.Mock()
        self.open = self.useFixture(fixtures.MockPatchObject(
            libvirt, 'open')).mock
        self.open.return_value = self.connection
        self.waiting, self.answering = self.connected('libvirt-sock')

    def watch(self, uri='qemu:///system'):
        watch = libvirtd.Watch(uri, 0.05)
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

    def hang(self, *_args):
        """Do as libvirt does."""
        self.waiting.recv(1)
        raise LOST

    def test_one_that_hangs_is_hung_up_on_and_nobody_else(self):
        hung = [self.waiting] + [self.connected(name)[0] for name in (
            'virtqemud-sock', 'asked-sock')]
        other, answering = self.connected('other-sock')
        self.connection.getLibVersion.side_effect = self.hang
        with self.assertLogs('nova_snapext.freeze.libvirtd', 'ERROR') as logs:
            self.watch(f'qemu:///system?socket={self.directory}/asked-sock')
            for one in hung:
                self.assertEqual(b'', one.recv(1))
            wait.until('what is told', lambda: logs.output, 60)
        self.assertIn('libvirtd hangs', logs.output[0])
        self.assertIn('Restart it', logs.output[0])
        answering.send(b'!')
        self.assertEqual(b'!', other.recv(1))

    def test_one_that_does_not_answer_who_connects_is_hung_up_on(self):
        self.open.side_effect = self.hang
        self.watch()
        self.assertEqual(b'', self.waiting.recv(1))

    def test_one_that_is_restarted_is_watched_again(self):
        again = mock.Mock()
        again.getLibVersion.side_effect = self.hang
        self.connection.getLibVersion.side_effect = [9, LOST]
        self.open.side_effect = itertools.chain(
            [self.connection, LOST, LOST], itertools.repeat(again))
        self.watch()
        self.assertEqual(b'', self.waiting.recv(1))

    def test_one_that_answers_is_left_alone(self):
        asked = threading.Semaphore(0)
        self.connection.getLibVersion.side_effect = asked.release
        self.watch()
        for _time in range(2 * libvirtd.SIGNS):
            asked.acquire()
        self.answering.send(b'!')
        self.assertEqual(b'!', self.waiting.recv(1))

    def test_what_can_not_be_watched_is_told_of_and_tried_again(self):
        self.open.side_effect = itertools.chain(
            [OSError('too many open files')],
            itertools.repeat(self.connection))
        self.connection.getLibVersion.side_effect = self.hang
        with self.assertLogs('nova_snapext.freeze.libvirtd', 'ERROR') as logs:
            self.watch()
            self.assertEqual(b'', self.waiting.recv(1))
        self.assertIn('too many open files', logs.output[0])

    def test_one_that_can_not_be_hung_up_on_at_first_is_later(self):
        listed = os.listdir('/proc/self/fd')
        self.useFixture(fixtures.MockPatchObject(
            libvirtd.os, 'listdir', mock.Mock(side_effect=itertools.chain(
                [OSError('too many open files')], itertools.repeat(listed)))))
        self.open.side_effect = self.hang
        with self.assertLogs('nova_snapext.freeze.libvirtd', 'ERROR') as logs:
            self.watch()
            self.assertEqual(b'', self.waiting.recv(1))
        self.assertIn('too many open files', logs.output[0])

    def test_one_of_another_host_is_not_served(self):
        self.assertEqual(
            [True, True, False, False], list(map(libvirtd.Watch.serves, (
                'qemu:///system', 'qemu+unix:///system?socket=/s',
                'qemu+ssh://host/system', 'qemu+tcp:///system'))))


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
