# SPDX-License-Identifier: Apache-2.0
"""Each finding of ``nova-snapext check`` about Ceph, on a real host.

tests/functional/ceph/test_trial.py has a snapshot that is left in Ceph.
"""

from devcloud import ceph

from tests.e2e import wrong_host

failed = wrong_host.failed

RBD = 'libvirt.images_type=rbd'
DIRECT = (RBD, 'snapext.rbd_image_pool=images')
COPIED = ('snapext.rbd_image_user=nova', 'snapext.rbd_image_pool=images')

NOBODY = 'http://127.0.0.1:1'


class CephTest(wrong_host.CheckTestCase):

    def test_host_without_a_fault_has_no_finding(self):
        items, is_found = self.check(wrong_host.Finding(
            'ok', 'ceph', 'Glance has the API for locations', DIRECT))
        self.assertEqual([], [one for one in wrong_host.problems(items)
                              if one['name'] != 'ceph'])
        self.assertTrue(is_found, wrong_host.problems(items))

    def test_missing_package_is_reported(self):
        bindings = 'find /usr/lib*/python3* -name "rbd.*" -delete'
        self.assert_found(
            failed('ceph', 'install python3-rbd', RBD,
                   script=f'change /usr; {bindings}'),
            failed('ceph', 'Install qemu-block-extra', RBD,
                   script='change /usr; '
                          'find /usr/lib* -name block-rbd.so -delete'),
            failed('ceph', 'could not be asked for its drivers', RBD,
                   script='change /usr; rm /usr/bin/qemu-nbd'))

    def test_pool_that_nova_can_not_use_is_reported(self):
        self.assert_found(
            failed('ceph', 'client.glance may not write to the Ceph pool vms',
                   RBD, 'libvirt.rbd_user=glance'),
            failed('ceph', 'Ceph does not let client.nobody in', RBD,
                   'libvirt.rbd_user=nobody'),
            failed('ceph', 'error opening pool \'nowhere\'', RBD,
                   'libvirt.images_rbd_pool=nowhere'),
            failed('ceph', 'error opening pool \'nowhere\'', RBD,
                   'snapext.rbd_image_pool=nowhere'))

    def test_user_of_images_that_can_not_write_them_is_reported(self):
        bindings = 'find /usr/lib*/python3* -name "rbd.*" -delete'
        self.assert_found(
            failed('ceph', 'rbd_image_user is set, and rbd_image_pool is not',
                   'snapext.rbd_image_user=nova'),
            failed('ceph', 'install python3-rbd', *COPIED,
                   script=f'change /usr; {bindings}'),
            failed('ceph', 'Ceph does not let client.nobody in', *COPIED,
                   'snapext.rbd_image_user=nobody'),
            failed('ceph', 'rbd_image_store is fast, and Glance has the',
                   *COPIED, 'snapext.rbd_image_store=fast'))

    def test_glance_that_takes_no_location_is_reported(self):
        self.assert_found(
            failed('ceph', 'Nova sends no service token', *DIRECT,
                   'service_user.send_service_user_token=False'),
            failed('ceph', 'Glance does not tell whether it takes locations',
                   *DIRECT, f'glance.endpoint_override={NOBODY}'),
            failed('ceph', 'rbd_image_store is fast, and Glance has the',
                   *DIRECT, 'snapext.rbd_image_store=fast'))

    def test_cluster_that_does_not_respond_is_reported(self):
        cluster = ceph.cluster(self.state)
        self.assert_found(failed(
            'ceph', 'Ceph did not respond within 5 seconds', RBD,
            'snapext.operation_timeout=5',
            'libvirt.images_rbd_ceph_conf=$D/ceph.conf',
            script='sed "s/^mon host.*/mon host = v2:127.0.0.1:1/" '
                   f'{cluster.configuration} > $D/ceph.conf'))
