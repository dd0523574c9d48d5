# SPDX-License-Identifier: Apache-2.0
"""Prove from outside what a guest's disk holds.

    report = verify(pathlib.Path('snapshot.qcow2'))
    assert report.records.complete and report.filesystem.clean
"""

import dataclasses
import pathlib
import tempfile
import zlib

from devcloud import errors
from devcloud import layout
from devcloud import shell


@dataclasses.dataclass(frozen=True)
class Records:
    """The records partition.

    :param count: number of sound records
    :param last: number of the last sound one; 0 if there is none
    :param first_gap: number of the first that is missing or unsound before
        the last; None if there is none
    :param corrupt: numbers of the blocks that hold something else than their
        record, or part of it
    :param boots: ids of the boots that wrote them, in order
    """

    count: int
    last: int
    first_gap: int | None
    corrupt: tuple[int, ...]
    boots: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all from the first to the last are there, and sound."""
        return self.first_gap is None and not self.corrupt


@dataclasses.dataclass(frozen=True)
class Filesystem:
    """The ext4 partition.

    :param clean: whether e2fsck finds nothing to mend; as it replays no
        journal here, one that needs recovery is as a rule not clean
    :param needs_recovery: whether mounting it would replay its journal
    :param count: number of lines of its records file
    :param last: number of the last record in that file; 0 if there is none
    :param first_gap: number of the first one that is missing before the last
    :param missing: numbers of all that are
    :param check: what e2fsck said
    """

    clean: bool
    needs_recovery: bool
    count: int
    last: int
    first_gap: int | None
    missing: tuple[int, ...]
    check: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What verify() found."""

    records: Records
    filesystem: Filesystem


def verify(image: pathlib.Path, image_format: str | None = None,
           scratch: pathlib.Path | None = None) -> Report:
    """Read the records and the filesystem of a guest's disk.

    :param image: disk image, or block device
    :param image_format: of QEMU's; None: as its content says
    :param scratch: directory for the partitions, up to 400 MiB
    :raises: CloudError if it cannot be read as a guest's disk
    """
    image_format = image_format or probe_format(image)
    with tempfile.TemporaryDirectory(prefix='records-',
                                     dir=scratch) as directory:
        place = pathlib.Path(directory)
        first = _extract(image, image_format, 0, layout.SECTOR,
                         place / 'first')
        try:
            table = layout.read_partitions(first.read_bytes())
        except ValueError as exc:
            raise errors.CloudError(f'{image}: {exc}') from exc
        if len(table) < 3:
            raise errors.CloudError(f'{image} is not the disk of a guest '
                                    f'of ours: {table}')
        ext4, records = table[1:3]
        return Report(
            read_records(_extract(image, image_format, records.offset,
                                  records.size, place / 'records')),
            read_filesystem(_extract(image, image_format, ext4.offset,
                                     ext4.size, place / 'ext4')))


def probe_format(image: pathlib.Path) -> str:
    """`qcow2` or `raw`, as the first bytes say."""
    with open(image, 'rb') as stream:
        return 'qcow2' if stream.read(4) == b'QFI\xfb' else 'raw'


def read_records(partition: pathlib.Path) -> Records:
    """Read a records partition.

    :param partition: file that holds its raw content
    """
    sound: list[int] = []
    corrupt: list[int] = []
    boots: dict[str, None] = {}
    with open(partition, 'rb') as stream:
        block = 0
        while content := stream.read(layout.RECORD.size):
            if any(content):
                boot = _sound_record(content, block)
                if boot is None:
                    corrupt.append(block)
                else:
                    sound.append(block)
                    boots[boot] = None
            block += 1
    return Records(len(sound), sound[-1] if sound else 0,
                   first_gap(sound), tuple(corrupt), tuple(boots))


def read_filesystem(partition: pathlib.Path) -> Filesystem:
    """Check an ext4 partition without changing it.

    :param partition: file that holds its raw content
    """
    header = shell.run(['dumpe2fs', '-h', partition])
    try:
        check, clean = shell.run(['e2fsck', '-fn', partition]), True
    except errors.CommandFailed as exc:
        check, clean = exc.output, False
    # NOTE: debugfs says that the file is missing, and yet exits with 0.
    text = shell.run(['debugfs', '-R', 'cat /records.log', partition])
    numbers = [int(line.split()[0]) for line in text.splitlines()
               if line and line.split()[0].isdigit()]
    last = numbers[-1] if numbers else 0
    return Filesystem(clean, 'needs_recovery' in header, len(numbers), last,
                      first_gap(numbers),
                      tuple(sorted(set(range(1, last)) - set(numbers))),
                      check.strip())


def first_gap(numbers: list[int]) -> int | None:
    """The first number of 1, 2, 3, ... that a list should hold there."""
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            return expected
    return None


def _sound_record(content: bytes, block: int) -> str | None:
    """The boot id of a block's record, or None if it is not sound."""
    magic, number, boot, _ms, _filler, checksum = layout.RECORD.unpack(
        content)
    if (magic != layout.RECORD_MAGIC or number != block
            or checksum != zlib.crc32(content[:-4])):
        return None
    return boot.rstrip(b'\0').decode(errors='replace')


def _extract(image: pathlib.Path, image_format: str, offset: int, size: int,
             target: pathlib.Path) -> pathlib.Path:
    """Copy a stretch of a disk, backing files included, into a file."""
    driver = 'host_device' if image.is_block_device() else 'file'
    source = (f'driver=raw,offset={offset},size={size},'
              f'file.driver={image_format},file.file.driver={driver},'
              f'file.file.filename={str(image).replace(",", ",,")}')
    shell.run(['qemu-img', 'convert', '--image-opts', '-O', 'raw', source,
               target])
    return target
