# SPDX-License-Identifier: Apache-2.0
"""A disk and its backing chain in a guest's definition.

https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms
"""

from __future__ import annotations

from collections.abc import Sequence

from lxml import etree

from nova_snapext import exception
from nova_snapext import plan as planning

# The attribute that has the path, for each type of source.
PATH_ATTRIBUTES = {'file': 'file', 'block': 'dev', 'network': 'name'}


def find_disk(definition: str, target: str) -> etree._Element:
    """Return the element of a disk in a guest's definition.

    :param target: the guest's name of the disk, such as ``vda``
    :raises UnexpectedState: the guest has no such disk
    """
    for disk in etree.fromstring(definition).findall('./devices/disk'):
        if disk.find('target').get('dev') == target:
            return disk
    raise exception.UnexpectedState(reason=f'the guest has no disk {target}')


def targets_of(definition: str) -> list[str]:
    """List the guest's names of all its disks, empty drives included."""
    return [target.get('dev') for target in etree.fromstring(definition)
            .findall('./devices/disk/target')]


def all_paths(definition: str) -> set[str]:
    """Return the paths of all disks, backing chains included."""
    sources = etree.fromstring(definition).findall('./devices/disk//source')
    return {path for source in sources
            for attribute in PATH_ATTRIBUTES.values()
            if (path := source.get(attribute)) is not None}


def path_of(disk: etree._Element) -> str | None:
    """Return the path of a disk, a backing store or a mirror."""
    source = disk.find('source')
    attribute = PATH_ATTRIBUTES.get(disk.get('type', ''))
    return (source.get(attribute)
            if source is not None and attribute is not None else None)


def paths_of(disk: etree._Element) -> list[str | None]:
    """List the paths of a disk's backing chain, the active one first.

    libvirt always has the whole chain of a running guest's disk; of another
    it may have the active image only.
    """
    paths = [path_of(disk)]
    backing = disk.find('backingStore')
    while backing is not None and backing.get('type') is not None:
        paths.append(path_of(backing))
        backing = backing.find('backingStore')
    return paths


def text(paths: Sequence[str | None]) -> str:
    """Return a backing chain as operators write it, the active image last."""
    return ' <- '.join(str(path) for path in reversed(paths))


def set_source(disk: etree._Element, root: planning.RootDisk) -> None:
    """Change the file or device of a disk in a guest's definition.

    :param root: the new file or device
    """
    disk.set('type', root.storage)
    disk.find('driver').set('type', root.format)
    source = disk.find('source')
    for attribute in ('index', *PATH_ATTRIBUTES.values()):
        source.attrib.pop(attribute, None)
    source.set(PATH_ATTRIBUTES[root.storage], root.path)
    # libvirt reads the backing chain from the image when the guest starts.
    for backing in disk.findall('backingStore'):
        disk.remove(backing)
