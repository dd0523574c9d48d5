# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext status`` during a snapshot, and after nova-compute's end."""

import json

from devcloud import compute
from devcloud import wait

from tests.e2e import held
from tests.e2e import killed


class StatusTest(killed.KilledTestCase):

    def snapshots(self):
        run = self.command('status', '--format', 'json')
        return json.loads(run.stdout)['snapshots']

    def kill(self):
        # At the end of an upload, before its response.
        self.while_it_runs = self.snapshots()
        super().kill()

    def test_progress_is_told_and_ends_with_nova_compute(self):
        image = self.kill_during_snapshot()
        [snapshot] = self.while_it_runs
        self.assertEqual(
            (self.server, image, 'external', 'running', 'uploading',
             ['overlay']),
            (*(snapshot[name] for name in (
                'instance_uuid', 'image_id', 'strategy', 'state', 'phase')),
             [file['kind'] for file in snapshot['on_host']]))
        self.assertGreater(snapshot['sent'], 0)
        [snapshot] = self.snapshots()
        self.assertEqual(('waiting', None),
                         (snapshot['state'], snapshot['phase']))
        compute.start(self.state)
        wait.until('the end of what waits', lambda: not self.snapshots(),
                   held.SOON)
