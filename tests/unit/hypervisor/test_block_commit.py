# SPDX-License-Identifier: Apache-2.0

from unittest import mock

import fixtures
import libvirt

from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from tests.unit import base

COMMIT_READY = ('<mirror type="file" job="active-commit" ready="yes">'
                '<source file="/i/disk"/></mirror>')
COMMIT_RUNNING = COMMIT_READY.replace(' ready="yes"', '')
FOREIGN_COPY = ('<mirror type="file" job="copy"><source file="/elsewhere"/>'
                '</mirror>')


def definition(*paths, mirror='', qemu='1'):
    """Return the definition of a guest with a backing chain, active first."""
    backing = '<backingStore/>'
    for path in reversed(paths[1:]):
        backing = (f'<backingStore type="file"><source file="{path}"/>'
                   f'{backing}</backingStore>')
    return (f'<domain id="{qemu}"><devices><disk type="file">'
            f'<source file="{paths[0]}"/>{backing}{mirror}'
            f'<target dev="vda"/></disk></devices></domain>')


class ActiveCommitTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(operation_timeout=1, group='snapext')
        self.useFixture(fixtures.MockPatchObject(
            block_commit, 'POLL_INTERVAL', 0))
        plan = self.plan()
        self.guest = plan.guest
        self.pivot = self.guest.get_block_device.return_value.abort_job
        self.before_pivot = mock.Mock()
        self.commit = block_commit.ActiveCommit(
            plan, '/i/overlay', self.before_pivot)

    def run_commit(self, *definitions):
        self.guest.get_xml_desc.side_effect = definitions
        return self.commit.run(self.guest)

    def assert_fails(self, reason, *definitions):
        error = self.assertRaises(
            exception.CommitFailed, self.run_commit, *definitions)
        self.assertIn(reason, str(error))

    def test_overlay_is_committed_and_guest_pivots(self):
        chain = ('/i/overlay', '/i/disk', '/i/base')
        self.assertIs(block_commit.CommitState.MERGED, self.run_commit(
            definition(*chain),
            definition(*chain, mirror=COMMIT_RUNNING),
            definition(*chain, mirror=COMMIT_READY),
            definition(*chain[1:])))
        self.guest.commit_block.assert_called_once_with(
            'vda', '/i/disk', '/i/overlay',
            libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        self.before_pivot.assert_called_once_with()
        self.pivot.assert_called_once_with(async_=True, pivot=True)

    def test_overlay_below_another_is_committed_without_pivot(self):
        chain = ('/i/top', '/i/overlay', '/i/disk')
        self.assertIs(block_commit.CommitState.MERGED, self.run_commit(
            definition(*chain), definition('/i/top', '/i/disk')))
        self.guest.commit_block.assert_called_once_with(
            'vda', '/i/disk', '/i/overlay', 0)
        self.pivot.assert_not_called()

    def test_guest_on_its_disk_needs_no_commit(self):
        self.assertIs(block_commit.CommitState.NOT_THERE,
                      self.run_commit(definition('/i/disk')))
        self.guest.commit_block.assert_not_called()

    def test_guest_in_another_qemu_ends_commit(self):
        self.assertIs(block_commit.CommitState.ENDED, self.run_commit(
            definition('/i/overlay', '/i/disk'),
            definition('/i/overlay', '/i/disk', qemu='2')))

    def test_unknown_chain_is_named_in_error(self):
        self.assert_fails('is on /i/disk <- /i/between <- /i/overlay',
                          definition('/i/overlay', '/i/between', '/i/disk'))
        self.guest.commit_block.assert_not_called()

    def test_changed_chain_is_named_in_error(self):
        self.assert_fails('is now on /i/disk <- /i/overlay <- /i/top',
                          definition('/i/overlay', '/i/disk'),
                          definition('/i/top', '/i/overlay', '/i/disk'))

    def test_foreign_job_is_named_in_error(self):
        self.assert_fails('has the job \'copy\'', definition(
            '/i/overlay', '/i/disk', mirror=FOREIGN_COPY))

    def test_foreign_job_on_inner_overlay_fails_commit(self):
        self.guest.block_job_info.return_value = {
            'type': libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL}
        self.assert_fails('has a job', definition(
            '/i/top', '/i/overlay', '/i/disk'))

    def test_ended_job_without_merge_fails_commit(self):
        chain = ('/i/overlay', '/i/disk')
        self.assert_fails('is still on the overlay', definition(*chain),
                          definition(*chain))

    def test_stalled_job_fails_commit(self):
        self.guest.block_job_info.return_value = {'cur': 3, 'end': 8}
        self.useFixture(fixtures.MockPatch(
            'oslo_utils.timeutils.now', side_effect=range(100, 200)))
        self.assert_fails('at 3 of 8 bytes', *[definition(
            '/i/overlay', '/i/disk', mirror=COMMIT_RUNNING)] * 9)
