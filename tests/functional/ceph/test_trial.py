# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext check --trial`` on a host whose disks are in Ceph."""

import argparse
import base64
import os
import shutil
from unittest import mock
import uuid

from nova_snapext.cmd.check import item
from nova_snapext.cmd.check import trial
from nova_snapext import exception
from nova_snapext.resources import rbd_snapshot
from nova_snapext.resources import trial_guest
from nova_snapext.strategies import backup
from tests.functional.ceph import base

SECRET = """
<secret private='yes'>
  <uuid>{uuid}</uuid>
  <usage type='ceph'><name>client.{user}</name></usage>
</secret>
"""


class TrialTest(base.CephTestCase):

    def setUp(self):
        super().setUp()
        self.driver.strategies['backup'] = backup.BackupStrategy(self.driver)
        self.configure('libvirt', images_type='rbd',
                       rbd_secret_uuid=self.store_key('nova'))
        self.checked = item.Host(argparse.Namespace(debug=False), is_nova=True,
                                 libvirt=True, driver=self.driver)

    def store_key(self, user):
        """Store the key of a user in libvirt.

        :returns: uuid of the secret
        """
        identity = str(uuid.uuid4())
        secret = self.host.get_connection().secretDefineXML(
            SECRET.format(uuid=identity, user=user))
        self.addCleanup(secret.undefine)
        secret.setValue(base64.b64decode(self.cluster.key(user)))
        return identity

    def found(self):
        return {one.name: one for one in trial.trial(self.checked)}

    def assert_nothing_is_left(self):
        self.assertEqual([], self.host.get_connection().listAllDomains())
        self.assertEqual([], self.cluster.images('vms'))
        self.assertEqual([], os.listdir(self.images))
        self.assertEqual([], os.listdir(self.journal))

    def test_each_strategy_freezes_reads_and_puts_back(self):
        found = self.found()
        self.assertEqual(
            {}, {name: one.text for name, one in found.items()
                 if one.status is not item.Status.OK})
        self.assertEqual(
            {'trial', 'trial rbd', 'trial backup', 'trial rbd (shut off)'},
            found.keys())
        self.assertIn('is removed', found['trial'].text)
        self.assert_nothing_is_left()

    def test_snapshot_that_is_left_in_ceph_is_reported(self):
        with mock.patch.object(rbd_snapshot.RbdSnapshot, 'release'):
            found = self.found()
        self.assertIn('The guest is not as before', found['trial rbd'].text)

    def test_next_trial_removes_what_a_killed_one_has_left(self):
        with mock.patch.object(trial_guest.TrialGuest, 'release',
                               side_effect=OSError('killed')):
            found = self.found()
        self.assertIs(item.Status.FAILED, found['trial'].status)
        self.assertNotEqual([], self.cluster.images('vms'))
        texts = [one.text for one in trial.trial(self.checked)]
        self.assertIn('which an earlier trial had left, is removed',
                      ' '.join(texts))
        self.assert_nothing_is_left()

    def test_guest_stays_until_its_image_is_removed(self):
        with mock.patch.object(trial_guest.ceph, 'remove_image',
                               side_effect=exception.CephError(
                                   action='remove it', reason='busy')):
            self.found()
        shutil.rmtree(trial.directory())
        texts = [one.text for one in trial.trial(self.checked)]
        self.assertIn('which an earlier trial had left, is removed',
                      ' '.join(texts))
        self.assert_nothing_is_left()

    def test_user_without_a_key_in_libvirt_is_reported(self):
        self.configure('libvirt', rbd_secret_uuid=None)
        self.assertIn('[libvirt]rbd_secret_uuid is not',
                      self.found()['trial'].text)
        self.assert_nothing_is_left()

    def test_refused_image_is_reported(self):
        self.use_user('vms', pool='images')
        found = self.found()
        self.assertIs(item.Status.FAILED, found['trial'].status)
        self.assertIn('could not write to the pool images',
                      found['trial'].text)
        self.assert_nothing_is_left()
