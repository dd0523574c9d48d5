# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a guest that has written 1 GiB and deleted it again.

Three in turns: ours, Nova's own, and ours with a trim. As a program, on a
cloud of `tools/cloud up`::

    python -m tests.e2e.measure_trim

Each snapshot is a line: its name, the bytes of its image, the seconds from the
request to the end of the snapshot, and the seconds of the trim.
"""

import sys
import time
import unittest

from devcloud import layout

from tests.e2e import test_trim

ROUNDS = 3
GIB = 1024 * layout.MIB


class Measurement(test_trim.TrimTestCase):

    CONFIGURATION = (*test_trim.TrimTestCase.CONFIGURATION,
                     'snapext.allowed_image_strategies=auto,native')
    FLAVOR = 'snap.mixed'
    MORE = layout.Partition(
        0x83, layout.RECORDS.end, GIB + 256 * layout.MIB)

    def measure(self, name, **properties):
        began = time.monotonic()
        snapshot = self.snapshot(self.server, **properties)
        seconds = time.monotonic() - began
        self.assert_snapshot_complete(snapshot)
        trim = test_trim.GAIN.search(snapshot.log)
        print(name, self.image(snapshot.image)['size'], f'{seconds:.1f}',
              trim[4] if trim else '-', file=sys.__stdout__, flush=True)

    def test_snapshots_in_turns(self):
        for _ in range(ROUNDS):
            self.write_and_delete(GIB)
            self.measure('ours')
            self.measure("Nova's own", strategy='native')
            self.measure('ours, trimmed', snapext_trim='yes')


if __name__ == '__main__':
    unittest.main(verbosity=0)
