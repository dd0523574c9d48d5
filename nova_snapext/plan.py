# SPDX-License-Identifier: Apache-2.0
"""The first stage: what is to be snapshotted, and into what."""

from __future__ import annotations

import dataclasses
import typing as ty

from lxml import etree
from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils

from nova_snapext import conf

CONF = conf.CONF


class UnknownInstance:
    """As much of an instance as can be told when Nova does not answer."""

    numa_topology = None

    def __init__(self, uuid: str, name: str):
        self.uuid = uuid
        self.name = name
        self.host = CONF.host
        self.image_meta = objects.ImageMeta.from_dict({})


@dataclasses.dataclass(frozen=True)
class RootDisk:
    """The disk that goes into the image.

    :ivar target: its name inside the guest's definition, such as ``vda``
    :ivar storage: libvirt's type of its source: ``file``, ``block``...
    :ivar path: the file, the block device, or Nova's name of a network disk
    :ivar format: libvirt's format of it: ``qcow2``, ``raw``...
    :ivar obstacle: why nothing but Nova's own snapshot can read it, if so
    """

    target: str
    storage: str
    path: str
    format: str
    obstacle: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One snapshot, as it was asked for.

    :ivar running: the guest has a QEMU process (it may be paused)
    :ivar image_format: Glance's disk_format of the image
    :ivar image_properties: that the image has already
    :ivar metadata: of the image, as Nova gives it to Glance
    :ivar direct_refused: why Nova's direct snapshot, within the storage
        itself, was tried and not possible
    """

    context: nova_context.RequestContext
    instance: objects.Instance
    guest: libvirt_guest.Guest
    running: bool
    disk: RootDisk
    image_id: str
    image_format: str
    image_properties: dict[str, ty.Any]
    metadata: dict[str, ty.Any]
    direct_refused: str | None = None


def root_disk(guest: libvirt_guest.Guest) -> RootDisk:
    """Find the disk that Nova's own snapshot would take: the first."""
    path, disk_format = libvirt_utils.find_disk(guest)
    if CONF.libvirt.virt_type not in ('kvm', 'qemu'):
        return RootDisk(
            target='', storage='', path=path, format=disk_format or '',
            obstacle=f'guests of virt_type {CONF.libvirt.virt_type} have no '
                     f'QEMU to freeze their disk')
    element = etree.fromstring(guest.get_xml_desc()).find('./devices/disk')
    disk = vconfig.LibvirtConfigGuestDisk()
    disk.parse_dom(element)
    return RootDisk(
        target=disk.target_dev,
        storage=disk.source_type,
        path=path,
        format=disk_format or 'raw',
        # Nova's class for a disk does not know this attribute.
        obstacle=_obstacle(disk, element.get('device', 'disk')))


def _obstacle(disk: vconfig.LibvirtConfigGuestDisk,
              device: str) -> str | None:
    if device != 'disk':
        return f'its root disk is a {device}'
    if (CONF.ephemeral_storage_encryption.enabled or
            disk.ephemeral_encryption or disk.volume_encryption):
        return 'its root disk is encrypted'
    return None


def image_format_of(disk: RootDisk) -> str:
    """Give the image's format: the option's, or that of the disk."""
    # What has no format of its own becomes raw, as in Nova.
    image_format = CONF.libvirt.snapshot_image_format or (
        libvirt_utils.get_disk_type_from_path(disk.path) or disk.format)
    return 'raw' if image_format in ('lvm', 'rbd') else image_format
