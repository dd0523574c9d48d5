# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose upload is held by a proxy in front of Glance."""

import re

from devcloud import servers
from devcloud import wait
from oslo_utils import units

from tests.e2e import base
from tests.e2e import proxy

# Bytes of an upload that the proxy passes on before it holds the upload.
# Together with the socket buffers on the way, this is less than any image.
HELD_AFTER = units.Mi

# Seconds for anything that does not wait for something else.
SOON = 60


class Running:
    """A snapshot whose upload the proxy holds.

    :ivar server: id of the server
    :ivar image: id of the image
    :ivar acknowledged: the last record that the guest had acknowledged before
        the request
    :ivar faults: the proxy's Faults; they release the upload
    """

    def __init__(self, server, image, acknowledged, log, faults):
        self.server = server
        self.image = image
        self.acknowledged = acknowledged
        self.faults = faults
        self._log = log
        self._offset = log.stat().st_size

    @property
    def log(self):
        """Return the log of nova-compute since the upload is held."""
        with open(self._log, errors='replace') as lines:
            lines.seek(self._offset)
            return lines.read()


class HeldUploadTestCase(base.CloudTestCase):

    @classmethod
    def setUpClass(cls):
        cls.proxy = cls.use_glance_proxy()
        cls.CONFIGURATION = (*cls.CONFIGURATION, 'glance.num_retries=2')
        super().setUpClass()

    def set_faults(self, **faults):
        """Set the faults of all uploads until the end of the test."""
        self.proxy.faults = proxy.Faults(**faults)
        self.addCleanup(setattr, self.proxy, 'faults', proxy.Faults())
        # An upload may still be held at the end of the test.
        self.addCleanup(self.proxy.faults.release.set)
        return self.proxy.faults

    def begin(self, server, strategy=None, client=None, **faults):
        """Request a snapshot, and wait until its upload is held."""
        faults = self.set_faults(hold_after=[HELD_AFTER], **faults)
        acknowledged = self.last_record(server)
        response = servers.action(
            client or self.client, server, 'createImage', {
                'name': 'e2e', 'metadata': {'snapext_strategy': strategy}
                if strategy else {}})
        image = response['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        wait.until(f'the upload of image {image}', faults.held.is_set,
                   base.SNAPSHOT_TIMEOUT)
        # Glance has checked the token by then.
        wait.until(f'Glance to receive the upload of image {image}', lambda: (
            self.image(image)['status'] == 'saving'), SOON)
        return Running(server, image, acknowledged,
                       self.state.log('nova-compute'), faults)

    def await_end(self, running):
        wait.until(f'the end of the snapshot of server {running.server}',
                   lambda: not servers.show(self.client, running.server)[
                       'OS-EXT-STS:task_state'], SOON)

    def assert_cancelled(self, running, cause):
        """Check that a snapshot ends early, while its upload is still held.

        :param cause: text in the log line of the end
        """
        wait.until(f'{cause!r} in the log of nova-compute', lambda: any(
            re.search('Snapshot (aborted|cancelled): ', line) and cause in line
            for line in running.log.splitlines()), SOON)
        self.await_image_gone(running.image)
        self.assertTrue(running.faults.held.is_set())
        self.assertNotIn('Traceback', running.log)

    def await_image_gone(self, image):
        wait.until(f'the deletion of image {image}',
                   lambda: not self.image_exists(image), SOON)

    def assert_completes(self, running):
        """Check that a snapshot ends with a complete image."""
        self.await_end(running)
        self.assertIn('finished: strategy=', running.log)
        self.assert_image_complete(running.image,
                                   acknowledged=running.acknowledged)


class BootingGuestTestCase(HeldUploadTestCase):
    """With guests that need not have booted yet, and have no agent."""

    def create_server(self):
        """Create a server, and do not wait until its guest has booted.

        :returns: id of the server
        """
        server = servers.create(
            self.client, 'e2e',
            servers.image_id(self.client, 'snap-guest-noagent'), 'snap.tiny')
        self.addCleanup(servers.delete, self.client, server)
        return server
