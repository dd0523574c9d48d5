# SPDX-License-Identifier: Apache-2.0
"""Why a snapshot fails, as its user reads it."""

from devcloud import servers
from devcloud import wait

from tests.e2e import base
from tests.e2e import held


class QuiesceTest(base.CloudTestCase):
    """The image requires frozen filesystems, and has no agent."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        image = cls.copy_image('snap-guest-noagent')
        cls.client.open(
            'PATCH', 'glance', f'/images/{image}',
            b'[{"op": "add", "path": "/os_require_quiesce", "value": "yes"}]',
            {'Content-Type': 'application/openstack-images-v2.1-json-patch'},
        ).close()
        cls.server = cls.boot(image)

    def test_user_reads_what_the_image_lacks(self):
        snapshot = self.snapshot(self.server)
        self.assertFalse(self.image_exists(snapshot.image))
        text = self.refusal_text(self.server)
        for words in ('os_require_quiesce', 'hw_qemu_guest_agent'):
            self.assertIn(words, text)
        self.assert_nothing_left(self.server)


class QuotaTest(base.CloudTestCase):
    """Each real limit of Glance that is about the size of an image."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.shared_guest()

    def test_user_reads_which_limit_is_reached(self):
        for limit, words in (
            ('user_storage_quota=1MB', 'exceeds the storage quota'),
            ('image_size_cap=1048576', 'too large'),
        ):
            self.configure(f'glance:DEFAULT.{limit}')
            snapshot = self.snapshot(self.server)
            self.assertFalse(self.image_exists(snapshot.image))
            text = self.refusal_text(self.server)
            self.assertIn('a quota or a size limit is reached', text)
            self.assertIn(words, text)
            self.assert_nothing_left(self.server)


class EndedServerTest(held.HeldUploadTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def test_user_reads_that_the_server_was_shut_off(self):
        running = self.begin(self.server, 'backup')
        self.host.virsh('destroy', self.server)
        running.faults.release.set()
        self.await_end(running)
        self.assertIn('was shut off', self.refusal_text(self.server))

    def test_user_reads_that_the_server_was_deleted(self):
        server = self.boot(add_cleanup=self.addCleanup)
        self.begin(server)
        servers.delete(self.client, server)
        # The actions of a deleted server can still be read.
        wait.until('the reason', lambda: 'deleted' in self.told(server),
                   held.SOON)

    def told(self, server):
        try:
            return self.refusal_text(server, 'createImage')
        except ValueError:  # not yet
            return ''
