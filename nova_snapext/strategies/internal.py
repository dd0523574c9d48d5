# SPDX-License-Identifier: Apache-2.0
"""The strategy ``internal``: a snapshot inside the root disk's own qcow2.

The snapshot of a running guest includes its memory: libvirt takes a snapshot
of the disks alone only while the guest is shut off. The guest stands still
while its memory is saved, and must not have a device that can't be saved.
Afterwards the guest writes to new clusters. qemu-nbd reads the old ones from
the same file, although QEMU uses it: the clusters and tables of a snapshot are
not written to while it exists (QEMU's docs/interop/qcow2.txt, "Snapshots"). A
guest that was shut off may be started during the snapshot.

https://libvirt.org/formatsnapshot.html, and virDomainSnapshotCreateXML.
"""

from __future__ import annotations

from lxml import etree
from nova.virt.libvirt import config as vconfig
from oslo_utils import timeutils

from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import jobs
from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import qemu_img
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import reason as reasons
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import internal_snapshot
from nova_snapext.resources import nbd_export
from nova_snapext.resources import passthrough_devices
from nova_snapext.resources import work_directory
from nova_snapext.strategies import base

# From this version on libvirt can delete a snapshot from a guest with UEFI
# variables in a qcow2 file: https://libvirt.org/news.html, v10.9.0 and
# v10.10.0.
MIN_LIBVIRT_NVRAM = (10, 10, 0)


class InternalStrategy(base.FreezingStrategy):
    """Freeze a qcow2 disk by a snapshot inside it."""

    name = 'internal'
    STORAGES = frozenset({'file'})
    FORMATS = frozenset({'qcow2'})
    mechanisms = frozenset({known_defects.Mechanism.INTERNAL_SNAPSHOT})
    resource_types = (work_directory.WorkDirectory,
                      guest_filesystems.GuestFilesystems,
                      passthrough_devices.PassthroughDevices,
                      internal_snapshot.InternalSnapshot,
                      nbd_export.NbdExport)

    def unsupported_guest_reason(self, plan: planning.Plan) -> str | None:
        # This is also for guests that are shut off: they may be started
        # during the snapshot, and QEMU deletes a snapshot only if all disks
        # can contain one.
        definition = etree.fromstring(plan.guest.get_xml_desc())
        reason = (base.attribute_reason(plan) or
                  _unsupported_disk_reason(definition) or
                  self._unsupported_nvram_reason(definition))
        if reason is None and plan.running:
            base.check_no_jobs(plan)
            devices = passthrough_devices.PassthroughDevices(self.driver, plan)
            reason = (base.state_reason(plan, self.host) or
                      base.memory_reason(plan, self.host) or
                      base.memory_space_reason(plan, plan.disk.path) or
                      devices.unsupported_reason(plan.guest))
        if reason is None:
            base.check_headers(plan)
            reason = next(filter(None, (
                self._unsupported_header_reason(plan, path)
                for path in _files(definition))), None)
        return reason

    def stops_guest(self, plan: planning.Plan) -> bool:
        return plan.running

    def auto_skip_reason(self, plan: planning.Plan) -> str | None:
        return 'it stops the guest while it saves the guest\'s memory'

    def _unsupported_nvram_reason(
        self, definition: etree._Element,
    ) -> str | None:
        nvram = definition.find('./os/nvram')
        if nvram is None:
            return None
        if not self.host.has_min_version(MIN_LIBVIRT_NVRAM):
            version = '.'.join(str(part) for part in MIN_LIBVIRT_NVRAM)
            return reasons.UserReason(
                f'the guest has UEFI variables (NVRAM), and libvirt takes '
                f'snapshots of them only from version {version} on',
                'the guest has UEFI variables')
        nvram_format = nvram.get('format', 'raw')
        if nvram_format != 'qcow2':
            return reasons.UserReason(
                f'its UEFI variables (NVRAM {nvram.text}) have the format '
                f'{nvram_format}, and only a qcow2 can contain a snapshot',
                'the guest has UEFI variables')
        return None

    def _unsupported_header_reason(self, plan: planning.Plan,
                                   path: str) -> str | None:
        """Return why a qcow2 can't contain another snapshot.

        :raises OSError: it can't be read
        :raises UnexpectedHeader: its header is not as expected
        """
        header = image_header.checked_header(path)
        if header.features & image_header.CORRUPT:
            return (f'QEMU has marked {path} as corrupt. Shut the guest off '
                    f'and check it ("qemu-img check")')
        if header.snapshots >= header.most_snapshots:
            return reasons.UserReason(
                f'{path} has refcount_bits={header.refcount_bits} and '
                f'{header.snapshots} internal snapshots, and can\'t have '
                f'another one', 'its disk can\'t contain another snapshot')
        name = internal_snapshot.InternalSnapshot(self.host, plan, []).name
        if header.snapshots and qemu_img.holds_snapshot(name, path):
            return (f'{path} has a snapshot {name} already. If no other '
                    f'snapshot of the guest is in progress, delete it '
                    f'("qemu-img snapshot -d", when the guest is shut off)')
        return None

    def growing_paths(self, plan: planning.Plan) -> tuple[str, ...]:
        # A guest writes what it changes on any of its disks to new clusters.
        # A guest that is shut off may be started.
        return tuple(disk.source_path for disk in _writable_disks(
            etree.fromstring(plan.guest.get_xml_desc())))

    def freeze_disk(self, plan: planning.Plan,
                    stack: journal.ReleaseStack) -> base.FrozenDisk:
        directory = self.create_work_directory(plan, stack)
        definition = etree.fromstring(plan.guest.get_xml_desc())
        disks = _writable_disks(definition)
        snapshot = internal_snapshot.InternalSnapshot(
            self.host, plan, _files(definition))
        filesystems = guest_filesystems.GuestFilesystems(self.host, plan)
        # A thaw that failed is repeated at the end: the agent can't answer
        # while QEMU has paused the guest because its disk has no space.
        stack.add(filesystems)
        if plan.running:
            jobs.check_no_job(plan.guest, plan.instance)
            snapshot.capture_state(plan.guest)
            devices = passthrough_devices.PassthroughDevices(self.driver, plan)
            devices.capture_state(plan.guest)
            stack.add(devices)
            stack.add(snapshot)
            failure = base.failure_of_save(devices)
            with self.failing_as(failure, plan), \
                    devices.detached(plan.guest), \
                    filesystems.frozen() as consistency, \
                    timeutils.StopWatch() as watch:
                frozen_at = timeutils.utcnow()
                snapshot.create_with_memory(
                    plan.guest, [disk.target_dev for disk in disks])
            stack.mark_released(devices)
        else:
            failure = exception.FreezeFailed
            stack.add(snapshot)
            consistency = base.consistency_of_shut_off(plan)
            frozen_at = timeutils.utcnow()
            with timeutils.StopWatch() as watch:
                snapshot.create()
        stack.mark_released(filesystems)
        with self.failing_as(failure, plan):
            return self.export_disk(
                plan, stack, directory, consistency=consistency,
                freeze_seconds=watch.elapsed(), frozen_at=frozen_at,
                snapshot=snapshot.name)


def _files(definition: etree._Element) -> list[str]:
    """Return the paths of all files that contain the snapshot."""
    return [*(disk.source_path for disk in _writable_disks(definition)),
            *(nvram.text for nvram in definition.findall('./os/nvram'))]


def _writable_disks(
    definition: etree._Element,
) -> list[vconfig.LibvirtConfigGuestDisk]:
    """Return the disks that a snapshot with the memory has to include."""
    disks = []
    for element in definition.findall('./devices/disk'):
        disk = vconfig.LibvirtConfigGuestDisk()
        disk.parse_dom(element)
        if not disk.readonly:
            disks.append(disk)
    return disks


def _unsupported_disk_reason(definition: etree._Element) -> str | None:
    for disk in _writable_disks(definition):
        name = f'its disk {disk.target_dev}'
        if disk.source_type != 'file':
            return reasons.UserReason(
                f'{name} is on {disk.source_type} storage')
        if disk.driver_format != 'qcow2':
            return reasons.UserReason(
                f'{name} has the format {disk.driver_format}, and a snapshot '
                f'has to be inside all disks')
        if disk.ephemeral_encryption or disk.volume_encryption:
            return reasons.UserReason(f'{name} is encrypted')
    return None
