# SPDX-License-Identifier: Apache-2.0
"""The selection of a strategy, and the refusal of a request."""

import os
import shutil

from devcloud import api
from devcloud import servers

from tests.e2e import base


class SelectionTest(base.CloudTestCase):

    CONFIGURATION = ('snapext.allowed_image_strategies=auto,backup,cold',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The flavor requests a strategy that requests may not ask for.
        admin = api.Client.admin(cls.state)
        cls.flavor = admin.post('nova-api', '/flavors', {'flavor': {
            'name': 'snap.selection', 'ram': 192, 'vcpus': 1, 'disk': 1,
        }})['flavor']['id']
        path = f'/flavors/{cls.flavor}'
        cls.addClassCleanup(admin.delete, 'nova-api', path)
        admin.post('nova-api', f'{path}/os-extra_specs', {
            'extra_specs': {'snapext:strategy': 'external'}})
        cls.server = cls.boot(flavor=cls.flavor)

    def take_snapshot(self, strategy=None):
        """Take a snapshot, and check it.

        :returns: the snapshot, and its image in Glance
        """
        snapshot = self.snapshot(self.server, strategy=strategy)
        self.assert_snapshot_complete(snapshot)
        return snapshot, self.image(snapshot.image)

    def assert_refused(self, strategy=None):
        """Check that a snapshot is refused, and that it changed nothing.

        :returns: the error that the user sees
        """
        definition = self.host.virsh('dumpxml', self.server)
        snapshot = self.snapshot(self.server, strategy=strategy)
        self.assertFalse(self.image_exists(snapshot.image))
        self.assertEqual(0, snapshot.host_space)
        self.assertEqual(definition, self.host.virsh('dumpxml', self.server))
        self.assertEqual('ACTIVE', servers.show(
            self.client, self.server)['status'])
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
        return self.refusal_text(self.server)

    def test_strategy_of_flavor_is_used(self):
        _snapshot, image = self.take_snapshot()
        self.assertEqual('external', image['snapext_strategy_used'])

    def test_request_overrides_flavor_and_is_removed_from_image(self):
        snapshot, image = self.take_snapshot('backup')
        self.assertEqual('backup', snapshot.strategy)
        self.assertEqual('backup', image['snapext_strategy_used'])
        self.assertEqual('filesystem', image['snapext_consistency'])
        self.assertRegex(image['snapext_frozen_at'],
                         r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$')
        self.assertEqual(self.server, image['instance_uuid'])
        self.assertNotIn('snapext_strategy', image)

    def test_request_that_is_not_allowed_is_refused_with_reason(self):
        text = self.assert_refused('native')
        self.assertIn('requested by the image property snapext_strategy', text)
        self.assertIn('this cloud allows auto, backup, cold', text)

    def test_request_for_unknown_strategy_is_refused_with_its_name(self):
        self.assertIn('Strategy bakcup', self.assert_refused('bakcup'))

    def test_one_unknown_name_refuses_the_whole_list(self):
        self.assertIn('it names hot, and',
                      self.assert_refused('hot,cold'))

    def test_auto_in_a_list_stands_for_the_strategies_of_the_host(self):
        snapshot, _image = self.take_snapshot('cold,auto')
        self.assertEqual('cold', snapshot.strategy)

    def test_flavor_that_is_not_allowed_is_refused_with_reason(self):
        self.configure('snapext.allowed_flavor_strategies=auto,backup')
        text = self.assert_refused()
        self.assertIn('requested by its flavor (snapext:strategy)', text)
        self.assertIn('this cloud allows auto, backup', text)

    def test_unsupported_strategy_is_refused_with_reason(self):
        self.action(self.server, 'os-stop', 'SHUTOFF')
        try:
            snapshot = self.snapshot(self.server)
            self.assertFalse(self.image_exists(snapshot.image))
            self.assertIn('external: the guest is shut off',
                          self.refusal_text(self.server))
            self.assert_nothing_left(self.server)
        finally:
            self.action(self.server, 'os-start', 'ACTIVE')
        self.await_records(self.server, 3)


class NextStrategyTest(base.CloudTestCase):
    """QEMU can't enter the work directory, as if AppArmor kept it out."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        closed = cls.state.nova / 'closed'
        closed.mkdir(exist_ok=True)
        cls.addClassCleanup(shutil.rmtree, closed)
        owner = cls.state.nova.stat()
        os.chown(closed, owner.st_uid, owner.st_gid)
        closed.chmod(0o700)
        cls.CONFIGURATION = (*cls.CONFIGURATION,
                             f'snapext.work_directory={closed}')
        cls.configure()
        cls.server = cls.shared_guest()

    def test_auto_goes_on_with_a_strategy_that_can_freeze_the_disk(self):
        snapshot = self.snapshot(self.server)
        self.assert_snapshot_complete(snapshot)
        self.assertEqual('external', snapshot.strategy)
        self.assertRegex(
            snapshot.log, 'taken by the strategy external, and not by '
            '.*backup: .*Permission denied')
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)

    def test_strategy_that_is_requested_alone_fails_and_leaves_nothing(self):
        snapshot = self.snapshot(self.server, strategy='backup')
        self.assertFalse(self.image_exists(snapshot.image))
        self.assert_nothing_left(self.server)
        self.assert_keeps_writing(self.server)
