# SPDX-License-Identifier: Apache-2.0
"""What interrupted snapshots left on this host, whatever the journal says.

A journal can be lost, set aside as unreadable, or belong to the host that an
instance was evacuated from. Only images in Glance, frozen filesystems and
detached devices can't be found without it.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import os
import pathlib

import libvirt
from lxml import etree
from nova.virt.libvirt import driver as libvirt_driver
from oslo_utils import uuidutils
import psutil

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import image_header
from nova_snapext import journal
from nova_snapext.recovery import rbd_leftovers
from nova_snapext.resources import backup_job
from nova_snapext.resources import disk_definition
from nova_snapext.resources import fence
from nova_snapext.resources import overlay
from nova_snapext.resources import work_directory

CONF = conf.CONF

# See InternalSnapshot.name.
INTERNAL_SNAPSHOT = 'snapext-'


@dataclasses.dataclass(frozen=True)
class Leftover:
    """Something that a snapshot left, or has in use.

    :ivar what: what it is, and where
    :ivar remedy: what the operator can do
    :ivar instance_uuid: the instance whose overlay it is; None for others
    :ivar is_on_host: Nova's own driver could meet it; False for what is in
        Glance alone
    """

    what: str
    remedy: str
    instance_uuid: str | None = None
    is_on_host: bool = True

    def __str__(self) -> str:
        return f'{self.what}\n    {self.remedy}'


def find(driver: libvirt_driver.LibvirtDriver) -> Iterator[Leftover]:
    """Find all that is left.

    On shared storage this includes the overlays of other hosts' instances.

    :raises libvirtError: libvirt can't be asked
    :raises OSError: a directory can't be read
    """
    yield from _journal()
    yield from _overlay_files()
    for guest in driver._host.list_guests(only_running=False):
        try:
            yield from _of_guest(domain.Domain(guest._domain))
        except libvirt.libvirtError as error:
            # Somebody may be deleting it.
            if not domain.is_gone(error):
                raise
    yield from _work_directories()
    yield from _exports()
    yield from _rbd_snapshots(driver)


def _rbd_snapshots(driver: libvirt_driver.LibvirtDriver,
                   ) -> Iterator[Leftover]:
    try:
        for snapshot, unknown in rbd_leftovers.find(driver):
            yield Leftover(
                f'{snapshot} in Ceph is of a snapshot that the journal does '
                f'not have. Nova can\'t delete the disk before it is removed.',
                f'{unknown}. Repeat this when Nova answers.' if unknown else
                'Run "nova-snapext recover" while nova-compute is stopped.',
                is_on_host=not unknown)
    except exception.CephError as error:
        yield Leftover(
            f'It is not known what is left in Ceph: {error}',
            'Repeat this when Ceph responds.', is_on_host=False)


def _journal() -> Iterator[Leftover]:
    is_in_use = journal.is_locked_by_another()
    for entry in journal.entries():
        kinds = ', '.join(record.kind for record in entry.records)
        if is_in_use:
            yield Leftover(
                f'The journal records a snapshot of instance '
                f'{entry.instance_uuid}: {kinds}.',
                'It runs now, or nova-compute cleans up after it: see '
                '"nova-snapext status".')
        else:
            yield Leftover(
                f'The journal records an interrupted snapshot of instance '
                f'{entry.instance_uuid}: {kinds}.',
                f'Do what "nova-snapext recover {entry.instance_uuid}" says.')
    for image in journal.images():
        yield Leftover(
            f'The image {image.image_id} of a snapshot of instance '
            f'{image.instance_uuid} is not complete'
            f'{f" and not deleted: {image.reason}" if image.reason else ""}.',
            'nova-compute uploads or deletes it: see "nova-snapext status".'
            if is_in_use else
            f'Delete it. Then remove {image.path}, or run "nova-snapext '
            f'recover {image.instance_uuid}".', is_on_host=False)
    for file in journal.unusable():
        yield Leftover(
            f'The file {file.path} of the journal can\'t be used: '
            f'{file.problem}.',
            'Make it usable, and run "nova-snapext recover". If you are sure '
            'that nothing of its snapshot is left, remove it.')
    for path in journal.set_aside_files():
        yield Leftover(
            f'The journal {path} could not be read and was set aside.',
            'Check that the guest of this instance has its devices, that its '
            'filesystems are not frozen, and that its incomplete image is '
            'deleted. Then remove the file.')


def _overlay_files() -> Iterator[Leftover]:
    for directory in sorted(pathlib.Path(CONF.instances_path).iterdir()):
        names = sorted(path.name for path in directory.glob('disk*')
                       if _is_ours(path))
        if names:
            uuid = directory.name
            yield Leftover(
                f'{directory} has {", ".join(names)}: an overlay that is not '
                f'merged into the disk of the instance, or what is left of '
                f'one.',
                'Do not start the instance without nova-snapext. If Nova has '
                'no such instance, remove the directory.',
                uuid if uuidutils.is_uuid_like(uuid) else None)


def _is_ours(path: pathlib.Path) -> bool:
    if path.name == fence.NAME:
        with path.open('rb') as file:
            return file.read(len(fence.START)) == fence.START.encode()
    return path.name.startswith((overlay.NAME, f'{fence.NAME}{fence.KEPT}'))


def _of_guest(guest: domain.Domain) -> Iterator[Leftover]:
    definitions = (guest.get_xml_desc(),
                   guest.get_xml_desc(dump_inactive=True),
                   disk_definition.saved_definition(guest))
    sources = {path for definition in definitions if definition is not None
               for path in chain.all_paths(definition)}
    for path in sorted(sources):
        if os.path.basename(path) == overlay.NAME:
            yield Leftover(
                f'Guest {guest.name} is defined on the overlay {path}.',
                f'Do not start it without nova-snapext. "virsh dumpxml '
                f'{guest.name}" shows its disks.', guest.uuid)
    if _has_backup_job(guest):
        yield Leftover(
            f'Guest {guest.name} has a backup job of nova-snapext.',
            f'End it with "virsh domjobabort {guest.name}".')
    for path in sorted(sources):
        yield from _internal_snapshots(guest, path)
    for name in guest.snapshot_names():
        if name.startswith(INTERNAL_SNAPSHOT):
            yield Leftover(
                f'libvirt knows the internal snapshot {name} of guest '
                f'{guest.name}, which Nova can\'t undefine before it is '
                f'forgotten.',
                f'If no disk contains it any more, run "virsh '
                f'snapshot-delete {guest.name} {name} --metadata".')


def _has_backup_job(guest: domain.Domain) -> bool:
    try:
        server = etree.fromstring(guest.backup_xml()).find('server')
    except libvirt.libvirtError as error:
        if error.get_error_code() in backup_job.JOB_IS_OVER:
            return False
        raise
    return server is not None and work_directory.is_socket(
        server.get('socket', ''))


def _internal_snapshots(guest: domain.Domain, path: str) -> Iterator[Leftover]:
    try:
        names = image_header.snapshot_names(path)
    except (OSError, exception.UnexpectedHeader):
        # It is gone, or no qcow2.
        return
    for name in names:
        if name.startswith(INTERNAL_SNAPSHOT):
            yield Leftover(
                f'{path} of guest {guest.name} contains the internal '
                f'snapshot {name}, which uses space there.',
                f'Shut the guest off, then run "qemu-img snapshot -d {name} '
                f'{path}".')


def _work_directories() -> Iterator[Leftover]:
    for path in work_directory.find():
        yield Leftover(f'{path} is the work directory of a snapshot.',
                       'If nothing else is left, remove it.')


def _exports() -> Iterator[Leftover]:
    for process in psutil.process_iter(['name', 'cmdline']):
        if process.info['name'] == 'qemu-nbd' and any(
                work_directory.is_socket(word) and
                pathlib.Path(word).is_relative_to(CONF.snapext.work_directory)
                for word in process.info['cmdline'] or ()):
            yield Leftover(
                f'qemu-nbd, process {process.pid}, exports a disk for a '
                f'snapshot.', f'End it with "kill {process.pid}".')
