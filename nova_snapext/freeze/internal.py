# SPDX-License-Identifier: Apache-2.0
"""The strategy ``internal``: a snapshot inside the root disk's own qcow2.

Of a running guest it holds the memory too: libvirt takes it of the disks alone
only while the guest is shut off. So the guest stands still while its memory is
saved, and nothing that can't be saved may be in it. From then on the guest
writes to new clusters, and qemu-nbd reads the old ones from beside it, in a
file that is in use: a snapshot's clusters and tables are not written to while
it exists (QEMU's docs/interop/qcow2.txt, "Snapshots"). A guest that was shut
off may be started meanwhile.

https://libvirt.org/formatsnapshot.html, and virDomainSnapshotCreateXML.
"""

from __future__ import annotations

import os

from lxml import etree
from nova.virt.libvirt import config as vconfig
from oslo_utils import timeutils
from oslo_utils import units

from nova_snapext import conf
from nova_snapext.freeze import base
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import internal_snapshot
from nova_snapext.freeze import jobs
from nova_snapext.freeze import passthrough
from nova_snapext.freeze import qemu_nbd
from nova_snapext.freeze import quiesce
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read

CONF = conf.CONF

# Of which on libvirt can delete a snapshot from a guest with UEFI variables
# in a qcow2 file: https://libvirt.org/news.html, v10.9.0 and v10.10.0.
MIN_LIBVIRT_NVRAM = (10, 10, 0)


class InternalStrategy(base.FreezingStrategy):

    name = 'internal'
    STORAGES = frozenset({'file'})
    FORMATS = frozenset({'qcow2'})

    def _reason_against(self, plan: planning.Plan) -> str | None:
        # Not of running guests alone: one that is shut off may be started
        # meanwhile, and QEMU deletes a snapshot only where all disks can
        # have one.
        definition = etree.fromstring(plan.guest.get_xml_desc())
        reason = (_reason_against_disks(definition) or
                  self._reason_against_nvram(definition))
        if reason is None and plan.running:
            devices = passthrough.PassthroughDevices(self._driver, plan)
            reason = _reason_against_memory(plan) or devices.reason_to_stay()
        return reason

    def reason_against_unasked(self, plan: planning.Plan) -> str | None:
        return 'it stops the guest while its memory is saved'

    def _reason_against_nvram(self, definition: etree._Element) -> str | None:
        nvram = definition.find('./os/nvram')
        if nvram is None:
            return None
        if not self._host.has_min_version(MIN_LIBVIRT_NVRAM):
            version = '.'.join(str(part) for part in MIN_LIBVIRT_NVRAM)
            return ('the guest has UEFI variables (NVRAM), of which libvirt '
                    f'takes snapshots only from version {version} on')
        nvram_format = nvram.get('format', 'raw')
        if nvram_format != 'qcow2':
            return (f'its UEFI variables (NVRAM {nvram.text}) have the format '
                    f'{nvram_format}, and only a qcow2 can hold a snapshot')
        return None

    def filling(self, plan: planning.Plan) -> tuple[str, ...]:
        # A guest writes anew what is in a snapshot, of each of its disks; one
        # that is shut off may be started meanwhile.
        return tuple(disk.source_path for disk in _writable_disks(
            etree.fromstring(plan.guest.get_xml_desc())))

    def _freeze(self, plan: planning.Plan,
                stack: journal.ReleaseStack) -> base.FrozenDisk:
        directory = snapshot_directory.Directory.choose(plan.instance)
        stack.hold(directory)
        directory.make()
        definition = etree.fromstring(plan.guest.get_xml_desc())
        disks = _writable_disks(definition)
        snapshot = internal_snapshot.InternalSnapshot(
            self._host, plan, [disk.source_path for disk in disks] + [
                nvram.text for nvram in definition.findall('./os/nvram')])
        filesystems = quiesce.Filesystems(plan)
        # Once more at the end: the agent of a guest that QEMU has paused, for
        # want of room for what it writes, can't answer before.
        stack.hold(filesystems)
        if plan.running:
            jobs.check_none_runs(plan.guest, plan.instance)
            snapshot.note(plan.guest)
            devices = passthrough.PassthroughDevices(self._driver, plan)
            stack.hold(devices)
            stack.hold(snapshot)
            with devices.detached(), \
                    filesystems.quiesced() as consistency, \
                    timeutils.StopWatch() as watch:
                instant = timeutils.utcnow()
                snapshot.create_with_memory(
                    plan.guest, [disk.target_dev for disk in disks])
            stack.settle(devices)
        else:
            stack.hold(snapshot)
            consistency = base.consistency_of_shut_off(plan)
            instant = timeutils.utcnow()
            with timeutils.StopWatch() as watch:
                snapshot.create()
        stack.settle(filesystems)
        export = qemu_nbd.Export(plan.instance.uuid, directory.socket)
        stack.hold(export)
        export.serve(plan.disk, directory, snapshot.name)
        return base.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=watch.elapsed(),
            instant=instant)


def _writable_disks(
    definition: etree._Element,
) -> list[vconfig.LibvirtConfigGuestDisk]:
    """List the disks that a snapshot with the memory has to be in."""
    disks = []
    for element in definition.findall('./devices/disk'):
        disk = vconfig.LibvirtConfigGuestDisk()
        disk.parse_dom(element)
        if not disk.readonly:
            disks.append(disk)
    return disks


def _reason_against_disks(definition: etree._Element) -> str | None:
    for disk in _writable_disks(definition):
        what = f'its disk {disk.target_dev}'
        if disk.source_type != 'file':
            return f'{what} is on {disk.source_type} storage'
        if disk.driver_format != 'qcow2':
            return (f'{what} has the format {disk.driver_format}, and a '
                    f'snapshot has to be inside all disks')
        if disk.ephemeral_encryption or disk.volume_encryption:
            return f'{what} is encrypted'
    return None


def _reason_against_memory(plan: planning.Plan) -> str | None:
    """Compare the guest's memory with the room that is left for it."""
    needed = plan.guest._domain.info()[1] * units.Ki
    try:
        file_system = os.statvfs(plan.disk.path)
    except OSError as error:
        return f'its root disk can\'t be looked at: {error}'
    free = (file_system.f_bavail * file_system.f_frsize -
            CONF.reserved_host_disk_mb * units.Mi)
    if needed <= free:
        return None
    return (f'the guest\'s memory of {needed // units.Mi} MiB is saved into '
            f'{plan.disk.path}, where {max(free, 0) // units.Mi} MiB are left '
            f'over [DEFAULT]reserved_host_disk_mb')
