# SPDX-License-Identifier: Apache-2.0
"""The volume group for `[libvirt]images_type = lvm`.

If the kernel has device-mapper, this is LVM on a file. Otherwise, commands
replace LVM, so that root disks are real block devices, too.
"""

import os
import pathlib
import shutil

from devcloud import errors
from devcloud import lvm_stand_in
from devcloud import shell
from devcloud import state as cloud_state

VOLUME_GROUP = lvm_stand_in.VOLUME_GROUP


def start(state: cloud_state.State) -> None:
    """Create the volume group, if missing, and the devices of its volumes."""
    if has_device_mapper():
        shutil.rmtree(state.lvm / 'bin', ignore_errors=True)
        _start_lvm(state.lvm / 'disk')
        return
    volumes = state.lvm / 'volumes'
    volumes.mkdir(parents=True, exist_ok=True)
    script = pathlib.Path(lvm_stand_in.__file__).read_text()
    for command in lvm_stand_in.COMMANDS:
        shell.write(state.lvm / 'bin' / command, script, mode=0o755)
    group = lvm_stand_in.Group(volumes)
    for name in group.volumes():
        group.attach(name)


def stop(state: cloud_state.State) -> None:
    """Remove the devices; the data of the volumes stays."""
    if (state.lvm / 'disk').exists():
        device = _loop_device(state.lvm / 'disk')
        if device:
            shell.run(['vgchange', '--activate', 'n', VOLUME_GROUP])
            shell.run(['losetup', '--detach', device])
    if (state.lvm / 'volumes').exists():
        group = lvm_stand_in.Group(state.lvm / 'volumes')
        for name in group.volumes():
            group.detach(name)


def has_device_mapper() -> bool:
    """Return whether LVM can activate volumes on this machine."""
    try:
        return 'linear' in shell.run(['dmsetup', 'targets'])
    except errors.CommandFailed:
        return False


def _start_lvm(disk: pathlib.Path) -> None:
    is_new = not disk.exists()
    if is_new:
        disk.parent.mkdir(parents=True, exist_ok=True)
        disk.touch(mode=0o600)
        os.truncate(disk, lvm_stand_in.TOTAL)
    if not _loop_device(disk):
        shell.run(['losetup', '--find', disk])
    if is_new:
        shell.run(['vgcreate', '--yes', VOLUME_GROUP, _loop_device(disk)])
    shell.run(['vgchange', '--activate', 'y', VOLUME_GROUP])


def _loop_device(disk: pathlib.Path) -> str:
    return shell.run(['losetup', '--noheadings', '--output', 'NAME',
                      '--associated', disk]).strip()
