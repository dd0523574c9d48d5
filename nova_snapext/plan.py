# SPDX-License-Identifier: Apache-2.0
"""What a snapshot is taken of, and what it becomes."""

from __future__ import annotations

import dataclasses
import enum
import typing as ty

from lxml import etree
from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils

from nova_snapext import conf
from nova_snapext import exception

if ty.TYPE_CHECKING:
    from nova_snapext.hypervisor import domain

CONF = conf.CONF


class Consistency(enum.StrEnum):
    """What a guest that boots from the image finds."""

    CRASH = 'crash'             # as after a power failure
    FILESYSTEM = 'filesystem'   # clean filesystems, frozen by the guest agent
    OFFLINE = 'offline'         # as the guest left it when it was shut off


class UnknownInstance:
    """As much of an instance as the journal has, when Nova does not answer."""

    numa_topology = None

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


def find_root_disk(guest: libvirt_guest.Guest) -> RootDisk:
    """Find the disk that Nova's own snapshot would take: the first one.

    :raises RootDiskUnknown: the guest has no disk, or libvirt describes it
        in a way that Nova does not know
    """
    try:
        path, disk_format = libvirt_utils.find_disk(guest)
    except (StopIteration, RuntimeError, etree.XMLSyntaxError) as error:
        raise exception.RootDiskUnknown(
            guest=guest.uuid, reason=str(error) or 'it has no disk',
        ) from error
    if CONF.libvirt.virt_type not in ('kvm', 'qemu'):
        return RootDisk(
            target='', storage='', path=path, format=disk_format or '',
            unsupported_reason=(
                f'guests of virt_type {CONF.libvirt.virt_type} have no QEMU '
                f'that could freeze their disk'))
    element = etree.fromstring(guest.get_xml_desc()).find('./devices/disk')
    disk = vconfig.LibvirtConfigGuestDisk()
    disk.parse_dom(element)
    return RootDisk(
        target=disk.target_dev,
        storage=disk.source_type,
        path=path,
        format=disk_format or 'raw',
        # Nova's class for a disk does not know this attribute.
        unsupported_reason=_unsupported_reason(
            disk, element.get('device', 'disk')))


def _unsupported_reason(disk: vconfig.LibvirtConfigGuestDisk,
                        device: str) -> str | None:
    if device != 'disk':
        return f'its root disk is a {device}'
    if (CONF.ephemeral_storage_encryption.enabled or
            disk.ephemeral_encryption or disk.volume_encryption):
        return 'its root disk is encrypted'
    return None


def image_format_of(disk: RootDisk) -> str:
    """Return Glance's disk_format for the image of a disk.

    It is the option's, otherwise the disk's own, as in Nova.
    """
    # A disk without a format of its own becomes raw, as in Nova.
    image_format = CONF.libvirt.snapshot_image_format or (
        libvirt_utils.get_disk_type_from_path(disk.path) or disk.format)
    return 'raw' if image_format in ('lvm', 'rbd') else image_format
