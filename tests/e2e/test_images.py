# SPDX-License-Identifier: Apache-2.0
"""An incomplete image that its user has protected."""

import json

from devcloud import compute
from devcloud import wait

from tests.e2e import held
from tests.e2e import killed
from tests import in_full

PATCH = {'Content-Type': 'application/openstack-images-v2.1-json-patch'}


@in_full.only
class ProtectedImageTest(killed.KilledTestCase):

    def protect(self, image, is_protected):
        patch = [{'op': 'replace', 'path': '/protected',
                  'value': is_protected}]
        self.client.open('PATCH', 'glance', f'/images/{image}',
                         json.dumps(patch).encode(), PATCH).close()

    def status(self):
        """Return the exit code of the command, and its JSON."""
        run = self.command('status', '--format', 'json')
        return run.returncode, json.loads(run.stdout)

    def test_image_excludes_no_snapshot_and_is_deleted_when_it_can_be(self):
        image = self.kill_during_snapshot()
        self.protect(image, True)
        self.addCleanup(lambda: self.image_exists(image) and
                        self.protect(image, False))
        compute.start(self.state)

        def reason():
            _code, status = self.status()
            return [left['reason'] for left in status['images']
                    if left['image_id'] == image and left['reason']]

        wait.until('the refusal of the deletion', reason, held.SOON)
        self.assertIn('it is protected', reason()[0])
        self.assertEqual(1, self.status()[0])
        for _ in range(2):
            self.assert_snapshot_complete(self.snapshot(
                self.server, add_cleanup=self.addCleanup))

        self.protect(image, False)
        # The next snapshot of the instance tries it again.
        self.assert_snapshot_complete(self.snapshot(
            self.server, add_cleanup=self.addCleanup))
        wait.until('the deletion of the image',
                   lambda: not self.image_exists(image), held.SOON)
        wait.until('the end of what waits',
                   lambda: self.status()[0] == 0, held.SOON)
