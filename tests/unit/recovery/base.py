# SPDX-License-Identifier: Apache-2.0
"""A driver, and interrupted snapshots in its journal."""

import json
import os
import pathlib
from unittest import mock

import fixtures
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt import fake
from oslo_utils.fixture import uuidsentinel as uuids

from nova_snapext import driver
from nova_snapext import journal
from nova_snapext.recovery import recover
from nova_snapext.resources import overlay
from nova_snapext.upload import service_user
from tests.unit import base


class RecoveryTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.flags(instances_path=self.useFixture(fixtures.TempDir()).path)
        self.driver = driver.SnapextDriver(fake.FakeVirtAPI(), read_only=True)
        self.patch(self.driver._host, 'get_guest').side_effect = (
            nova_exception.InstanceNotFound(instance_id='i'))
        self.images = self.patch(self.driver, '_image_api')
        self.plan_ = self.plan()
        self.instance_ = self.plan_.instance
        self.instance_.host = self.CONF.host
        self.get = self.patch(objects.Instance, 'get_by_uuid')
        self.get.return_value = self.instance_
        self.service = nova_context.RequestContext(user_id='nova')
        self.patch(service_user, 'context').return_value = self.service

    def patch(self, target, name):
        return self.useFixture(fixtures.MockPatchObject(target, name)).mock

    def leave(self, *records, strategy='external'):
        """Write an entry, as an interrupted snapshot leaves it.

        :param records: kind, data, and True if it blocks a start
        """
        with mock.patch.object(journal.JournalEntry, 'close'), \
                journal.new_entry(self.plan_, strategy) as entry:
            entry.records = [
                journal.JournalRecord(kind, data, bool(blocks_start))
                for kind, data, *blocks_start in records]
            entry.write()
        return entry

    def leave_other(self, *records):
        """Write an entry of another instance."""
        plan = self.plan_
        self.plan_ = self.plan()
        self.plan_.instance.uuid = uuids.other
        self.leave(*records)
        self.plan_ = plan

    def recover_all(self):
        """Recover all interrupted snapshots, one after the other.

        :returns: whether nothing is left
        """
        done = [recover.recover_instance(self.driver, entry.instance_uuid)
                for entry in journal.entries()]
        return all(done)

    def left(self):
        """Return the kinds of resources in the journal's only entry."""
        [path] = pathlib.Path(self.journal).glob('*.json')
        return [record['kind'] for record
                in json.loads(path.read_text())['records']]

    def overlay(self):
        """Create an overlay.

        :returns: its path, and its record for leave()
        """
        left = overlay.Overlay(self.driver._host, self.plan_)
        os.makedirs(os.path.dirname(left.path), exist_ok=True)
        pathlib.Path(left.path).touch()
        return left.path, ('overlay', left.record(), True)
