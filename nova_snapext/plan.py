# SPDX-License-Identifier: Apache-2.0
"""What a snapshot is taken of, and what it becomes."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import enum
import os
import re
import typing as ty

from lxml import etree
from nova import block_device
from nova.compute import vm_states
from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import reason as reasons

if ty.TYPE_CHECKING:
    from nova_snapext.hypervisor import domain

CONF = conf.CONF

#: Our file over the root disk, in the instance's directory, for as long as
#: a guest writes to it.
OVERLAY_NAME = 'disk.snapext'

# Nova's names of an instance's other disks (nova/virt/libvirt/blockinfo.py).
# An operator's snapshot of the root disk may be "disk.snap1": only the whole
# name tells.
_OTHER_DISK = r'disk\.(local|swap|eph\d+|rescue|config(\.rescue)?)'


class Consistency(enum.StrEnum):
    """What a guest that boots from the image finds."""

    CRASH = 'crash'             # as after a power failure
    FILESYSTEM = 'filesystem'   # clean filesystems, frozen by the guest agent
    OFFLINE = 'offline'         # as the guest left it when it was shut off


class UnknownInstance:
    """As much of an instance as the journal has, when Nova does not answer."""

    numa_topology = None
    root_device_name = None
    vm_state = None

    def __init__(self, uuid: str, name: str):
        self.uuid = uuid
        self.name = name
        self.host = CONF.host
        self.image_meta = objects.ImageMeta.from_dict({})


@dataclasses.dataclass(frozen=True)
class RootDisk:
    """The disk that becomes the image.

    :ivar target: the guest's name of the disk, such as ``vda``
    :ivar storage: libvirt's type of its source: ``file``, ``block``...
    :ivar path: the file, the block device, or Nova's name of a network disk
    :ivar format: libvirt's format of the disk: ``qcow2``, ``raw``...
    :ivar unsupported_reason: why only Nova's own snapshot can read it; None
        if other strategies can
    """

    target: str
    storage: str
    path: str
    format: str
    unsupported_reason: str | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """The instance, disk and image of one snapshot.

    This is all that is needed to release the resources of a snapshot.

    :ivar image_id: the image's id in Glance
    """

    context: nova_context.RequestContext
    instance: objects.Instance
    disk: RootDisk
    image_id: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Plan(Target):
    """One snapshot, as it was requested.

    :ivar running: the guest has a QEMU process (it may be paused)
    :ivar image_format: Glance's disk_format of the image
    :ivar image_properties: the properties that the image already has
    :ivar metadata: the image's metadata, as Nova sends it to Glance
    :ivar direct_refused: why Nova's direct snapshot, inside the storage
        itself, was tried and is not possible; None if it was not tried
    """

    guest: domain.Domain
    running: bool
    image_format: str
    image_properties: dict[str, ty.Any]
    metadata: dict[str, ty.Any]
    direct_refused: str | None = None


def find_root_disk(guest: libvirt_guest.Guest,
                   instance: objects.Instance) -> RootDisk:
    """Find the disk that Nova's records call the root disk.

    It is not always the first one: libvirt sorts the disks of a bus by
    target. The records are:

    * root_device_name of the instance: Nova gives the root disk this target
      (get_root_info in nova/virt/libvirt/blockinfo.py).
    * The name of the file, the logical volume or the RBD image, which Nova
      derives from the instance (nova/virt/libvirt/imagebackend.py).
    * The block device mapping, where these two do not settle it: Nova prefers
      its device name when it defines the guest again.

    The boot order is no record: Nova sets none for the root disk, and an
    operator may let a guest boot from another disk.

    :raises RootDiskUnknown: the guest has no disk, the records do not settle
        which one it is, or libvirt describes it in a way that Nova does not
        know
    """
    if CONF.libvirt.virt_type not in ('kvm', 'qemu'):
        return _unsupported_root_disk(guest)
    try:
        element = _select_root_disk(guest, instance)
    except etree.XMLSyntaxError as error:
        raise _root_disk_unknown(guest, str(error)) from error
    disk = vconfig.LibvirtConfigGuestDisk()
    disk.parse_dom(element)
    path = disk.source_path
    if disk.source_protocol == 'rbd':
        path = f'rbd:{disk.source_name}'  # as in Nova
    if path is None:
        raise _root_disk_unknown(
            guest, f'Nova can\'t use the source of disk {disk.target_dev}')
    return RootDisk(
        target=disk.target_dev,
        storage=disk.source_type,
        path=path,
        format=disk.driver_format or 'raw',
        # Nova's class for a disk does not know this attribute.
        unsupported_reason=_unsupported_reason(
            disk, element.get('device', 'disk')))


def _unsupported_root_disk(guest: libvirt_guest.Guest) -> RootDisk:
    """Return the disk of a container: the one that Nova's snapshot takes."""
    try:
        path, disk_format = libvirt_utils.find_disk(guest)
    except (StopIteration, RuntimeError, etree.XMLSyntaxError) as error:
        raise _root_disk_unknown(
            guest, str(error) or 'it has no disk') from error
    return RootDisk(
        target='', storage='', path=path, format=disk_format or '',
        unsupported_reason=(
            f'guests of virt_type {CONF.libvirt.virt_type} have no QEMU '
            f'that could freeze their disk'))


def _root_disk_unknown(guest: libvirt_guest.Guest,
                       reason: str) -> exception.RootDiskUnknown:
    return exception.RootDiskUnknown(guest=guest.uuid, reason=reason)


def _select_root_disk(guest: libvirt_guest.Guest,
                      instance: objects.Instance) -> etree._Element:
    """Return the element of the root disk in the guest's definition."""
    disks = [disk for disk in
             etree.fromstring(guest.get_xml_desc()).findall('./devices/disk')
             if _paths(disk)]
    if not disks:
        raise _root_disk_unknown(guest, 'it has no disk')
    # Active images come first: an operator's disk may have the root disk as
    # its backing file.
    own = ([disk for disk in disks if _is_own(_paths(disk)[0], instance)] or
           [disk for disk in disks if any(
               _is_own(path, instance) for path in _paths(disk))])
    candidates = own or [disk for disk in disks
                         if not _is_other(_paths(disk), instance)]
    # A rescued guest's disks have other targets.
    name = (None if instance.vm_state == vm_states.RESCUED
            else instance.root_device_name)
    named = _with_target(disks, name)
    found = [disk for disk in candidates if not named or disk in named]
    if len(found) == 1:
        return found[0]
    mapped_name = _mapped_name(instance)
    mapped = _with_target(disks, mapped_name)
    found = [disk for disk in candidates if disk in mapped]
    if len(found) == 1:
        return found[0]
    raise _root_disk_unknown(guest, (
        f'its root_device_name ({name}) is the target of {_text(named)}, the '
        f'device name of its block device mapping ({mapped_name}) that of '
        f'{_text(mapped)}, and the names of files and volumes are those of '
        f'{_text(candidates)}'))


def _paths(disk: etree._Element) -> list[str]:
    """List the paths of a disk's backing chain, the active one first."""
    images = [disk, *disk.xpath('.//backingStore[not(ancestor::mirror)]')]
    return [path for image in images for path in image.xpath(
        'source/@file | source/@dev | source/@name')]


def _is_own(path: str, instance: objects.Instance) -> bool:
    """Return whether a path is what Nova calls an instance's root disk."""
    if os.path.basename(path) in (
            f'{instance.uuid}_disk', f'{instance.uuid}_disk-dmcrypt'):
        return True
    directory = libvirt_utils.get_instance_path(instance)
    # Nova may have defined the guest with another instances_path.
    return any(
        path.endswith(f'/{instance.uuid}/{name}') or
        os.path.realpath(path) == os.path.realpath(
            os.path.join(directory, name))
        for name in ('disk', OVERLAY_NAME))


def _is_other(paths: Sequence[str], instance: objects.Instance) -> bool:
    """Return whether a chain has what Nova calls another disk."""
    pattern = re.compile(
        rf'(.*/)?{re.escape(instance.uuid)}[/_]{_OTHER_DISK}')
    return any(pattern.fullmatch(path) for path in paths)


def _with_target(disks: Sequence[etree._Element],
                 name: str | None) -> list[etree._Element]:
    """List the disks with one of Nova's device names, such as /dev/vda."""
    return [disk for disk in disks if name and
            _target(disk) == block_device.strip_dev(name)]


def _target(disk: etree._Element) -> str:
    return str(disk.xpath('string(target/@dev)'))


def _mapped_name(instance: objects.Instance) -> str | None:
    """Return the device name of an instance's root block device mapping."""
    if isinstance(instance, UnknownInstance):
        return None
    mapping = objects.BlockDeviceMappingList.get_by_instance_uuid(
        nova_context.get_admin_context(), instance.uuid).root_bdm()
    return mapping.device_name if mapping else None


def _text(disks: Sequence[etree._Element]) -> str:
    return ' or '.join(f'{_target(disk)} ({_paths(disk)[0]})'
                       for disk in disks) or 'none of its disks'


def _unsupported_reason(disk: vconfig.LibvirtConfigGuestDisk,
                        device: str) -> str | None:
    if device != 'disk':
        return reasons.UserReason(f'its root disk is a {device}')
    # Nova's name for a mapped volume tells, also if its option was on only
    # when the instance was created.
    if (CONF.ephemeral_storage_encryption.enabled or
            str(disk.source_path).endswith('-dmcrypt') or
            disk.ephemeral_encryption or disk.volume_encryption):
        return reasons.UserReason('its root disk is encrypted')
    return None


def image_format_of(disk: RootDisk) -> str:
    """Return Glance's disk_format for the image of a disk.

    It is the option's, otherwise the disk's own, as in Nova.
    """
    # A disk without a format of its own becomes raw, as in Nova.
    image_format = CONF.libvirt.snapshot_image_format or (
        libvirt_utils.get_disk_type_from_path(disk.path) or disk.format)
    return 'raw' if image_format in ('lvm', 'rbd') else image_format
