# SPDX-License-Identifier: Apache-2.0
"""Make a kernel and an initramfs for a virtual machine.

They are not compressed: under emulation, decompressing takes longer than the
rest of the boot.
"""

from collections.abc import Iterable
import lzma
import pathlib
import shutil
import struct
import tempfile

from devcloud import shell
from pcirig import tree as debian_tree


def kernel(tree: debian_tree.Tree, target: pathlib.Path) -> None:
    """Write the ELF file from the bzImage of the tree's kernel.

    QEMU starts it at its PVH entry point. The kernel's
    Documentation/arch/x86/boot.rst describes the fields of the header.
    """
    image = (tree.root / f'boot/vmlinuz-{tree.kernel_release}').read_bytes()
    setup_sectors = image[0x1f1]
    offset, length = struct.unpack_from('<II', image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start:start + length]
    compressed = tree.share / 'kernel.zst'
    compressed.write_bytes(payload[:-4])  # Linux appends the size: 4 bytes.
    tree.run('zstd', '-dfq', '--rm', debian_tree.SHARE / compressed.name, '-o',
             debian_tree.SHARE / target.name)


def initramfs(tree: debian_tree.Tree, init: pathlib.Path,
              modules: Iterable[str], target: pathlib.Path) -> None:
    """Write an initramfs with busybox, an init script and kernel modules.

    :param init: the script
    :param modules: names; their dependencies are added, and the file
        /modules/order lists all in their load order
    """
    with tempfile.TemporaryDirectory(prefix='pci-rig-') as scratch:
        root = pathlib.Path(scratch)
        for name in ('bin', 'dev', 'proc', 'root', 'sys', 'modules'):
            (root / name).mkdir()
        shutil.copy(tree.root / 'usr/bin/busybox', root / 'bin')
        shutil.copy(init, root / 'init')
        (root / 'init').chmod(0o755)
        order = []
        for module in tree.modules(modules):
            name = module.name.removesuffix('.xz')
            (root / 'modules' / name).write_bytes(
                lzma.decompress(module.read_bytes()))
            order.append(name)
        shell.write(root / 'modules/order', '\n'.join(order) + '\n')
        shell.run(['sh', '-c', 'find . | cpio -o -H newc --quiet -R 0:0 '
                   '> "$1"', 'sh', target], cwd=root)
