# SPDX-License-Identifier: Apache-2.0

import threading
from unittest import mock

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


class ConnectTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(libvirtd_timeout=1, group='snapext')
        self.useFixture(fixtures.MockPatchObject(libvirtd, 'PAUSE', 0.01))
        self.host = mock.Mock()
        self.open = self.host._connect
        # What ends the threads that hang.
        self.answer = threading.Event()
        self.addCleanup(self.answer.set)

    def connect(self):
        return self.host._connect('qemu:///system', False)

    def bound(self):
        libvirtd.bound(self.host)

    def test_a_connection_is_given_up_after_the_time_asked_for(self):
        self.flags(libvirtd_timeout=30, group='snapext')
        self.bound()
        connection = self.connect()
        self.assertIs(self.open.return_value, connection)
        self.open.assert_called_once_with('qemu:///system', False)
        # So often without an answer, and the time for the last.
        interval, count = connection.setKeepAlive.call_args.args
        self.assertEqual(30, interval * (count + 1))

    def test_what_libvirt_says_is_told_and_it_is_asked_anew(self):
        self.open.side_effect = [LOST, mock.Mock()]
        self.bound()
        self.assertIs(LOST, self.assertRaises(
            libvirt.libvirtError, self.connect))
        self.connect()

    def test_one_that_hangs_is_told_and_its_late_answer_is_used(self):
        late = mock.Mock()

        def hang(*_args):
            self.answer.wait()
            return late

        self.open.side_effect = hang
        self.bound()
        for _caller in range(2):
            error = self.assertRaises(libvirt.libvirtError, self.connect)
            self.assertIn('libvirtd hangs', str(error))
            self.assertIn('Restart it', str(error))
        self.answer.set()
        self.host._connect._watch.restart()
        self.assertIs(late, self.connect())
        self.open.assert_called_once()

    def test_without_a_bound_it_is_nova_s_own(self):
        self.flags(libvirtd_timeout=0, group='snapext')
        self.bound()
        self.assertIs(self.open, self.host._connect)


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
