# SPDX-License-Identifier: Apache-2.0
"""libvirt's backup job, in the words of a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import threading
import typing as ty

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova import utils
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# What libvirt answers when the job, or the guest with it, is gone.
JOB_IS_OVER = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP,
               libvirt.VIR_ERR_OPERATION_INVALID,
               libvirt.VIR_ERR_NO_DOMAIN)


class LibvirtConfigBackup(vconfig.LibvirtConfigObject):
    """A pull-mode backup of one disk: https://libvirt.org/formatbackup.html

    :ivar disk: the guest's name of the disk, such as ``vda``
    :ivar socket: path of the Unix socket that QEMU serves it on
    :ivar scratch: path of the file that keeps what the guest overwrites
    """

    def __init__(self, disk: str, socket: str, scratch: str):
        super().__init__(root_name='domainbackup')
        self.disk = disk
        self.socket = socket
        self.scratch = scratch

    def format_dom(self) -> etree._Element:
        backup = super().format_dom()
        backup.set('mode', 'pull')
        etree.SubElement(backup, 'server', transport='unix',
                         socket=self.socket)
        disks = etree.SubElement(backup, 'disks')
        # A disk that is not listed is not backed up, where one is.
        disk = etree.SubElement(disks, 'disk', name=self.disk, backup='yes',
                                type='file')
        etree.SubElement(disk, 'driver', type='qcow2')
        etree.SubElement(disk, 'scratch', file=self.scratch)
        return backup


class BackupJob:
    """The backup job of one snapshot, known by its socket."""

    def __init__(self, host: libvirt_host.Host, plan: planning.Plan,
                 directory: snapshot_directory.Directory):
        self._host = host
        self._instance = plan.instance
        self._disk = plan.disk.target
        self._directory = directory
        self._runs_free = False

    def check_none_runs(self, guest: libvirt_guest.Guest) -> None:
        """Refuse a guest that a backup could only wait for, for 30 seconds.

        :raises GuestBusy: it has a job, which libvirt allows one of
        """
        stats = guest._domain.jobStats()
        if stats.get('type', libvirt.VIR_DOMAIN_JOB_NONE) != (
                libvirt.VIR_DOMAIN_JOB_NONE):
            raise exception.GuestBusy(
                guest=self._instance.name, instance=self._instance.uuid,
                job=_operation_name(stats.get('operation')))

    def begin(self, guest: libvirt_guest.Guest) -> None:
        """Begin it: this is the instant of the snapshot.

        :raises libvirtError: it did not begin
        """
        state, _reason = guest._domain.state()
        self._runs_free = state == libvirt.VIR_DOMAIN_RUNNING
        config = LibvirtConfigBackup(
            self._disk, self._directory.socket, self._directory.scratch)
        guest._domain.backupBegin(config.to_xml(), None, 0)

    def end(self) -> None:
        """End it, if it runs at all, and wait until libvirt has let go of it.

        :raises ReleaseFailed: it is still there
        """
        # A guest object of the time of begin() may hold a connection that
        # libvirtd's restart has closed.
        try:
            guest = self._host.get_guest(self._instance)
        except nova_exception.InstanceNotFound:
            return
        if self._runs(guest):
            self._abort(guest)
        self._resume_if_starved(guest)

    def _abort(self, guest: libvirt_guest.Guest) -> None:
        with _job_end_awaited(guest) as await_job_end:
            guest.abort_job()
            await_job_end(CONF.snapext.job_timeout)
        self._await_clean_up(guest)
        if self._runs(guest):
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'its backup job has not ended within '
                       f'{CONF.snapext.job_timeout} seconds. End it with '
                       f'"virsh domjobabort {self._instance.name}", then '
                       f'remove {self._directory.path}')

    def _resume_if_starved(self, guest: libvirt_guest.Guest) -> None:
        """Resume a guest that QEMU has paused while the job ran.

        QEMU does so when the scratch file finds no more room. What the guest
        was about to write is not lost: it is tried again.
        """
        if not self._runs_free:
            return
        state, reason = guest._domain.state()
        if (state, reason) == (libvirt.VIR_DOMAIN_PAUSED,
                               libvirt.VIR_DOMAIN_PAUSED_IOERROR):
            LOG.warning('QEMU has paused the guest on an I/O error during '
                        'its snapshot, as it does when %s is full: the guest '
                        'is resumed', CONF.snapext.freeze_directory,
                        instance=self._instance)
            guest.resume()

    def _await_clean_up(self, guest: libvirt_guest.Guest) -> None:
        """Let libvirt remove the scratch file before the directory goes."""
        # It does so after it has told of the job's end, while it still holds
        # the domain's lock for changes, which a query waits for.
        try:
            guest.get_block_device(self._disk).get_job_info()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in JOB_IS_OVER:
                raise

    def _runs(self, guest: libvirt_guest.Guest) -> bool:
        """Whether the guest has a backup job, and it is this one."""
        try:
            xml = guest._domain.backupGetXMLDesc(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() in JOB_IS_OVER:
                return False
            raise
        server = etree.fromstring(xml).find('server')
        return (server is not None and
                server.get('socket') == self._directory.socket)


def _operation_name(operation: int | None) -> str:
    """Give libvirt's name of a job's operation, such as ``backup``."""
    prefix = 'VIR_DOMAIN_JOB_OPERATION_'
    return next((name.removeprefix(prefix).lower()
                 for name, value in vars(libvirt).items()
                 if name.startswith(prefix) and value == operation),
                'unknown')


@contextlib.contextmanager
def _job_end_awaited(
    guest: libvirt_guest.Guest,
) -> Iterator[Callable[[float], bool]]:
    """Listen for the end of the guest's job.

    :yields: a function that waits for it, for so many seconds at the most
    """
    # libvirt calls back in a native thread, which must not meet eventlet.
    eventlet = utils.get_eventlet()
    native_threading = (eventlet.patcher.original('threading') if eventlet
                        else threading)
    ended = native_threading.Event()

    def job_completed(_conn: ty.Any, _domain: ty.Any, _params: ty.Any,
                      _opaque: ty.Any) -> None:
        ended.set()

    connection = guest._domain.connect()
    callback = connection.domainEventRegisterAny(
        guest._domain, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
        job_completed, None)
    try:
        yield utils.tpool_wrap(ended.wait)
    finally:
        connection.domainEventDeregisterAny(callback)
