# SPDX-License-Identifier: Apache-2.0
"""A disk that qemu-nbd exports for one snapshot."""

from __future__ import annotations

import typing as ty

from nova.virt.libvirt import driver as libvirt_driver

from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import qemu_nbd
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext.resources import disk_definition
from nova_snapext.resources import work_directory


class NbdExport(journal.Resource):
    """A qemu-nbd process that exports a disk on a work directory's socket.

    Recorded: the path of the work directory. Restored: as recorded. Released:
    the process is stopped; after a restart of nova-compute, every qemu-nbd
    on the socket is.

    :param instance_uuid: uuid of the instance, for error messages
    """

    kind = 'NBD export'
    record_schema = schema.object_of(directory=schema.PATH)

    def __init__(self, instance_uuid: str,
                 directory: work_directory.WorkDirectory):
        self._instance = instance_uuid
        self._directory = directory
        self._server: qemu_nbd.Server | None = None

    def record(self) -> dict[str, ty.Any]:
        return {'directory': self._directory.path}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> NbdExport:
        return cls(target.instance.uuid,
                   work_directory.WorkDirectory.of_record(
                       record['directory'], target))

    def __str__(self) -> str:
        return f'the NBD export on the socket {self._directory.socket}'

    def serve(self, disk: planning.RootDisk, snapshot: str | None = None,
              guest: domain.Domain | None = None) -> None:
        """Start the export.

        :param snapshot: name of the internal snapshot to export; None for
            the disk's current content
        :param guest: the guest of the disk. While it runs, the disk must have
            the backing chain that the guest uses
        :raises ProcessExecutionError: qemu-nbd can't open the disk
        :raises UnexpectedHeader: a header in its chain is not as expected
        :raises OSError: qemu-nbd can't be run
        :raises TimeoutExpired: the disk's storage does not respond
        """
        self._server = qemu_nbd.serve(
            disk, None if guest is None else _base_chain(disk, guest),
            self._directory.socket, self._directory.pid_file, self._instance,
            snapshot)

    def serve_unlocked(self, disk: planning.RootDisk,
                       guest: domain.Domain) -> None:
        """Start an export of a disk that its guest may be using.

        It is good for a sample only: see :func:`qemu_nbd.serve_unlocked`,
        also for what is raised.
        """
        self._server = qemu_nbd.serve_unlocked(
            disk, _base_chain(disk, guest), self._directory.socket,
            self._directory.pid_file, self._instance)

    def release(self) -> None:
        servers = ([self._server] if self._server is not None
                   else qemu_nbd.servers_on(self._directory.socket,
                                            self._instance))
        for server in servers:
            server.stop()


def _base_chain(disk: planning.RootDisk,
                guest: domain.Domain) -> list[str | None] | None:
    """Return what a running guest uses below a disk; None if that is unknown.

    libvirt has read it when the guest started, before the guest could write.
    """
    if not guest.is_active():
        return None
    paths = disk_definition.live_chain(guest, disk.target)
    if disk.path not in paths:
        return None
    return paths[paths.index(disk.path) + 1:]
