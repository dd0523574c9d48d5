# SPDX-License-Identifier: Apache-2.0
"""A guest agent that does not respond, or has frozen for somebody else."""

import json

from devcloud import errors
from devcloud import wait

from tests.e2e import base

# Seconds for which the agent is stopped: longer than nova-compute waits for
# the freeze and for the thaw.
HANG_SECONDS = 15

# Runs in the guest. The agent can return the result of guest-exec before it is
# stopped.
HANG = ('(sleep 1; kill -STOP $(pidof qemu-ga); '
        f'sleep {HANG_SECONDS}; kill -CONT $(pidof qemu-ga)) &')


class HungAgentTest(base.CloudTestCase):

    CONFIGURATION = ('snapext.agent_timeout=3',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.boot()

    def agent_command(self, command, **arguments):
        return self.host.virsh(
            'qemu-agent-command', '--timeout', '2', self.server, json.dumps(
                {'execute': command, 'arguments': arguments}))

    def agent_responds(self):
        try:
            self.agent_command('guest-sync', id=1)
        except errors.CommandFailed:
            return False
        return True

    def test_hung_agent_is_given_up_in_time_and_never_freezes(self):
        self.agent_command('guest-exec', path='/bin/sh', arg=['-c', HANG])
        wait.until('the agent to hang', lambda: not self.agent_responds(), 30)
        snapshot = self.snapshot(self.server)
        self.assertEqual('crash', snapshot.consistency)
        self.assertIn('Guest agent is not responding', snapshot.log)
        self.assert_snapshot_complete(snapshot)
        wait.until('the agent to respond', self.agent_responds, 60)
        # It was not told to freeze, and so does not do so now.
        self.assertIn('thawed', self.agent_command('guest-fsfreeze-status'))
        second = self.snapshot(self.server)
        self.assertEqual('filesystem', second.consistency)
        self.assert_snapshot_complete(second)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_freeze_of_another_program_outlasts_a_snapshot(self):
        self.host.virsh('domfsfreeze', self.server)
        try:
            snapshot = self.snapshot(self.server)
            self.assertIn('frozen',
                          self.agent_command('guest-fsfreeze-status'))
        finally:
            self.host.virsh('domfsthaw', self.server)
        self.assertEqual('crash', snapshot.consistency)
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
