# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt
from nova import exception as nova_exception
from nova.virt.libvirt import host as libvirt_host

from nova_snapext.hypervisor import connection
from tests.unit import base

LOST = base.libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR,
                          domain=libvirt.VIR_FROM_RPC)


class RetryOnDisconnectTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            connection, 'RETRY_INTERVAL', 0))
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)

    def attempt(self, *results):
        attempt = mock.Mock(side_effect=results)
        return connection.retry_on_disconnect(
            self.host, attempt, self.instance())

    def test_lost_connection_repeats_attempt(self):
        translated = nova_exception.InternalError('the search failed')
        translated.__context__ = LOST
        self.assertEqual('result', self.attempt(
            LOST, nova_exception.HypervisorUnavailable(), translated,
            'result'))

    def test_other_error_is_raised_immediately(self):
        refusal = base.libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR,
                                     domain=libvirt.VIR_FROM_QEMU)
        for error in (refusal, nova_exception.InternalError('no')):
            self.assertRaises(type(error), self.attempt, error, 'result')

    def test_connection_lost_each_time_is_raised(self):
        self.assertRaises(libvirt.libvirtError, self.attempt,
                          *[LOST] * connection.MAX_DISCONNECTS, 'result')

    def test_unreachable_libvirtd_is_tried_again_before_attempt(self):
        self.host.get_connection.side_effect = [
            nova_exception.HypervisorUnavailable(), mock.DEFAULT]
        self.assertEqual('result', self.attempt('result'))

    def test_unreachable_libvirtd_is_raised_after_operation_timeout(self):
        self.flags(operation_timeout=1, group='snapext')
        self.useFixture(fixtures.MockPatchObject(
            connection, 'RETRY_INTERVAL', 0.3))
        self.host.get_connection.side_effect = (
            nova_exception.HypervisorUnavailable)
        self.assertRaises(nova_exception.HypervisorUnavailable,
                          self.attempt, 'result')
