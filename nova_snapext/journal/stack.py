# SPDX-License-Identifier: Apache-2.0
"""An ExitStack of resources that survives a crash, because of the journal."""

from __future__ import annotations

import contextlib

from nova_snapext.journal import file
from nova_snapext.journal import resource as journal_resource


class ReleaseStack(contextlib.ExitStack):
    """An ExitStack that keeps its resources in the journal.

    :param entry: the entry of the snapshot
    """

    def __init__(self, entry: file.JournalEntry):
        super().__init__()
        self._entry = entry
        self._records: dict[journal_resource.Resource,
                            file.JournalRecord] = {}

    def add(self, resource: journal_resource.Resource) -> None:
        """Record a resource, and release it when the stack is left.

        Call this before the resource is created.

        :raises OSError: the record can't be written; do not create the
            resource
        """
        self._records[resource] = self._entry.add(resource)
        self.callback(self._release, resource)

    def has(self, resource: journal_resource.Resource) -> bool:
        """Return whether a resource is added, and not released yet."""
        return resource in self._records

    def mark_released(self, resource: journal_resource.Resource) -> None:
        """Remove the record of a resource that is already released."""
        self._entry.remove(self._records.pop(resource))

    def mark_replaced(self, resource: journal_resource.Resource) -> None:
        """Remove the record of a released resource whose name is used again.

        A second release would remove what has the name then.

        :raises JournalFailed: the journal may still have the record; do not
            use the name
        """
        self._entry.remove_for_good(self._records.pop(resource))

    def _release(self, resource: journal_resource.Resource) -> None:
        if resource in self._records:
            resource.release()
            self.mark_released(resource)
