# SPDX-License-Identifier: Apache-2.0
"""The keys of Nova and Glance, which the documentation tells to create."""

import pathlib

from devcloud import ceph
from devcloud import errors
from devcloud import state as cloud_state
from oslotest import base

# A pool that neither Nova nor Glance has anything to do with.
FOREIGN = 'foreign'

DENIED = r'Operation not permitted|Permission denied|access denied'

IMAGE_SIZE = '8M'


class RightsTest(base.BaseTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.cluster = ceph.cluster(cloud_state.State.default())
        cls.addClassCleanup(cls.cluster.ceph, 'osd', 'pool', 'rm', FOREIGN,
                            FOREIGN, '--yes-i-really-really-mean-it')
        cls.cluster.ceph('osd', 'pool', 'create', FOREIGN, '1')
        cls.cluster.rbd('pool', 'init', FOREIGN)
        cls.create(f'{FOREIGN}/secret')

    @classmethod
    def create(cls, image, user='admin'):
        cls.cluster.rbd('create', '--size', IMAGE_SIZE, image, user=user)

    def assert_usable(self, user, pool):
        """Check that a user can do with images what a snapshot does."""
        image = f'{pool}/rights'
        self.create(image, user)
        self.cluster.rbd('snap', 'create', f'{image}@snap', user=user)
        self.cluster.rbd('snap', 'protect', f'{image}@snap', user=user)
        self.cluster.rbd('clone', f'{image}@snap', f'{image}-clone',
                         user=user)
        self.cluster.rbd('flatten', '--no-progress', f'{image}-clone',
                         user=user)
        self.cluster.rbd('snap', 'unprotect', f'{image}@snap', user=user)
        self.cluster.rbd('snap', 'rm', '--no-progress', f'{image}@snap',
                         user=user)
        for made in (image, f'{image}-clone'):
            self.cluster.rbd('rm', '--no-progress', made, user=user)

    def assert_denied(self, command, *words, user):
        error = self.assertRaises(errors.CommandFailed, command, *words,
                                  user=user)
        self.assertRegex(error.output, DENIED)

    def assert_closed(self, user, pool):
        """Check that a user can neither see nor change images of a pool."""
        for words in (('ls', pool),
                      ('create', '--size', IMAGE_SIZE, f'{pool}/rights')):
            self.assert_denied(self.cluster.rbd, *words, user=user)

    def test_nova_can_use_its_pool_and_that_of_glance(self):
        for pool in ceph.POOLS:
            self.assert_usable('nova', pool)
        self.assertEqual(
            set(ceph.POOLS) | {FOREIGN},
            {pool['name'] for pool in self.cluster.ceph(
                'df', user='nova')['pools']}
            - {'device_health_metrics'})

    def test_nova_can_not_use_other_pools(self):
        self.assert_closed('nova', FOREIGN)
        self.assert_denied(self.cluster.rbd, 'info', f'{FOREIGN}/secret',
                           user='nova')

    def test_glance_can_use_its_pool_only(self):
        self.assert_usable('glance', 'images')
        for pool in ('vms', FOREIGN):
            self.assert_closed('glance', pool)

    def test_neither_can_administer_the_cluster(self):
        for user in ceph.USERS:
            for words in (('auth', 'ls'),
                          ('auth', 'get', 'client.admin'),
                          ('auth', 'caps', f'client.{user}', 'osd',
                           'allow *'),
                          ('osd', 'pool', 'create', 'another', '1'),
                          ('osd', 'pool', 'rm', FOREIGN, FOREIGN,
                           '--yes-i-really-really-mean-it'),
                          ('osd', 'down', '0'),
                          ('config', 'set', 'osd', 'osd_max_scrubs', '1')):
                self.assert_denied(self.cluster.ceph, *words, user=user)

    def test_only_services_can_read_their_keys(self):
        for user in ceph.USERS:
            self.assertEqual(0o640, self.mode(self.cluster.keyring(user)))
        for private in (self.cluster.keyring('admin'),
                        self.cluster.directory / 'client.nova.key'):
            self.assertEqual(0o600, self.mode(private))

    @staticmethod
    def mode(path):
        return pathlib.Path(path).stat().st_mode & 0o777
