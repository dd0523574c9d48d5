# SPDX-License-Identifier: Apache-2.0
"""A snapshot of an RBD image that qemu-nbd exports."""

from __future__ import annotations

from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import rbd_nbd
from nova_snapext.resources import nbd_export


class RbdExport(nbd_export.NbdExport):
    """A qemu-nbd process that exports an RBD snapshot.

    Recorded, restored and released as any NBD export.
    """

    kind = 'RBD export'

    def serve_snapshot(self, snapshot: ceph.SnapSpec, export: str) -> None:
        """Start the export.

        :param export: its name
        :raises ProcessExecutionError: qemu-nbd can't open the snapshot
        :raises OSError: qemu-nbd can't be run
        :raises TimeoutExpired: Ceph does not respond
        """
        self._server = rbd_nbd.serve(
            snapshot, export, self._directory.socket,
            self._directory.pid_file, self._instance)
