# SPDX-License-Identifier: Apache-2.0

import pathlib
import tempfile
import unittest
from unittest import mock

from devcloud import config
from devcloud import errors
from devcloud import shell
from devcloud import state as cloud_state


class OverrideTest(unittest.TestCase):

    def setUp(self):
        self.state = cloud_state.State(pathlib.Path(self.enterContext(
            tempfile.TemporaryDirectory())))
        # The cloud's user may not exist here.
        self.enterContext(mock.patch.object(shell.shutil, 'chown'))

    def override(self, *settings, reset=False):
        return config.override(self.state, settings, reset)

    def glance(self):
        return config.parse(
            (self.state.etc / 'glance/glance-api.conf').read_text())

    def test_setting_without_service_is_of_nova_compute(self):
        self.assertEqual({'nova-compute'},
                         self.override('libvirt.images_type=rbd'))
        self.assertEqual({'libvirt': {'images_type': 'rbd'}},
                         config.overrides(self.state, 'nova-compute'))
        self.assertEqual({}, config.overrides(self.state, 'glance'))

    def test_setting_of_glance_is_merged_into_its_file(self):
        self.assertEqual({'glance'}, self.override(
            'glance:glance_store.default_backend=ceph'))
        self.assertEqual('ceph',
                         self.glance()['glance_store']['default_backend'])
        self.assertIn('connection', self.glance()['database'])

    def test_same_setting_changes_nothing(self):
        for setting in ('glance.num_retries=1', 'glance:DEFAULT.debug=true'):
            self.assertNotEqual(set(), self.override(setting))
            self.assertEqual(set(), self.override(setting))

    def test_later_settings_are_added(self):
        self.override('glance:DEFAULT.debug=true')
        self.override('glance:DEFAULT.workers=3', 'a.b=c')
        self.override('a.d=e')
        self.assertEqual({'DEFAULT': {'debug': 'true', 'workers': '3'}},
                         config.overrides(self.state, 'glance'))
        self.assertEqual({'a': {'b': 'c', 'd': 'e'}},
                         config.overrides(self.state, 'nova-compute'))

    def test_reset_undoes_what_is_not_set_again(self):
        self.override('glance:glance_store.default_backend=ceph', 'a.b=c')
        self.assertEqual({'glance'}, self.override('a.b=c', reset=True))
        self.assertEqual('local',
                         self.glance()['glance_store']['default_backend'])
        self.assertEqual({'nova-compute'}, self.override(reset=True))
        self.assertEqual(set(), self.override(reset=True))

    def test_value_may_contain_separators(self):
        self.override('glance.endpoint_override=http://127.0.0.1:1/?a=b')
        self.assertEqual(
            {'glance': {'endpoint_override': 'http://127.0.0.1:1/?a=b'}},
            config.overrides(self.state, 'nova-compute'))

    def test_wrong_form_is_refused_and_changes_nothing(self):
        for setting in ('', 'a.b', 'a=b', '.b=c', 'a.=c', 'nova-api:a.b=c',
                        ':a.b=c'):
            with self.assertRaisesRegex(errors.CloudError, r'\[SERVICE:\]'):
                self.override('x.y=z', setting)
            self.assertEqual({}, config.overrides(self.state,
                                                  'nova-compute'))


class CephTest(unittest.TestCase):

    def setUp(self):
        self.state = cloud_state.State(pathlib.Path(self.enterContext(
            tempfile.TemporaryDirectory())))

    def stores(self):
        return config._glance(self.state)['DEFAULT']['enabled_backends']

    def test_glance_has_a_store_in_ceph_only_if_there_is_ceph(self):
        self.assertEqual('local:file', self.stores())
        self.assertNotIn('ceph', config._glance(self.state))
        self.state.ceph.mkdir()
        self.assertEqual('local:file,ceph:rbd', self.stores())
        self.assertEqual('glance',
                         config._glance(self.state)['ceph']['rbd_store_user'])

    def test_options_of_ceph_leave_nova_on_local_disks(self):
        hypervisor = mock.Mock(state_dir=self.state.libvirt, uri='x')
        self.state.ceph.mkdir()
        libvirt = config._nova_compute(self.state, hypervisor)['libvirt']
        self.assertEqual('qcow2', libvirt['images_type'])
        self.assertEqual(str(self.state.ceph / 'ceph.conf'),
                         str(libvirt['images_rbd_ceph_conf']))
