# SPDX-License-Identifier: Apache-2.0
"""libvirt's backup job of a guest, for one snapshot."""

from __future__ import annotations

import typing as ty

import libvirt
from lxml import etree
from nova import exception as nova_exception
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging
import tenacity

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import io_error_pause
from nova_snapext.hypervisor import jobs
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext.resources import work_directory

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# libvirt's errors when the job, or the guest with it, is gone.
JOB_IS_OVER = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP,
               libvirt.VIR_ERR_OPERATION_INVALID,
               libvirt.VIR_ERR_NO_DOMAIN)


class LibvirtConfigBackup(vconfig.LibvirtConfigObject):
    """A pull-mode backup of one disk: https://libvirt.org/formatbackup.html

    :ivar disk: the guest's name of the disk, such as ``vda``
    :ivar socket: path of QEMU's NBD socket
    :ivar scratch: path of the file for the old content of what the guest
        overwrites; it exists
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
        # If one disk is listed, libvirt does not back up the others.
        disk = etree.SubElement(disks, 'disk', name=self.disk, backup='yes',
                                type='file')
        etree.SubElement(disk, 'driver', type='qcow2')
        etree.SubElement(disk, 'scratch', file=self.scratch)
        return backup


class BackupJob(journal.Resource):
    """The backup job of one snapshot, with its work directory.

    The job's socket tells it from other backup jobs of the guest.

    Recorded: the path of the work directory, and whether the guest ran.
    Restored: as recorded. Released: the job is ended; a guest that QEMU
    paused because the scratch file had no space is resumed; then the
    directory is removed.
    """

    kind = 'backup job'
    record_schema = schema.object_of(
        directory=schema.PATH, may_resume=schema.FLAG)

    def __init__(self, host: libvirt_host.Host, target: planning.Target,
                 directory: work_directory.WorkDirectory):
        self._host = host
        self._instance = target.instance
        self._disk = target.disk.target
        self._directory = directory
        self._io_error_pause = io_error_pause.IoErrorPause(target.instance)

    def record(self) -> dict[str, ty.Any]:
        return {'directory': self._directory.path,
                'may_resume': self._io_error_pause.may_resume}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> BackupJob:
        job = cls(driver._host, target,
                  work_directory.WorkDirectory.of_record(
                      record['directory'], target))
        job._io_error_pause.may_resume = record['may_resume']
        return job

    def __str__(self) -> str:
        return f'the backup job on the socket {self._directory.qemu_socket}'

    def capture_state(self, guest: domain.Domain) -> None:
        """Remember whether the guest runs before the job begins."""
        self._io_error_pause.capture_state(guest)

    def begin(self, guest: domain.Domain) -> None:
        """Begin the job: this is the snapshot's point in time.

        :raises libvirtError: it did not begin
        """
        config = LibvirtConfigBackup(
            self._disk, self._directory.qemu_socket, self._directory.scratch)
        guest.begin_backup(config.to_xml())
        LOG.debug('The backup job of disk %(disk)s has begun, on the socket '
                  '%(socket)s', {'disk': self._disk,
                                 'socket': self._directory.qemu_socket},
                  instance=self._instance)

    def release(self) -> None:
        # The job uses the files. They are removed after its end only.
        self.end()
        self._directory.remove()

    def end(self) -> None:
        """End the job, if it runs, and wait until libvirt has finished it.

        If libvirtd restarts during the call, it waits for libvirtd.

        :raises ReleaseFailed: the job still runs, or libvirtd does not answer
        """
        try:
            connection.retry_on_disconnect(
                self._host, self._end, self._instance)
        except connection.UNREACHABLE as error:
            raise exception.ReleaseFailed(
                instance=self._instance.uuid,
                reason=f'{self} may still run: {error}. It is cleaned up '
                       f'before the next snapshot or start, or when libvirtd '
                       f'is connected again') from error

    def _end(self) -> None:
        try:
            guest = domain.get(self._host, self._instance)
            self._wait_until_begun(guest)
            if self._runs(guest):
                self._abort(guest)
            self._io_error_pause.resume(guest, CONF.snapext.work_directory)
        except nova_exception.InstanceNotFound:
            return
        except libvirt.libvirtError as error:
            # Nova may have deleted the guest just now.
            if not domain.is_gone(error):
                raise

    def _abort(self, guest: domain.Domain) -> None:
        with guest.watch_event(
                libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED) as wait_for_end:
            try:
                guest.abort_job()
            except libvirt.libvirtError as error:
                # The guest has ended just now, and its job with it.
                if error.get_error_code() not in JOB_IS_OVER:
                    raise
                return
            wait_for_end(CONF.snapext.operation_timeout)
        self._wait_for_clean_up(guest)
        if self._runs(guest):
            self._fail(f'its backup job has not ended within '
                       f'{CONF.snapext.operation_timeout} seconds')
        LOG.debug('The backup job of disk %(disk)s has ended, on the socket '
                  '%(socket)s', {'disk': self._disk,
                                 'socket': self._directory.qemu_socket},
                  instance=self._instance)

    def _wait_for_clean_up(self, guest: domain.Domain) -> None:
        """Wait until libvirt has done with the scratch file."""
        # It may restore the owner after its event of the job's end, while it
        # still has the domain's lock for changes. A query waits for this lock.
        try:
            guest.get_block_device(self._disk).get_job_info()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in JOB_IS_OVER:
                raise

    def _wait_until_begun(self, guest: domain.Domain) -> None:
        """Wait for a job that is just beginning. It has no XML yet.

        libvirt may still carry out a call of a connection that is lost.

        :raises ReleaseFailed: it takes too long
        """
        tenacity.Retrying(
            retry=tenacity.retry_if_result(bool),
            stop=tenacity.stop_after_delay(CONF.snapext.operation_timeout),
            wait=tenacity.wait_fixed(jobs.POLL_INTERVAL),
            retry_error_callback=lambda _state: self._fail(
                'a backup job of its guest neither runs nor ends'),
        )(lambda: self._xml(guest) is None and self._is_beginning(guest))

    def _is_beginning(self, guest: domain.Domain) -> bool:
        try:
            stats = guest.job_stats()
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

    def _runs(self, guest: domain.Domain) -> bool:
        """Return whether the guest has a backup job, and it is this one."""
        xml = self._xml(guest)
        server = None if xml is None else etree.fromstring(xml).find('server')
        return (server is not None and
                server.get('socket') == self._directory.qemu_socket)

    @staticmethod
    def _xml(guest: domain.Domain) -> str | None:
        """Return the description of the guest's backup job; None if none."""
        try:
            return guest.backup_xml()
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
