# SPDX-License-Identifier: Apache-2.0

import copy
import dataclasses
import json

from oslotest import base

from nova_snapext import plan as planning
from nova_snapext import reason


class ReasonTest(base.BaseTestCase):

    def test_plain_text_is_hidden(self):
        self.assertEqual(reason.HIDDEN, reason.for_users('/secret'))

    def test_text_for_users_is_shown(self):
        self.assertEqual('raw', reason.for_users(reason.UserReason('raw')))
        self.assertEqual('raw', reason.for_users(
            reason.UserReason('/secret is raw', 'raw')))

    def test_text_made_of_one_for_users_is_hidden(self):
        made = f"{reason.UserReason('raw')} /secret"
        self.assertEqual(reason.HIDDEN, reason.for_users(made))

    def test_reason_for_users_is_text(self):
        # The journal contains the root disk, with its reason.
        disk = planning.RootDisk('vda', 'file', '/d', 'raw',
                                 reason.UserReason('it is a cdrom', 'cdrom'))
        content = json.loads(json.dumps(dataclasses.asdict(disk)))
        self.assertEqual('it is a cdrom', content['unsupported_reason'])
        self.assertEqual('cdrom', reason.for_users(
            copy.deepcopy(disk).unsupported_reason))
