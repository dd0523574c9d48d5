# SPDX-License-Identifier: Apache-2.0
"""A guest agent that is connected, and does not answer."""

import json

from devcloud import errors
from devcloud import wait

from tests.e2e import base

# Seconds that it is silent for: longer than freeze and thaw are waited for.
SILENCE = 15

# In the guest. It is told, and then can't tell any more that it was.
HANG = ('(sleep 1; kill -STOP $(pidof qemu-ga); '
        f'sleep {SILENCE}; kill -CONT $(pidof qemu-ga)) &')


class HungAgentTest(base.CloudTestCase):

    CONFIGURATION = ('snapext.agent_timeout=3',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def agent(self, command, **arguments):
        return self.host.virsh(
            'qemu-agent-command', '--timeout', '2', self.server, json.dumps(
                {'execute': command, 'arguments': arguments}))

    def answers(self):
        try:
            self.agent('guest-sync', id=1)
        except errors.CommandFailed:
            return False
        return True

    def test_it_fails_the_snapshot_in_time_and_the_guest_goes_on(self):
        self.agent('guest-exec', path='/bin/sh', arg=['-c', HANG])
        wait.until('the agent to be silent', lambda: not self.answers(), 30)
        shot = self.snapshot(self.server)
        self.assertIsNone(shot.strategy)
        self.assertIn('could not be thawed', shot.log)
        self.assertIn('virsh domfsthaw', shot.log)
        self.assertFalse(self.image_exists(shot.image))
        wait.until('the agent to answer', self.answers, 60)
        # What is left of the first, perhaps frozen filesystems, goes first.
        after = self.snapshot(self.server)
        self.assertEqual('filesystem', after.consistency)
        self.assert_snapshot_right(after)
        self.assert_nothing_left(self.server)
        self.assert_writes_on(self.server)
