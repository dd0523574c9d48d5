# SPDX-License-Identifier: Apache-2.0
"""The headers of qcow2 images, and the backing chains that they name.

A guest that has taken over its QEMU can write the header of its own disk. The
header can name any file of the host: a backing file to read from, an external
data file to read from and write to. QEMU's programs follow it. So the header
is read here, where nothing follows it, and checked before such a program opens
the image.

No option of QEMU forbids an external data file. Everything else is passed as
an option (:mod:`nova_snapext.hypervisor.image_opts`), and not taken from the
header by QEMU.

oslo.utils' QcowInspector is stricter than QEMU. It takes extended L2 entries
for unknown, and reads features in version 2, which has none: there it finds a
data file in every image whose backing file is a qcow2.

The format is described in QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os
import pathlib
import struct
import typing as ty

from oslo_utils import units

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import privsep
from nova_snapext import plan as planning

CONF = conf.CONF

# Bytes that are read at the beginning of an image. QEMU writes the header, its
# extensions and the name of the backing file one after the other, in less
# than 4 KiB.
HEAD_SIZE = 64 * units.Ki

# Section "Header": the fields up to the length of the backing file's name, the
# table of snapshots, the incompatible features, the width of the reference
# counts, the length of the header.
BEGIN = struct.Struct('>4sIQI')
SNAPSHOTS_OFFSET, SNAPSHOTS = 60, struct.Struct('>IQ')
FEATURES_OFFSET, FEATURES = 72, struct.Struct('>Q')
REFCOUNT_ORDER_OFFSET, REFCOUNT_ORDER = 96, struct.Struct('>I')
LENGTH_OFFSET, LENGTH = 100, struct.Struct('>I')
V2_LENGTH, V2_REFCOUNT_ORDER = 72, 4
# QEMU opens none with a higher one.
MAX_REFCOUNT_ORDER = 6

# Incompatible features: dirty, corrupt, external data file, compression type,
# extended L2 entries.
CORRUPT = 1 << 1
DATA_FILE = 1 << 2
KNOWN_FEATURES = (1 << 5) - 1

# Section "Header extensions".
EXTENSION = struct.Struct('>II')
BACKING_FORMAT, DATA_FILE_NAME = 0xe2792aca, 0x44415441

# Section "Snapshots": the lengths of id, name and additional data in an entry.
SNAPSHOT, SNAPSHOT_NAME_OFFSET = struct.Struct('>12xHH20xI'), 40
# libvirt and QEMU write some 80 bytes for each snapshot.
SNAPSHOTS_SIZE = units.Mi

# Formats that name no other file, and so need no check.
PLAIN_FORMATS = frozenset({'raw', 'vdi', 'vhdx', 'vpc'})


class Image(ty.NamedTuple):
    """An image of a backing chain.

    :ivar path: absolute path
    :ivar format: QEMU's format driver
    :ivar storage: libvirt's type of its storage: ``file`` or ``block``
    """

    path: str
    format: str
    storage: str


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a qcow2 says.

    :ivar backing_file: name of the backing file as it is written there
    :ivar backing_format: its format; None if QEMU would probe it
    :ivar features: the incompatible features, as a bit set
    :ivar data_file: name of the external data file, for error messages
    :ivar snapshots: number of internal snapshots
    :ivar snapshots_offset: position of their table, in bytes
    :ivar refcount_bits: width of the reference count of a cluster, in bits
    """

    backing_file: str | None
    backing_format: str | None
    features: int
    data_file: str | None
    snapshots: int
    snapshots_offset: int
    refcount_bits: int = 1 << V2_REFCOUNT_ORDER

    @property
    def most_snapshots(self) -> int:
        """The number of internal snapshots that may share one cluster.

        Each counts as a reference, and so does the disk itself.
        """
        return (1 << self.refcount_bits) - 2

    @classmethod
    def read(cls, path: str) -> Header:
        """Read the header of a qcow2, which a guest may be using.

        :raises OSError: the file can't be opened or read
        :raises UnexpectedHeader: it is not a qcow2 that QEMU would write
        """
        head = _read(path, 0, HEAD_SIZE)
        try:
            return cls._parse(head)
        except (struct.error, ValueError) as error:
            raise exception.UnexpectedHeader(
                path=path, reason='is not that of a qcow2') from error

    @classmethod
    def _parse(cls, head: bytes) -> Header:
        magic, version, name_offset, name_length = BEGIN.unpack_from(head)
        if magic != privsep.QCOW2_MAGIC or version not in (2, 3):
            raise ValueError(magic)
        features, length, order = 0, V2_LENGTH, V2_REFCOUNT_ORDER
        if version > 2:
            [features] = FEATURES.unpack_from(head, FEATURES_OFFSET)
            [length] = LENGTH.unpack_from(head, LENGTH_OFFSET)
            [order] = REFCOUNT_ORDER.unpack_from(head, REFCOUNT_ORDER_OFFSET)
        if order > MAX_REFCOUNT_ORDER:
            raise ValueError(order)
        extensions = dict(_extensions(head[:name_offset or None], length))
        name = head[name_offset:name_offset + name_length]
        if name_offset and (len(name) < name_length or b'\0' in name):
            raise ValueError(name)
        snapshots, snapshots_offset = SNAPSHOTS.unpack_from(
            head, SNAPSHOTS_OFFSET)
        return cls(
            os.fsdecode(name) if name_offset and name else None,
            _text(extensions.get(BACKING_FORMAT)), features,
            _text(extensions.get(DATA_FILE_NAME)),
            snapshots, snapshots_offset, 1 << order)

    def check(self, path: str) -> None:
        """Check that the image has all of its data in its own file.

        :param path: of the image, for the error message
        :raises UnexpectedHeader: it has not, or is not known to
        """
        if self.features & DATA_FILE:
            raise exception.UnexpectedHeader(
                path=path, reason=f'names the external data file '
                                  f'{self.data_file!r}')
        if unknown := self.features & ~KNOWN_FEATURES:
            raise exception.UnexpectedHeader(
                path=path, reason=f'has the unknown incompatible features '
                                  f'{unknown:#x}')

    def backing_path(self, path: str) -> str | None:
        """Return the absolute path of the backing file.

        :param path: of the image; a relative name begins at its directory
        :returns: None if there is no backing file
        :raises UnexpectedHeader: it is not a file
        """
        name = self.backing_file
        if name is None:
            return None
        # QEMU's path_has_protocol() in block.c: such a name is no path. It
        # may be a node with any options ("json:").
        if ':' in name.partition('/')[0]:
            raise exception.UnexpectedHeader(
                path=path, reason=f'names the backing file {name!r}, which '
                                  f'is not a path')
        return os.path.join(os.path.dirname(path), name)


def checked_header(path: str) -> Header:
    """Read and check the header of a qcow2.

    :raises OSError: the file can't be opened or read
    :raises UnexpectedHeader: see :meth:`Header.read`, :meth:`Header.check`
    """
    header = Header.read(path)
    header.check(path)
    return header


def snapshot_names(path: str) -> list[str]:
    """List the names of the snapshots inside a qcow2.

    :raises OSError: the file can't be opened or read
    :raises UnexpectedHeader: it is not a qcow2 that QEMU would write
    """
    header = Header.read(path)
    if not header.snapshots:
        return []
    table = _read(path, header.snapshots_offset, SNAPSHOTS_SIZE)
    names, position = [], 0
    try:
        for _ in range(header.snapshots):
            id_length, name_length, more = SNAPSHOT.unpack_from(
                table, position)
            begin = position + SNAPSHOT_NAME_OFFSET + more + id_length
            names.append(os.fsdecode(table[begin:begin + name_length]))
            # Each entry begins at a multiple of 8 bytes.
            position = -(-(begin + name_length) // 8) * 8
    except struct.error as error:
        raise exception.UnexpectedHeader(
            path=path, reason='has a table of snapshots that can\'t be read',
        ) from error
    return names


def chain(path: str, image_format: str,
          storage: str = 'file') -> Iterator[Image]:
    """Return the backing chain of an image, the image itself first.

    Every header in it is checked, but not where the files are.

    :param storage: libvirt's type of the image's storage
    :raises OSError: an image can't be opened or read
    :raises UnexpectedHeader: a header is not as expected
    """
    seen = set()
    while True:
        yield Image(path, image_format, storage)
        if image_format in PLAIN_FORMATS:
            return
        if image_format != 'qcow2':
            raise exception.UnexpectedHeader(
                path=path, reason=f'is not read, as its format is '
                                  f'{image_format}')
        seen.add(os.path.realpath(path))
        header = checked_header(path)
        backing = header.backing_path(path)
        if backing is None:
            return
        if os.path.realpath(backing) in seen:
            raise exception.UnexpectedHeader(
                path=path, reason=f'names the backing file '
                                  f'{header.backing_file!r}, which is above '
                                  f'it in the chain')
        path, storage = backing, storage_of(backing)
        image_format = header.backing_format or _probe(backing)


def checked_chain(disk: planning.RootDisk,
                  expected: Sequence[str | None] | None) -> list[Image]:
    """Return the backing chain of a disk, the disk itself first.

    :param expected: the paths below the disk, as libvirt knows them since the
        guest started; the chain may have fewer. None if they are not known:
        then each has to be in the directory of the disk, which is the
        instance's, or in Nova's image cache.
    :raises OSError: an image can't be opened or read
    :raises UnexpectedHeader: a header is not as expected
    """
    images: list[Image] = []
    for image in chain(disk.path, disk.format, disk.storage):
        if images and expected is None and not _is_novas(image.path, disk):
            raise exception.UnexpectedHeader(
                path=images[-1].path,
                reason=f'names the backing file {image.path}, which is '
                       f'neither in the directory of the instance nor in '
                       f'Nova\'s image cache {_image_cache()}')
        images.append(image)
    paths = [image.path for image in images[1:]]
    if expected is not None and not _are_among(paths, expected):
        raise exception.UnexpectedHeader(
            path=disk.path,
            reason=f'leads to the backing files {", ".join(paths) or "(none)"}'
                   f', and the guest was started with '
                   f'{", ".join(map(str, expected)) or "none"}')
    return images


def _are_among(paths: Sequence[str], expected: Sequence[str | None]) -> bool:
    # An operator may have taken images out of the chain (virsh blockpull), in
    # which case the others are still in this order.
    remaining = iter([path and os.path.realpath(path) for path in expected])
    return all(os.path.realpath(path) in remaining for path in paths)


def _is_novas(path: str, disk: planning.RootDisk) -> bool:
    directories = {os.path.realpath(_image_cache())}
    if disk.storage == 'file':
        directories.add(os.path.realpath(os.path.dirname(disk.path)))
    return os.path.realpath(os.path.dirname(path)) in directories


def _image_cache() -> str:
    return str(pathlib.Path(CONF.instances_path,
                            CONF.image_cache.subdirectory_name))


def storage_of(path: str) -> str:
    """Return libvirt's type of the storage of an image on this host."""
    return 'block' if pathlib.Path(path).is_block_device() else 'file'


def _probe(path: str) -> str:
    # Old versions of QEMU wrote no format. libvirt allows that for an image
    # without a backing file of its own.
    return ('qcow2' if _read(path, 0, len(privsep.QCOW2_MAGIC)) else 'raw')


def _read(path: str, offset: int, length: int) -> bytes:
    try:
        return privsep.unprivileged_read_qcow2(path, offset, length)
    except PermissionError:
        # libvirt gives a disk to QEMU's user while its guest runs.
        return bytes(privsep.read_qcow2(path, offset, length))


def _extensions(head: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    while position + EXTENSION.size <= len(head):
        kind, length = EXTENSION.unpack_from(head, position)
        if not kind:
            return
        position += EXTENSION.size
        yield kind, head[position:position + length]
        position += -(-length // 8) * 8


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors='replace')
