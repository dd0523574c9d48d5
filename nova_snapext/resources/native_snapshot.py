# SPDX-License-Identifier: Apache-2.0
"""The changes that Nova's own snapshot makes to a guest until its end."""

from __future__ import annotations

import contextlib
import os
import re
import typing as ty

import libvirt
from nova.compute import power_state
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging
import psutil

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import jobs
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext.resources import work_directory

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Names that Nova gives: tempdir() in nova/utils.py, which uses those of
# Python's tempfile, and LibvirtDriver._live_snapshot.
DIRECTORY = re.compile(r'/(?!/)(?:.*/)?tmp[a-z0-9_]{8}', re.DOTALL)
FILE = re.compile(rf'[0-9a-f]{{32}}(\.delta)?|{work_directory.NFS}')


class NativeSnapshot(journal.Resource):
    """A guest during Nova's own snapshot.

    A live snapshot undefines the domain, and mirrors its disk into a file in
    a directory of its own. Any other snapshot suspends the guest.

    Recorded: the guest's power state before the snapshot, and the directory.
    Restored: as recorded. Released: the mirror is ended, the domain defined
    again, a suspended guest resumed, and the directory removed.

    :ivar directory: path of the file's directory, once Nova has created it
    """

    kind = 'native snapshot'
    record_schema = schema.object_of(
        power_state=schema.INTEGER, directory=schema.OPTIONAL_TEXT)

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 target: planning.Target, state: int):
        self._driver = driver
        self._target = target
        self._power_state = state
        self.directory: str | None = None

    def record(self) -> dict[str, ty.Any]:
        return {'power_state': self._power_state, 'directory': self.directory}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> NativeSnapshot:
        snapshot = cls(driver, target, record['power_state'])
        snapshot.directory = record['directory']
        return snapshot

    def release(self) -> None:
        guest = domain.find(self._driver._host, self._target.instance)
        host = self._target.instance.host
        # An instance that is on another host now must not run twice.
        if guest is not None and host in (None, CONF.host):
            self._restore_guest(guest)
        if self.directory is None:
            return
        if not is_novas(self.directory):
            raise exception.JournalRecordError(
                reason=f'the journal names {self.directory!r}, which is not a '
                       f'directory that Nova creates for a snapshot, and so '
                       f'it is not removed. If it is one, remove it by hand')
        self._remove(self.directory)

    def _restore_guest(self, guest: domain.Domain) -> None:
        if guest.is_active():
            jobs.wait_for_no_job(guest, self._target.instance)
        if guest.is_active():
            self._end_mirror(guest)
            if not guest.has_persistent_configuration():
                self._driver._host.write_instance_config(
                    guest.get_xml_desc(dump_inactive=True,
                                       dump_sensitive=True))
                LOG.debug('The domain is defined again',
                          instance=self._target.instance)
        elif guest.has_managed_save():
            self._resume(guest)

    def _end_mirror(self, guest: domain.Domain) -> None:
        device = guest.get_block_device(self._target.disk.target)
        info = device.get_job_info()
        if info is not None and (
                info.job == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY):
            device.abort_job()
            LOG.debug('The mirror of disk %s is ended',
                      self._target.disk.target,
                      instance=self._target.instance)

    def _resume(self, guest: domain.Domain) -> None:
        if self._power_state not in (power_state.RUNNING, power_state.PAUSED):
            return  # it was suspended before
        if isinstance(self._target.instance, planning.UnknownInstance):
            guest.launch()
            return
        self._driver._resume_guest_after_snapshot(
            self._target.context, False, self._power_state,
            self._target.instance, guest)

    def _remove(self, directory: str) -> None:
        for process in psutil.process_iter(['name', 'cmdline']):
            if process.info['name'] == 'qemu-img' and any(
                    word.startswith(f'{directory}{os.sep}')
                    for word in process.info['cmdline'] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        work_directory.remove_tree(directory)
        LOG.debug('The directory %s is removed', directory,
                  instance=self._target.instance)


def is_novas(path: ty.Any) -> bool:
    """Return whether a path is one that Nova's snapshot may have created.

    It need not be below ``[libvirt]snapshots_directory``: see
    :func:`work_directory.is_ours`, which has the same conditions, but for
    the names.

    :param path: anything that JSON has
    """
    # The path may have a double slash: Nova makes it from its options.
    return (isinstance(path, str) and
            not {'.', '..'} & {*path.split('/')} and
            DIRECTORY.fullmatch(path) is not None and
            work_directory.holds_only(path, FILE))
