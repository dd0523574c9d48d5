#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""lvcreate, lvremove, lvs and vgs for machines without device-mapper.

This file is installed with these four names in a directory BIN. It supports
only the arguments that Nova uses. A logical volume is a sparse file beside
BIN, on a loop device, with the link /dev/VG/LV and the permissions of LVM.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NoReturn

VOLUME_GROUP = 'snapext'

#: Size of the volume group, and of the extents of volumes.
TOTAL = 256 << 30
EXTENT = 4 << 20

#: LVM's exit code for all errors.
ECMD_FAILED = 5

LINKS = pathlib.Path('/dev') / VOLUME_GROUP


class Group:
    """The volume group.

    :param home: directory of the volumes' files
    """

    def __init__(self, home: pathlib.Path) -> None:
        self.home = home

    def volumes(self) -> dict[str, int]:
        """Return name and size in bytes of all volumes."""
        return {path.name: path.stat().st_size
                for path in sorted(self.home.iterdir())}

    def free(self) -> int:
        return TOTAL - sum(self.volumes().values())

    def create(self, name: str, size: int) -> None:
        size = -(-size // EXTENT) * EXTENT
        if name in self.volumes():
            fail(f'Logical Volume "{name}" already exists in volume group '
                 f'"{VOLUME_GROUP}"')
        if size > self.free():
            fail(f'Volume group "{VOLUME_GROUP}" has insufficient free space')
        with open(self.home / name, 'xb') as file:
            file.truncate(size)
        self.attach(name)

    def attach(self, name: str) -> None:
        """Create a volume's block device, unless it exists."""
        link = LINKS / name
        if self.device(name):
            return
        device = run('losetup', '--find', '--show', str(self.home / name))
        os.chmod(device, 0o660)
        shutil.chown(device, 'root', 'disk')
        LINKS.mkdir(exist_ok=True)
        LINKS.chmod(0o755)  # The umask of the caller may be another one.
        link.unlink(missing_ok=True)
        link.symlink_to(device)

    def detach(self, name: str) -> None:
        """Remove a volume's block device."""
        if device := self.device(name):
            run('losetup', '--detach', device)
        (LINKS / name).unlink(missing_ok=True)
        if LINKS.is_dir() and not any(LINKS.iterdir()):
            LINKS.rmdir()

    def device(self, name: str) -> str:
        """Return the loop device of a volume, or an empty string."""
        return run('losetup', '--noheadings', '--output', 'NAME',
                   '--associated', str(self.home / name))

    def remove(self, name: str) -> None:
        self.find(name)
        self.detach(name)
        (self.home / name).unlink()

    def find(self, name: str) -> int:
        """Return the size of a volume in bytes; fail like LVM if missing."""
        volumes = self.volumes()
        if name not in volumes:
            fail(f'Failed to find logical volume "{VOLUME_GROUP}/{name}"')
        return volumes[name]


def fail(text: str) -> NoReturn:
    print(f'  {text}', file=sys.stderr)
    sys.exit(ECMD_FAILED)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, text=True,
                          stdout=subprocess.PIPE).stdout.strip()


def size_in_bytes(text: str) -> int:
    """Return a size from Nova's format: a number of bytes with unit b."""
    return int(text.removesuffix('b'))


def known_group(name: str) -> str:
    if name.removeprefix('/dev/') != VOLUME_GROUP:
        fail(f'Volume group "{name}" not found')
    return name


def lvcreate(group: Group, argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='lvcreate')
    parser.add_argument('-y', action='store_true')
    parser.add_argument('-L', dest='size', type=size_in_bytes)
    parser.add_argument('--virtualsize', type=size_in_bytes)
    parser.add_argument('-n', dest='name')
    parser.add_argument('group', type=known_group)
    arguments = parser.parse_args(argv)
    group.create(arguments.name, arguments.virtualsize or arguments.size)


def lvremove(group: Group, argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='lvremove')
    parser.add_argument('-f', action='store_true')
    parser.add_argument('path', type=pathlib.PurePath)
    path = parser.parse_args(argv).path
    known_group(path.parent.name)
    group.remove(path.name)


def lvs(group: Group, argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='lvs')
    parser.add_argument('--noheadings', action='store_true')
    parser.add_argument('--separator')
    parser.add_argument('-o', dest='columns')
    parser.add_argument('path', type=pathlib.PurePath)
    arguments = parser.parse_args(argv)
    if arguments.columns == 'lv_name':
        known_group(str(arguments.path))
        for name in group.volumes():
            print(f'  {name}')
        return
    known_group(arguments.path.parent.name)
    name = arguments.path.name
    separator = arguments.separator or ' '
    print('  ' + separator.join(('Fmt', 'VG', 'LV', 'LSize', 'Path')))
    print('  ' + separator.join(('lvm2', VOLUME_GROUP, name,
                                 f'{group.find(name)}B', str(LINKS / name))))


def vgs(group: Group, argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='vgs')
    parser.add_argument('--noheadings', action='store_true')
    parser.add_argument('--nosuffix', action='store_true')
    parser.add_argument('--separator', default=' ')
    parser.add_argument('--units', choices=['b'])
    parser.add_argument('-o', dest='columns', choices=['vg_size,vg_free'])
    parser.add_argument('group', type=known_group)
    arguments = parser.parse_args(argv)
    print(f'  {TOTAL}{arguments.separator}{group.free()}')


COMMANDS = {'lvcreate': lvcreate, 'lvremove': lvremove, 'lvs': lvs,
            'vgs': vgs}

if __name__ == '__main__':
    command = pathlib.Path(sys.argv[0])
    COMMANDS[command.name](Group(command.parent.parent / 'volumes'),
                           sys.argv[1:])
