# SPDX-License-Identifier: Apache-2.0
"""A resource, and a journal to record it in."""

import json
import os

from nova_snapext import journal
from tests.unit import base


class Thing(journal.Resource):

    kind = 'thing'

    def __init__(self, state='new'):
        self.state = state
        self.released = 0

    def record(self):
        return {'state': self.state}

    @classmethod
    def restore(cls, driver, target, record):
        return cls(**record)

    def release(self):
        self.released += 1


class JournalTestCase(base.TestCase):

    def setUp(self):
        super().setUp()
        self.plan_ = self.plan()
        self.path = os.path.join(
            self.journal, f'{self.plan_.instance.uuid}.json')

    def content(self):
        with open(self.path) as file:
            return json.load(file)
