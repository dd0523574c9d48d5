# SPDX-License-Identifier: Apache-2.0

from nova_snapext.freeze import backup
from tests.pci import base


class PassthroughTest(base.PassthroughTestCase):

    def test_a_backup_does_not_touch_devices(self):
        plan = self.boot(self.qcow2())
        self.assertEqual(sorted(base.MACS), self.working_functions())
        before = plan.guest.get_xml_desc()
        with backup.BackupStrategy(self.driver).freeze(plan):
            self.assertEqual(before, plan.guest.get_xml_desc())
            self.assertEqual(sorted(base.MACS), self.working_functions())
        self.assertEqual(before, plan.guest.get_xml_desc())
        self.assertEqual([], self.removed)
