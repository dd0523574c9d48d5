# SPDX-License-Identifier: Apache-2.0

import dataclasses
from unittest import mock

from nova_snapext.strategies import native
from tests.unit import base

DOMAIN = """
<domain><devices>
  <disk type='file'><source file='/i/1'/><target dev='vda'/></disk>
  <disk type='file'><source file='/i/2'/><target dev='vdb'/></disk>
</devices></domain>
"""


class FirstDiskTest(base.TestCase):

    def reason(self, target):
        plan = self.plan(dataclasses.replace(base.QCOW2, target=target),
                         domain_xml=DOMAIN)
        return native.NativeStrategy(mock.Mock()).unsupported_reason(plan)

    def test_root_disk_that_is_the_first_disk_is_supported(self):
        self.assertIsNone(self.reason('vda'))

    def test_root_disk_that_is_not_the_first_disk_is_refused(self):
        # Nova would take the first one.
        reason = self.reason('vdb')
        self.assertIn('vda', reason)
        self.assertIn('vdb', reason)

    def test_container_has_no_target_and_is_supported(self):
        self.assertIsNone(self.reason(''))
