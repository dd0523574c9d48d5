# SPDX-License-Identifier: Apache-2.0

from unittest import mock

from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.resources import rbd_clone
from tests.unit import base


class RbdCloneTest(base.TestCase):

    def test_error_names_the_commands_that_remove_a_finished_clone(self):
        # "rbd snap purge" skips its snapshot, which is protected.
        clone = rbd_clone.RbdClone(
            mock.Mock(), self.plan(), ceph.ImageSpec('images', 'id'), True)
        with mock.patch.object(ceph, 'remove_image',
                               side_effect=exception.CephTimeout(
                                   action='remove', seconds='1')):
            error = self.assertRaises(
                exception.ReleaseFailed, clone.release)
        for command in ('rbd snap unprotect images/id@snap',
                        'rbd snap rm images/id@snap', 'rbd rm images/id'):
            self.assertIn(command, str(error))
