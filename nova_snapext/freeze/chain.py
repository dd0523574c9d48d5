# SPDX-License-Identifier: Apache-2.0
"""A disk's backing chain, as a guest's definition has it.

https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms
"""

from __future__ import annotations

from collections.abc import Sequence

from lxml import etree

from nova_snapext import plan as planning

# Where libvirt keeps the path, for each type of source.
PATH_ATTRIBUTES = {'file': 'file', 'block': 'dev', 'network': 'name'}


def find_disk(definition: str, target: str) -> etree._Element:
    """Find the element of a disk in a guest's definition.

    :param target: the guest's name of the disk, such as ``vda``
    :raises ValueError: the guest has no such disk
    """
    for disk in etree.fromstring(definition).findall('./devices/disk'):
        if disk.find('target').get('dev') == target:
            return disk
    raise ValueError(f'the guest has no disk {target}')


def targets_of(definition: str) -> list[str]:
    """List the guest's names of all its disks, drives without one included."""
    return [target.get('dev') for target in etree.fromstring(definition)
            .findall('./devices/disk/target')]


def path_of(disk: etree._Element) -> str | None:
    """Give the path of the source of a disk, a backing store or a mirror."""
    source = disk.find('source')
    attribute = PATH_ATTRIBUTES.get(disk.get('type', ''))
    return (source.get(attribute)
            if source is not None and attribute is not None else None)


def paths_of(disk: etree._Element) -> list[str | None]:
    """List the paths of a disk's backing chain, the active one first.

    Only of a running guest's disk does libvirt always tell what is below.
    """
    paths = [path_of(disk)]
    below = disk.find('backingStore')
    while below is not None and below.get('type') is not None:
        paths.append(path_of(below))
        below = below.find('backingStore')
    return paths


def text(paths: Sequence[str | None]) -> str:
    """Give a backing chain as operators know it, the active one last."""
    return ' <- '.join(str(path) for path in reversed(paths))


def put_on(disk: etree._Element, root: planning.RootDisk) -> None:
    """Put another file or device below a disk, in its definition.

    :param root: the file or device, with all that is known of it
    """
    disk.set('type', root.storage)
    disk.find('driver').set('type', root.format)
    source = disk.find('source')
    for attribute in ('index', *PATH_ATTRIBUTES.values()):
        source.attrib.pop(attribute, None)
    source.set(PATH_ATTRIBUTES[root.storage], root.path)
    # libvirt finds out by itself, from the image, when the guest starts.
    for below in disk.findall('backingStore'):
        disk.remove(below)
