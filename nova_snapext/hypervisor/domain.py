# SPDX-License-Identifier: Apache-2.0
"""libvirt's domain of a guest, one method for each call that we make.

Nova's Guest wraps part of libvirt's domain API. Domain adds the rest, so that
nothing else here needs the raw object inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import typing as ty

import libvirt
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_utils import units

from nova_snapext import cancel
from nova_snapext import compat


class Domain(libvirt_guest.Guest):
    """Nova's Guest, and what snapshots need beside it.

    Every method raises libvirtError if libvirt refuses the call.
    """

    def state(self) -> tuple[int, int]:
        """Return libvirt's state and reason, VIR_DOMAIN_* constants."""
        state, reason = self._domain.state()
        return state, reason

    def memory_size(self) -> int:
        """Return the guest's current memory, in bytes."""
        return int(self._domain.info()[1]) * units.Ki

    def job_stats(self) -> dict[str, ty.Any]:
        """Return the statistics of the domain job (virDomainGetJobStats)."""
        return dict(self._domain.jobStats())

    def block_job_info(self, target: str) -> dict[str, int]:
        """Return type and progress of a disk's job; empty if there is none.

        :param target: the guest's name of the disk, such as ``vda``
        """
        return dict(self._domain.blockJobInfo(target))

    def commit_block(self, target: str, base: str, top: str,
                     flags: int) -> None:
        """Start to commit an overlay.

        :param target: the guest's name of the disk, such as ``vda``
        :param base: path of the image that takes the data
        :param top: path of the overlay
        :param flags: VIR_DOMAIN_BLOCK_COMMIT_* constants
        """
        self._domain.blockCommit(target, base, top, 0, flags)

    def block_tuning(self, target: str) -> dict[str, ty.Any]:
        """Return the block I/O tuning of a disk in the running guest.

        :param target: the guest's name of the disk, such as ``vda``
        :returns: all values, by libvirt's names, such as ``write_bytes_sec``
        """
        return dict(self._domain.blockIoTune(
            target, libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def persistent_block_tuning(self, target: str) -> dict[str, ty.Any]:
        """Return the block I/O tuning of a disk for the guest's next start.

        :param target: the guest's name of the disk, such as ``vda``
        """
        return dict(self._domain.blockIoTune(
            target, libvirt.VIR_DOMAIN_AFFECT_CONFIG))

    def set_block_tuning(self, target: str,
                         tuning: dict[str, ty.Any]) -> None:
        """Change the block I/O tuning of a disk in the running guest.

        :param target: the guest's name of the disk, such as ``vda``
        :param tuning: all values, by libvirt's names; only the group's name
            may be missing, and then stays
        """
        self._domain.setBlockIoTune(
            target, tuning, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def disk_writes(self, target: str) -> tuple[int, int]:
        """Return how many bytes and requests the guest has written.

        :param target: the guest's name of the disk, such as ``vda``
        """
        _reads, _read, requests, written, _errors = (
            self._domain.blockStats(target))
        return written, requests

    def disk_size(self, target: str) -> int:
        """Return the virtual size of a disk, in bytes.

        :param target: the guest's name of the disk, such as ``vda``
        """
        capacity, _allocation, _physical = self._domain.blockInfo(target)
        return int(capacity)

    def begin_backup(self, xml: str) -> None:
        """Start a backup job without a checkpoint, into files that exist.

        :param xml: https://libvirt.org/formatbackup.html
        """
        self._domain.backupBegin(
            xml, None, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL)

    def backup_xml(self) -> str:
        """Return the description of the backup job."""
        return str(self._domain.backupGetXMLDesc(0))

    def create_snapshot(self, xml: str, flags: int) -> ty.Any:
        """Create a snapshot, or make libvirt know one that exists.

        :param xml: https://libvirt.org/formatsnapshot.html
        :param flags: VIR_DOMAIN_SNAPSHOT_CREATE_* constants
        :returns: libvirt's snapshot
        """
        return self._domain.snapshotCreateXML(xml, flags)

    def snapshot_names(self) -> list[str]:
        """Return the names of all snapshots that libvirt knows."""
        return list(self._domain.snapshotListNames())

    def forget_snapshot(self, name: str) -> None:
        """Make libvirt forget a snapshot, if it knows it.

        Whatever contains the snapshot stays as it is.
        """
        if name in self.snapshot_names():
            self._domain.snapshotLookupByName(name).delete(
                libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)

    def has_managed_save(self) -> bool:
        """Return whether the guest's memory is saved for its next start."""
        return bool(self._domain.hasManagedSaveImage(0))

    def managed_save_xml(self, with_secrets: bool = False) -> str:
        """Return the definition in the saved memory."""
        return str(self._domain.managedSaveGetXMLDesc(
            libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE if with_secrets else 0))

    def define_managed_save(self, xml: str) -> None:
        """Replace the definition in the saved memory.

        :param xml: the whole definition, secrets included
        """
        self._domain.managedSaveDefineXML(xml, 0)

    def remove_managed_save(self) -> None:
        """Remove the saved memory: the next start is a fresh one."""
        self._domain.managedSaveRemove(0)

    def update_persistent_device(self, xml: str) -> None:
        """Replace a device in the definition for the guest's next start.

        :param xml: element of the device
        """
        self._domain.updateDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    @contextlib.contextmanager
    def agent_timeout(self, seconds: int) -> Iterator[None]:
        """Limit the time that libvirt waits for the guest agent.

        By itself libvirt waits for it without a limit.

        :param seconds: for each call to the agent
        """
        self._domain.agentSetResponseTimeout(seconds, 0)
        try:
            yield
        finally:
            self._domain.agentSetResponseTimeout(
                libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)

    def ping_agent(self) -> None:
        """Ask the guest agent for the time, which changes nothing.

        An agent that hangs, or is still busy with a command, does not answer.
        """
        self._domain.getTime()

    def trim_filesystems(self) -> None:
        """Have the guest discard what its mounted file systems do not use.

        libvirt offers no way to end it: an agent that does not answer in time
        may trim for minutes.
        """
        self._domain.fSTrim(None, 0)

    @contextlib.contextmanager
    def watch_event(self, event: int) -> Iterator[Callable[[float], bool]]:
        """Listen for an event of this guest.

        Read the state inside the context: it can't change unnoticed then. An
        event is only ever a reason to read the state again.

        :param event: one of libvirt's VIR_DOMAIN_EVENT_ID_*
        :yields: a function that waits for the event, at most as many seconds
            as its argument says, and returns whether it came
        """
        # libvirt calls back in a native thread, which must not meet eventlet.
        happened = cancel.native_threading().Event()

        def on_event(*_args: ty.Any) -> None:
            happened.set()

        connection = self._domain.connect()
        callback = connection.domainEventRegisterAny(
            self._domain, event, on_event, None)
        try:
            yield compat.tpool_wrap(happened.wait)
        finally:
            connection.domainEventDeregisterAny(callback)


def get(host: libvirt_host.Host, instance: objects.Instance) -> Domain:
    """Return the domain of an instance, on a connection that works.

    An older object may hold a connection that a restart of libvirtd closed.

    :raises InstanceNotFound: it is not defined
    :raises HypervisorUnavailable: libvirtd can't be reached
    :raises InternalError: libvirt can't be asked
    """
    return Domain(host.get_guest(instance)._domain)


def find(host: libvirt_host.Host,
         instance: objects.Instance) -> Domain | None:
    """Return the domain of an instance; None if it is not defined.

    :raises HypervisorUnavailable: libvirtd can't be reached
    :raises InternalError: libvirt can't be asked
    """
    try:
        return get(host, instance)
    except nova_exception.InstanceNotFound:
        return None


def is_gone(error: BaseException) -> bool:
    """Return whether an error of libvirt says that there is no such domain."""
    return (isinstance(error, libvirt.libvirtError) and
            error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN)
