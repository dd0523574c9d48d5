# SPDX-License-Identifier: Apache-2.0
"""The layout of the guest's disk: partitions and records."""

import dataclasses
import struct

MIB = 1 << 20
SECTOR = 512

#: A record of guest/recorder.c. It fills one block; block 0 is empty.
RECORD = struct.Struct('<8sQ16sQ4052sI')
RECORD_MAGIC = b'SNAPREC1'
RECORDS_MAX = 256 * MIB // RECORD.size

_PARTITION = struct.Struct('<B3xB3xII')
_SIGNATURE = b'\x55\xaa'
_TABLE_OFFSET = 446


@dataclasses.dataclass(frozen=True)
class Partition:
    """One primary partition.

    :param kind: its type byte
    :param offset: its start, in bytes
    :param size: its length, in bytes
    :param active: whether the firmware boots from it
    """

    kind: int
    offset: int
    size: int
    active: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.size


#: Partitions of every guest, in order: boot (FAT16), ext4, records.
BOOT = Partition(0x06, MIB, 48 * MIB, active=True)
EXT4 = Partition(0x83, BOOT.end, 64 * MIB)
RECORDS = Partition(0xda, EXT4.end, RECORDS_MAX * RECORD.size)
#: The mixed guest has this partition, too; its disk ends with it.
DATA = Partition(0xda, RECORDS.end, 8192 * MIB - RECORDS.end)


def boot_record(partitions: list[Partition], code: bytes) -> bytes:
    """Return the first sector of a disk.

    :param partitions: up to four
    :param code: boot code, at most 440 bytes
    """
    table = b''.join(
        _PARTITION.pack(0x80 if one.active else 0, one.kind,
                        one.offset // SECTOR, one.size // SECTOR)
        for one in partitions)
    return (code.ljust(_TABLE_OFFSET, b'\0') + table.ljust(64, b'\0')
            + _SIGNATURE)


def read_partitions(sector: bytes) -> list[Partition]:
    """Return the partitions in a disk's first sector.

    :raises: ValueError if it has no partition table
    """
    if sector[510:512] != _SIGNATURE:
        raise ValueError('the disk has no partition table')
    entries = _PARTITION.iter_unpack(sector[_TABLE_OFFSET:510])
    return [Partition(kind, start * SECTOR, count * SECTOR, flag == 0x80)
            for flag, kind, start, count in entries if kind]
