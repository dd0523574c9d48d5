# SPDX-License-Identifier: Apache-2.0
"""Images that require a quiesce, and guests that can't give it."""

from devcloud import records
from devcloud import servers

from tests.ceph import base


class _QuiesceTestCase(base.CephTestCase):

    def assert_fails(self, server, reason):
        """Check that a snapshot fails before anything is frozen."""
        snapshot = self.snapshot(server)
        self.assertIsNone(snapshot.strategy)
        self.assertFalse(self.image_exists(snapshot.image))
        self.assertNotIn('is frozen', snapshot.log)
        self.assertNotIn('is cloned to', snapshot.log)
        self.assertRegex(snapshot.log,
                         rf'requires it \(os_require_quiesce\): .*{reason}')
        self.assert_nothing_left(server)


class RequiredTest(_QuiesceTestCase):
    """A guest with an agent whose image requires a quiesce.

    Its image is a copy inside Ceph, made by a snapshot.
    """

    MORE = (*base.RAW, 'snapext.agent_timeout=5')

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        first = cls.boot()
        image = cls.snapshot(first).image
        servers.delete(cls.client, first)
        # A record is written before its line: the image may lack the last.
        file = cls.directory / image
        servers.download(cls.client, image, file)
        cls.lost_lines |= {
            records.verify(file, 'raw', cls.directory).records.last}
        file.unlink()
        cls.client.open(
            'PATCH', 'glance', f'/images/{image}',
            b'[{"op": "add", "path": "/os_require_quiesce", "value": "yes"}]',
            base.PATCH).close()
        cls.server = cls.boot(image)

    def test_1_direct_image_keeps_it(self):
        self.assert_direct(self.snapshot(self.server), 'filesystem')
        self.assert_nothing_left(self.server)
        self.assert_not_frozen(self.server)

    def test_2_paused_guest_fails_snapshot(self):
        self.action(self.server, 'pause', 'PAUSED')
        try:
            self.assert_fails(self.server, '')
        finally:
            self.action(self.server, 'unpause', 'ACTIVE')
        self.assert_keeps_writing(self.server)

    @base.configured(*base.QCOW2)
    def test_3_streamed_image_keeps_it(self):
        self.assert_streamed(self.snapshot(self.server), 'filesystem',
                             'qcow2')
        self.assert_nothing_left(self.server)
        self.assert_not_frozen(self.server)

    @base.configured(*base.QCOW2)
    def test_4_agent_that_does_not_run_fails_snapshot(self):
        self.end_agent(self.server)
        self.assert_fails(self.server, 'agent is not connected')
        self.assert_keeps_writing(self.server)

    @base.configured(*base.QCOW2)
    def test_5_stopped_guest_needs_no_quiesce(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        self.assert_streamed(self.snapshot(self.server), 'offline', 'qcow2')
        self.assert_nothing_left(self.server)


class WithoutAgentTest(_QuiesceTestCase):
    """Guests without an agent, from an image in Ceph."""

    MORE = base.RAW

    def test_running_guest_is_crash_consistent(self):
        server = self.boot(base.IN_CEPH_WITHOUT_AGENT,
                           add_cleanup=self.addCleanup)
        self.assert_direct(self.snapshot(server), 'crash')
        self.assert_nothing_left(server)
        self.assert_keeps_writing(server)

    def test_required_quiesce_fails_before_anything_is_frozen(self):
        image = self.copy_image(base.ELSEWHERE_WITHOUT_AGENT)
        self.patch_image(image, os_require_quiesce='yes')
        # It need not have booted.
        server = servers.create(self.client, 'ceph', image, 'snap.tiny')
        self.addCleanup(servers.delete, self.client, server)
        self.assert_fails(server, 'hw_qemu_guest_agent')
