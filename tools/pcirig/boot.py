# SPDX-License-Identifier: Apache-2.0
"""What a virtual machine needs to boot: a kernel and an initramfs.

Neither is compressed, for under emulation decompressing takes longer than all
the rest of the boot.
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
    """Write the tree's kernel as the ELF file inside of its bzImage.

    QEMU starts it by its PVH entry point. For the fields of the header see
    the kernel's Documentation/arch/x86/boot.rst.
    """
    image = (tree.root / f'boot/vmlinuz-{tree.kernel_release}').read_bytes()
    setup_sectors = image[0x1f1]
    offset, length = struct.unpack_from('<II', image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start:start + length]
    compressed = tree.share / 'kernel.zst'
    compressed.write_bytes(payload[:-4])  # those are the size, by Linux
    tree.run('zstd', '-dfq', '--rm', debian_tree.SHARE / compressed.name, '-o',
             debian_tree.SHARE / target.name)


def initramfs(tree: debian_tree.Tree, init: pathlib.Path,
              modules: Iterable[str], target: pathlib.Path) -> None:
    """Write an initramfs with busybox, an init script and kernel modules.

    :param init: the script
    :param modules: names; what they depend on comes with them, and the file
        /modules/order says in which order they load
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
