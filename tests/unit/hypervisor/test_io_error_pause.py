# SPDX-License-Identifier: Apache-2.0

import libvirt

from nova_snapext.hypervisor import io_error_pause
from tests.unit import base

PAUSED = libvirt.VIR_DOMAIN_PAUSED
IO_ERROR = (PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)


class IoErrorPauseTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.guest = base.fake_guest()
        self.pause = io_error_pause.IoErrorPause(self.instance())
        self.pause.capture_state(self.guest)

    def test_guest_paused_by_io_error_is_resumed(self):
        self.guest.state.return_value = IO_ERROR
        self.pause.resume(self.guest, '/full')
        self.guest.resume.assert_called_once_with()
        self.assertIn('/full is full', self.stdlog.logger.output)

    def test_guest_paused_by_user_is_not_resumed(self):
        self.guest.state.return_value = (
            PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        self.pause.resume(self.guest, '/full')
        self.guest.resume.assert_not_called()

    def test_guest_that_was_unpaused_since_the_snapshot_began_is_resumed(self):
        self.guest.state.return_value = (
            PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER)
        self.pause.capture_state(self.guest)
        self.test_guest_paused_by_io_error_is_resumed()

    def test_guest_paused_by_io_error_before_snapshot_is_not_resumed(self):
        self.guest.state.return_value = IO_ERROR
        self.pause.capture_state(self.guest)
        self.pause.resume(self.guest, '/full')
        self.guest.resume.assert_not_called()
