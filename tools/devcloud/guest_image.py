# SPDX-License-Identifier: Apache-2.0
"""Make the guest's disk from files of Debian packages.

Nothing is mounted: mtools and syslinux write the boot partition, mke2fs writes
the ext4 partition, and this module the partition table. A BIOS boots the disk
with syslinux, UEFI with systemd-boot; both boot the same kernel.
"""

import os
import pathlib
import re
import shutil

from devcloud import errors
from devcloud import layout
from devcloud import packages
from devcloud import shell

SOURCES = pathlib.Path(__file__).with_name('guest')

#: Packages with files for the guest: unpacked, never installed.
KERNEL = 'linux-image-cloud-amd64'
AGENT = 'qemu-guest-agent'
EFI_LOADER = 'systemd-boot-efi'

#: Kernel modules for disks on any bus, the agent's port, and the power button.
#: Their dependencies are added.
MODULES = ('virtio_pci', 'virtio_blk', 'virtio_scsi', 'ata_piix', 'sd_mod',
           'virtio_console', 'button', 'evdev')

APPLETS = ('acpid', 'cat', 'cut', 'dd', 'dmesg', 'grep', 'insmod', 'killall',
           'mount', 'pidof', 'poweroff', 'sh', 'sleep', 'sync', 'umount',
           'usleep')

KERNEL_COMMAND_LINE = 'console=ttyS0 quiet panic=1 rdinit=/init'

SYSLINUX_CONFIGURATION = f"""\
DEFAULT guest
LABEL guest
    KERNEL /vmlinuz
    INITRD /initrd
    APPEND {KERNEL_COMMAND_LINE}
"""

SYSTEMD_BOOT_ENTRY = f"""\
title guest
linux /vmlinuz
initrd /initrd
options {KERNEL_COMMAND_LINE}
"""

MBR_CODE = pathlib.Path('/usr/lib/syslinux/mbr/mbr.bin')


def build(target: pathlib.Path, scratch: pathlib.Path,
          substitutions: dict[str, str],
          partitions: list[layout.Partition], size: int) -> None:
    """Write a bootable, sparse raw disk with an empty data partition.

    :param target: file to write
    :param scratch: directory for intermediate files
    :param substitutions: new values of words in the init script
    :param partitions: its partitions
    :param size: its size in bytes
    """
    files = scratch / 'packages'
    if not files.exists():
        kernel = packages.dependency(KERNEL, 'linux-image-')
        packages.unpack((kernel, AGENT, EFI_LOADER), files)
    initrd = _initramfs(scratch, files, substitutions)
    boot = _boot_partition(scratch, files, initrd)
    ext4 = _ext4_partition(scratch)
    with open(target, 'wb') as disk:
        disk.truncate(size)
        disk.write(layout.boot_record(partitions, MBR_CODE.read_bytes()))
        for part, partition in ((boot, layout.BOOT), (ext4, layout.EXT4)):
            disk.seek(partition.offset)
            with open(part, 'rb') as source:
                shutil.copyfileobj(source, disk, layout.MIB)


def _initramfs(scratch: pathlib.Path, files: pathlib.Path,
               substitutions: dict[str, str]) -> pathlib.Path:
    tree = scratch / 'initramfs'
    shutil.rmtree(tree, ignore_errors=True)
    for name in ('bin', 'sbin', 'proc', 'sys', 'dev', 'data', 'run', 'tmp',
                 'modules', 'etc/acpi/PWRF', 'usr/bin', 'usr/sbin'):
        (tree / name).mkdir(parents=True)
    shutil.copy('/bin/busybox', tree / 'bin/busybox')
    for applet in APPLETS:
        (tree / 'bin' / applet).symlink_to('busybox')
    _add_modules(tree, files)
    _add_agent(tree, files)
    shell.run(['gcc', '-static', '-O2', '-o', tree / 'bin/recorder',
               SOURCES / 'recorder.c'])
    init = (SOURCES / 'init').read_text()
    for word, value in substitutions.items():
        init = init.replace(word, value)
    shell.write(tree / 'init', init, mode=0o755)
    for name in ('sbin/shutdown', 'etc/acpi/PWRF/00000080'):
        shutil.copy(SOURCES / 'shutdown', tree / name)
        os.chmod(tree / name, 0o755)
    target = scratch / 'initrd'
    shell.run(['sh', '-c', 'find . | cpio -o -H newc --quiet -R 0:0 '
               '| gzip -9 > "$1"', 'sh', target], cwd=tree)
    return target


def _add_modules(tree: pathlib.Path, files: pathlib.Path) -> None:
    """Copy kernel modules, and write the file with their load order."""
    known = {path.stem.replace('-', '_'): path
             for path in (files / 'lib/modules').rglob('*.ko')}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in known:  # Unknown modules are built in.
            return
        found = re.search(rb'\0depends=([^\0]*)\0',
                          known[name].read_bytes())
        if found:
            for needed in found[1].decode().split(','):
                add(needed.replace('-', '_'))
        order.append(name)
        shutil.copy(known[name], tree / 'modules' / f'{name}.ko')

    for name in MODULES:
        add(name)
    shell.write(tree / 'modules' / 'order', '\n'.join(order) + '\n')


def _add_agent(tree: pathlib.Path, files: pathlib.Path) -> None:
    """Copy the guest agent and its libraries."""
    agent = files / 'usr/sbin/qemu-ga'
    shutil.copy(agent, tree / 'usr/sbin/qemu-ga')
    for line in shell.run(['ldd', agent]).splitlines():
        if 'not found' in line:
            raise errors.CloudError(
                f'qemu-ga needs a library that is not installed: {line}')
        for word in line.split():
            if word.startswith('/'):
                copy = tree / word.lstrip('/')
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, copy)


def _boot_partition(scratch: pathlib.Path, files: pathlib.Path,
                    initrd: pathlib.Path) -> pathlib.Path:
    target = scratch / 'boot.fat'
    configuration = scratch / 'syslinux.cfg'
    shell.write(configuration, SYSLINUX_CONFIGURATION)
    entry = scratch / 'guest.conf'
    shell.write(entry, SYSTEMD_BOOT_ENTRY)
    efi_loader = files / 'usr/lib/systemd/boot/efi/systemd-bootx64.efi'
    (kernel,) = (files / 'boot').glob('vmlinuz-*')
    target.unlink(missing_ok=True)
    with open(target, 'wb') as image:
        image.truncate(layout.BOOT.size)
    sectors = layout.BOOT.size // layout.SECTOR
    hidden = layout.BOOT.offset // layout.SECTOR
    shell.run(['mformat', '-i', target, '-T', str(sectors), '-h', '64',
               '-s', '32', '-H', str(hidden), '-v', 'BOOT', '::'])
    shell.run(['mmd', '-i', target, '::EFI', '::EFI/BOOT', '::loader',
               '::loader/entries'])
    for source, name in ((kernel, 'vmlinuz'), (initrd, 'initrd'),
                         (configuration, 'syslinux.cfg'),
                         # UEFI boots this file from a new disk.
                         (efi_loader, 'EFI/BOOT/BOOTX64.EFI'),
                         (entry, 'loader/entries/guest.conf')):
        shell.run(['mcopy', '-i', target, source, f'::{name}'])
    shell.run(['syslinux', '--install', target])
    return target


def _ext4_partition(scratch: pathlib.Path) -> pathlib.Path:
    target = scratch / 'data.ext4'
    content = scratch / 'data'
    content.mkdir(exist_ok=True)
    shell.write(content / 'README', 'The recorder writes records.log\n')
    target.unlink(missing_ok=True)
    shell.run(['mke2fs', '-q', '-t', 'ext4', '-d', content, '-L', 'data',
               '-E', 'lazy_itable_init=0,lazy_journal_init=0', target,
               f'{layout.EXT4.size // 1024}k'])
    return target
