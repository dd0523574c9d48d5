# SPDX-License-Identifier: Apache-2.0

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from tests.functional.ceph import base


class RightsTest(base.CephTestCase):
    """What a user may do in a pool is found out without a trace."""

    def refused(self, pool):
        return self.assertRaises(
            exception.CephError, ceph.check_writable, pool)

    def test_user_with_the_right_passes(self):
        for pool in ('vms', 'images'):
            ceph.check_writable(pool)
            with self.cluster.pool(pool) as opened:
                self.assertNotIn(ceph.NO_OBJECT, [
                    found.key for found in opened.list_objects()])

    def test_user_without_the_right_is_forbidden(self):
        for user in ('reader', 'vms'):
            self.use_user(user)
            ceph.check_writable('vms')
            self.assertTrue(ceph.is_forbidden(self.refused('images')))

    def test_pool_that_does_not_exist_is_no_lack_of_rights(self):
        error = self.refused('imags')
        self.assertFalse(ceph.is_forbidden(error))
        self.assertIn('imags', str(error))

    def test_cluster_that_hangs_is_a_timeout(self):
        self.configure('snapext', operation_timeout=2)
        self.cluster.suspend_osd()
        self.assertIsInstance(self.refused('vms'), exception.CephTimeout)
        self.cluster.resume()
        self.await_calls()
