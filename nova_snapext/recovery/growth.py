# SPDX-License-Identifier: Apache-2.0
"""Overlays that grow while their merge waits for its next try.

A merge that does not gain on its guest is aborted, and tried again much later.
The guest goes on to write, and QEMU pauses each guest that writes to a file
system without space.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import os

from oslo_log import log as logging

from nova_snapext import checks
from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import overlay

LOG = logging.getLogger(__name__)

# Seconds between two checks of the free space. A try begins while there is
# space for two more, and checks it each second from then on.
INTERVAL = 10


def overlays() -> dict[str, str]:
    """Return the paths of the overlays in the journal, by instance uuid."""
    return {entry.instance_uuid: path
            for entry in journal.entries() for record in entry.records
            if record.kind == overlay.Overlay.kind and
            isinstance(path := record.data.get('path'), str)}


class GrowthCheck:
    """Finds the overlays that grow and will soon have no space."""

    def __init__(self) -> None:
        self._space: dict[str, checks.FreeSpaceCheck] = {}
        self._sizes: dict[str, int] = {}

    def run(self, paths: Mapping[str, str],
            ) -> Iterator[tuple[str, exception.InsufficientSpace]]:
        """Compare the overlays and their free space with the last run.

        :param paths: what :func:`overlays` has returned
        :returns: uuids of instances, and what they lack. The overlay of a
            guest that is off does not grow.
        """
        for uuid in self._space.keys() - paths.keys():
            del self._space[uuid]
            self._sizes.pop(uuid, None)
        for uuid, path in paths.items():
            check = self._space.setdefault(uuid, checks.FreeSpaceCheck(
                planning.UnknownInstance(uuid, ''), [os.path.dirname(path)],
                INTERVAL))
            try:
                size = os.stat(path).st_blocks
                shortage = check.run()
            except OSError as error:
                LOG.debug('The free space for %(path)s is not known: '
                          '%(error)s', {'path': path, 'error': error})
                continue
            grows = size > self._sizes.get(uuid, size)
            self._sizes[uuid] = size
            if shortage is not None and grows:
                yield uuid, shortage
