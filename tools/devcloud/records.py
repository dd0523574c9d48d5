# SPDX-License-Identifier: Apache-2.0
"""Read the records and the file system of a guest's disk, and check them.

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

    :param count: number of valid records
    :param last: number of the last valid record; 0 if there is none
    :param first_gap: number of the first missing or invalid record before
        the last one; None if there is none
    :param corrupt: numbers of the blocks that contain neither zeros nor
        their complete record
    :param boots: ids of the boots that wrote the records, in order
    """

    count: int
    last: int
    first_gap: int | None
    corrupt: tuple[int, ...]
    boots: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Return whether all records up to the last one are valid."""
        return self.first_gap is None and not self.corrupt


@dataclasses.dataclass(frozen=True)
class Filesystem:
    """The ext4 partition.

    :param clean: whether e2fsck finds no error; it does not replay the
        journal here, so a file system that needs recovery is rarely clean
    :param needs_recovery: whether mounting it would replay its journal
    :param count: number of lines of its records file
    :param last: number of the last record in that file; 0 if there is none
    :param first_gap: number of the first missing record before the last one
    :param missing: numbers of all missing records
    :param check: output of e2fsck
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
    """The result of verify()."""

    records: Records
    filesystem: Filesystem


def verify(image: pathlib.Path, image_format: str | None = None,
           scratch: pathlib.Path | None = None) -> Report:
    """Read the records and the file system of a guest's disk.

    :param image: disk image, or block device
    :param image_format: a format of QEMU; None: detect it
    :param scratch: directory for copies of the partitions, up to 400 MiB
    :raises: CloudError if it is not the disk of a guest
    """
    image_format = image_format or probe_format(image)
    with tempfile.TemporaryDirectory(prefix='records-',
                                     dir=scratch) as directory:
        path = pathlib.Path(directory)
        first = _extract(image, image_format, 0, layout.SECTOR,
                         path / 'first')
        try:
            table = layout.read_partitions(first.read_bytes())
        except ValueError as exc:
            raise errors.CloudError(f'{image}: {exc}') from exc
        if len(table) < 3:
            raise errors.CloudError(f'{image} is not the disk of a guest of '
                                    f'this cloud; its partitions: {table}')
        ext4, records = table[1:3]
        return Report(
            read_records(_extract(image, image_format, records.offset,
                                  records.size, path / 'records')),
            read_filesystem(_extract(image, image_format, ext4.offset,
                                     ext4.size, path / 'ext4')))


def probe_format(image: pathlib.Path) -> str:
    """Return `qcow2` or `raw`, depending on the first bytes."""
    with open(image, 'rb') as stream:
        return 'qcow2' if stream.read(4) == b'QFI\xfb' else 'raw'


def read_records(partition: pathlib.Path) -> Records:
    """Read a records partition.

    :param partition: file with its raw content
    """
    valid: list[int] = []
    corrupt: list[int] = []
    boots: dict[str, None] = {}
    with open(partition, 'rb') as stream:
        block = 0
        while content := stream.read(layout.RECORD.size):
            if any(content):
                boot = _boot_of_record(content, block)
                if boot is None:
                    corrupt.append(block)
                else:
                    valid.append(block)
                    boots[boot] = None
            block += 1
    return Records(len(valid), valid[-1] if valid else 0,
                   first_gap(valid), tuple(corrupt), tuple(boots))


def read_filesystem(partition: pathlib.Path) -> Filesystem:
    """Check an ext4 partition without changing it.

    :param partition: file with its raw content
    """
    header = shell.run(['dumpe2fs', '-h', partition])
    try:
        check, clean = shell.run(['e2fsck', '-fn', partition]), True
    except errors.CommandFailed as exc:
        check, clean = exc.output, False
    # NOTE: debugfs exits with 0, even if the file is missing.
    text = shell.run(['debugfs', '-R', 'cat /records.log', partition])
    numbers = [int(line.split()[0]) for line in text.splitlines()
               if line and line.split()[0].isdigit()]
    last = numbers[-1] if numbers else 0
    return Filesystem(clean, 'needs_recovery' in header, len(numbers), last,
                      first_gap(numbers),
                      tuple(sorted(set(range(1, last)) - set(numbers))),
                      check.strip())


def first_gap(numbers: list[int]) -> int | None:
    """Return the first number of 1, 2, 3, ... that is not at its place."""
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            return expected
    return None


def _boot_of_record(content: bytes, block: int) -> str | None:
    """Return the boot id of a block's record, or None if it is invalid."""
    magic, number, boot, _ms, _filler, checksum = layout.RECORD.unpack(
        content)
    if (magic != layout.RECORD_MAGIC or number != block
            or checksum != zlib.crc32(content[:-4])):
        return None
    return boot.rstrip(b'\0').decode(errors='replace')


def _extract(image: pathlib.Path, image_format: str, offset: int, size: int,
             target: pathlib.Path) -> pathlib.Path:
    """Copy a part of a disk, with its backing files, to a file."""
    driver = 'host_device' if image.is_block_device() else 'file'
    source = (f'driver=raw,offset={offset},size={size},'
              f'file.driver={image_format},file.file.driver={driver},'
              f'file.file.filename={str(image).replace(",", ",,")}')
    shell.run(['qemu-img', 'convert', '--image-opts', '-O', 'raw', source,
               target])
    return target
