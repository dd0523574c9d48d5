# SPDX-License-Identifier: Apache-2.0
"""libvirt's backup job, in the words of a snapshot."""

from __future__ import annotations

import typing as ty

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
import tenacity

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import jobs
from nova_snapext.freeze import libvirtd
from nova_snapext.freeze import starved
from nova_snapext import journal
from nova_snapext import plan as planning

CONF = conf.CONF

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


class BackupJob(journal.Resource):
    """The backup job of one snapshot, with its directory.

    It is known by its socket.
    """

    kind = 'backup job'

    def __init__(self, host: libvirt_host.Host, plan: planning.Plan,
                 directory: snapshot_directory.Directory):
        self._host = host
        self._instance = plan.instance
        self._disk = plan.disk.target
        self._directory = directory
        self._starvation = starved.Starvation(plan.instance)

    def record(self) -> dict[str, ty.Any]:
        return {'directory': self._directory.path,
                'ran': self._starvation.ran}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any]) -> BackupJob:
        job = cls(driver._host, plan, snapshot_directory.Directory(
            record['directory']))
        job._starvation.ran = record['ran']
        return job

    def __str__(self) -> str:
        return f'the backup job on the socket {self._directory.socket}'

    def note(self, guest: libvirt_guest.Guest) -> None:
        """Note how the guest is before it begins."""
        self._starvation.note(guest)

    def begin(self, guest: libvirt_guest.Guest) -> None:
        """Begin it: this is the instant of the snapshot.

        :raises libvirtError: it did not begin
        """
        config = LibvirtConfigBackup(
            self._disk, self._directory.socket, self._directory.scratch)
        guest._domain.backupBegin(config.to_xml(), None, 0)

    def release(self) -> None:
        # The files go after the job that uses them, and only if it is over.
        self.end()
        self._directory.remove()

    def end(self) -> None:
        """End it, if it runs at all, and wait until libvirt has let go of it.

        A libvirtd that goes meanwhile, as when it is restarted, is waited for.

        :raises ReleaseFailed: it is still there, or libvirtd does not tell
        """
        try:
            libvirtd.outlived(self._host, self._end, self._instance)
        except libvirtd.UNREACHABLE as error:
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'{self} may still run: {error}. It is cleaned up '
                       f'before the next snapshot or start, or when libvirtd '
                       f'is connected anew') from error

    def _end(self) -> None:
        # A guest object of the time of begin() may hold a connection that
        # libvirtd's restart has closed.
        try:
            guest = self._host.get_guest(self._instance)
            self._await_begun(guest)
            if self._runs(guest):
                self._abort(guest)
            self._starvation.end(guest, CONF.snapext.freeze_directory)
        except nova_exception.InstanceNotFound:
            return
        except libvirt.libvirtError as error:
            # Or Nova is deleting it at this moment.
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise

    def _abort(self, guest: libvirt_guest.Guest) -> None:
        with jobs.event_awaited(
                guest, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
        ) as await_job_end:
            try:
                guest.abort_job()
            except libvirt.libvirtError as error:
                # The guest has ended just now, and its job with it.
                if error.get_error_code() not in JOB_IS_OVER:
                    raise
                return
            await_job_end(CONF.snapext.job_timeout)
        self._await_clean_up(guest)
        if self._runs(guest):
            self._fail(f'its backup job has not ended within '
                       f'{CONF.snapext.job_timeout} seconds')

    def _await_clean_up(self, guest: libvirt_guest.Guest) -> None:
        """Let libvirt remove the scratch file before the directory goes."""
        # It does so after it has told of the job's end, while it still holds
        # the domain's lock for changes, which a query waits for.
        try:
            guest.get_block_device(self._disk).get_job_info()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in JOB_IS_OVER:
                raise

    def _await_begun(self, guest: libvirt_guest.Guest) -> None:
        """Wait for a job that is just beginning, which has no XML yet.

        libvirt may still be at what it was told by a connection that is lost.

        :raises ReleaseFailed: it takes too long
        """
        tenacity.Retrying(
            retry=tenacity.retry_if_result(bool),
            stop=tenacity.stop_after_delay(CONF.snapext.job_timeout),
            wait=tenacity.wait_fixed(jobs.LOOK),
            retry_error_callback=lambda _state: self._fail(
                'a backup job of its guest neither runs nor ends'),
        )(lambda: self._xml(guest) is None and self._is_beginning(guest))

    def _is_beginning(self, guest: libvirt_guest.Guest) -> bool:
        try:
            stats = guest._domain.jobStats()
        except libvirt.libvirtError as error:
            if error.get_error_code() in JOB_IS_OVER:
                return False
            # "backup job data missing"
            if (error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and
                    error.get_error_domain() == libvirt.VIR_FROM_QEMU):
                return True
            raise
        return bool(stats.get('operation') ==
                    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP)

    def _runs(self, guest: libvirt_guest.Guest) -> bool:
        """Whether the guest has a backup job, and it is this one."""
        xml = self._xml(guest)
        server = None if xml is None else etree.fromstring(xml).find('server')
        return (server is not None and
                server.get('socket') == self._directory.socket)

    @staticmethod
    def _xml(guest: libvirt_guest.Guest) -> str | None:
        """Give the description of the guest's backup job, if it has one."""
        try:
            return ty.cast(str, guest._domain.backupGetXMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() in JOB_IS_OVER:
                return None
            raise

    def _fail(self, reason: str) -> ty.NoReturn:
        raise exception.ReleaseFailed(
            instance=self._instance.uuid,
            reason=f'{reason}. End it with "virsh domjobabort '
                   f'{self._instance.name}", then remove '
                   f'{self._directory.path}')
