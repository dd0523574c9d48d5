# SPDX-License-Identifier: Apache-2.0
"""The strategy ``native``: Nova's own snapshot, untouched.

What it leaves when nova-compute is killed is cleaned up as that of all others.
"""

from __future__ import annotations

import os
import shutil
import typing as ty

import libvirt
from nova.compute import power_state
from nova import exception as nova_exception
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging
import psutil

from nova_snapext import conf
from nova_snapext.freeze import base
from nova_snapext.freeze import jobs
from nova_snapext import journal
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)


class NativeStrategy(base.Strategy):

    name = 'native'

    def reason_against(self, plan: planning.Plan) -> str | None:
        return None

    def reason_against_unasked(self, plan: planning.Plan) -> str | None:
        if plan.running and plan.direct_refused:
            return ('it would suspend the guest, as the direct snapshot is '
                    f'not possible: {plan.direct_refused}')
        return None


class NativeSnapshot(journal.Resource):
    """What Nova's own snapshot makes of a guest, until its end.

    A live one undefines the domain and mirrors its disk into a file of a
    directory of its own; another one suspends the guest.

    :ivar directory: of the file, once Nova has made it
    """

    kind = 'native snapshot'

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 plan: planning.Plan, state: int):
        self._driver = driver
        self._plan = plan
        self._state = state
        self.directory: str | None = None

    @classmethod
    def of(cls, driver: libvirt_driver.LibvirtDriver,
           plan: planning.Plan) -> NativeSnapshot:
        """Make one of a guest as it is now."""
        return cls(driver, plan, plan.guest.get_power_state(driver._host))

    def record(self) -> dict[str, ty.Any]:
        return {'state': self._state, 'directory': self.directory}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan,
                record: dict[str, ty.Any]) -> NativeSnapshot:
        snapshot = cls(driver, plan, record['state'])
        snapshot.directory = record['directory']
        return snapshot

    def release(self) -> None:
        try:
            guest = self._driver._host.get_guest(self._plan.instance)
        except nova_exception.InstanceNotFound:
            guest = None
        if guest is not None:
            self._bring_back(guest)
        if self.directory is not None:
            self._remove(self.directory)

    def _bring_back(self, guest: libvirt_guest.Guest) -> None:
        if guest.is_active():
            jobs.await_none(guest, self._plan.instance)
        if guest.is_active():
            self._end_mirror(guest)
            if not guest.has_persistent_configuration():
                self._driver._host.write_instance_config(
                    guest.get_xml_desc(dump_inactive=True,
                                       dump_sensitive=True))
        elif guest._domain.hasManagedSaveImage(0):
            self._resume(guest)

    def _end_mirror(self, guest: libvirt_guest.Guest) -> None:
        device = guest.get_block_device(self._plan.disk.target)
        info = device.get_job_info()
        if info is not None and (
                info.job == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY):
            device.abort_job()

    def _resume(self, guest: libvirt_guest.Guest) -> None:
        if self._state not in (power_state.RUNNING, power_state.PAUSED):
            return  # it was suspended before
        if isinstance(self._plan.instance, planning.UnknownInstance):
            guest.launch()
            return
        self._driver._resume_guest_after_snapshot(
            self._plan.context, False, self._state, self._plan.instance,
            guest)

    def _remove(self, directory: str) -> None:
        for process in psutil.process_iter(['name', 'cmdline']):
            if process.info['name'] == 'qemu-img' and any(
                    word.startswith(f'{directory}{os.sep}')
                    for word in process.info['cmdline'] or ()):
                process.kill()
        shutil.rmtree(directory, ignore_errors=False, onerror=_unless_gone)


def _unless_gone(_function: ty.Any, _path: str, error: ty.Any) -> None:
    if not issubclass(error[0], FileNotFoundError):
        raise error[1]


def may_be_direct(plan: planning.Plan) -> bool:
    """Tell whether Nova's own may do it within the storage, moving nothing."""
    return plan.disk.storage == 'network' and not plan.direct_refused


def would_be_live(plan: planning.Plan) -> bool:
    """Tell whether Nova's own snapshot would let the guest run.

    As LibvirtDriver.snapshot decides it.
    """
    return (plan.running and
            plan.disk.storage == 'file' and
            not CONF.ephemeral_storage_encryption.enabled and
            not CONF.workarounds.disable_libvirt_livesnapshot)
