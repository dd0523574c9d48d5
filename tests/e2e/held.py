# SPDX-License-Identifier: Apache-2.0
"""Snapshots whose upload a proxy before Glance holds, for as long as it takes.
"""

from devcloud import servers
from devcloud import wait
from oslo_utils import units

from tests.e2e import base
from tests.e2e import proxy

# Bytes of an upload that come through before it is held: with what sockets on
# the way take, less than any image has.
HELD_AFTER = units.Mi

# Seconds for something to happen that does not wait for anything.
SOON = 60


class Running:
    """A snapshot whose upload the proxy holds.

    :ivar image: that it makes
    :ivar acknowledged: the last record acknowledged before it was asked for
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
        """What nova-compute has logged since it is held."""
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
        self.proxy.faults = proxy.Faults(**faults)
        self.addCleanup(setattr, self.proxy, 'faults', proxy.Faults())
        # Whatever it holds still, when the test is over.
        self.addCleanup(self.proxy.faults.release.set)
        return self.proxy.faults

    def begin(self, server, strategy=None, client=None, **faults):
        """Ask for a snapshot, and wait until its upload is held."""
        faults = self.set_faults(hold_after=[HELD_AFTER], **faults)
        acknowledged = self.last_record(server)
        answer = servers.action(client or self.client, server, 'createImage', {
            'name': 'e2e', 'metadata': {'snapext_strategy': strategy}
            if strategy else {}})
        image = answer['image_id']
        self.addCleanup(self.client.delete, 'glance', f'/images/{image}',
                        missing_ok=True)
        wait.until(f'upload of image {image}', faults.held.is_set,
                   base.SNAPSHOT_TIMEOUT)
        # Glance looks at the token before.
        wait.until(f'Glance to take the upload of image {image}', lambda: (
            self.image(image)['status'] == 'saving'), SOON)
        return Running(server, image, acknowledged,
                       self.state.log('nova-compute'), faults)

    def await_end(self, running):
        wait.until(f'end of the snapshot of server {running.server}',
                   lambda: not servers.show(self.client, running.server)[
                       'OS-EXT-STS:task_state'], SOON)

    def assert_given_up(self, running, why):
        """Prove that it is over, image and all, though it is held still."""
        wait.until(f'{why!r} in the log of nova-compute', lambda: any(
            'Snapshot given up: ' in line and why in line
            for line in running.log.splitlines()), SOON)
        self.await_image_gone(running.image)
        self.assertTrue(running.faults.held.is_set())
        self.assertNotIn('Traceback', running.log)

    def await_image_gone(self, image):
        wait.until(f'end of image {image}',
                   lambda: not self.image_exists(image), SOON)

    def assert_right(self, running):
        self.await_end(running)
        self.assertIn('finished: strategy=', running.log)
        self.assert_image_whole(running.image,
                                acknowledged=running.acknowledged)


class BootingGuestTestCase(HeldUploadTestCase):
    """With guests that nobody waits for to boot, nor for their agent."""

    def make(self):
        server = servers.create(
            self.client, 'e2e',
            servers.image_id(self.client, 'snap-guest-noagent'), 'snap.tiny')
        self.addCleanup(servers.delete, self.client, server)
        return server
