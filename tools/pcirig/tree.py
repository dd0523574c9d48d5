# SPDX-License-Identifier: Apache-2.0
"""The Debian tree of the emulated machine. It also contains QEMU.

It is newer than the machine that it is made on: Debian 13 is the first release
whose QEMU emulates an SR-IOV card (``igb``).
"""

from collections.abc import Iterable
import os
import pathlib
import shutil

from devcloud import debian_tree
from devcloud import packages

SUITE = 'trixie'

#: The shared directory has this path inside the tree.
SHARE = pathlib.PurePosixPath('/rig')

#: The virtual environment, inside the tree.
VENV = pathlib.PurePosixPath('/opt/venv')

#: Debian packages that the tests, Nova and this project need.
PACKAGES = (
    'busybox-static',
    'cpio',
    'iproute2',
    'kmod',
    'libnbd-bin',
    'libvirt-clients',
    'libvirt-daemon-driver-qemu',
    'libvirt-daemon-system',
    'pciutils',
    'python3-libnbd',
    'python3-libvirt',
    'python3-venv',
    'qemu-block-extra',
    'qemu-system-x86',
    'qemu-utils',
    'udev',
    'xz-utils',
    'zstd',
)

#: Not the kernel for clouds: it has no driver for the card.
KERNEL = 'linux-image-amd64'


class Tree(debian_tree.Tree):
    """The tree, with a kernel and a virtual environment.

    :param root: its directory
    :param share: directory that is /rig inside the tree
    """

    def __init__(self, root: pathlib.Path, share: pathlib.Path) -> None:
        super().__init__(root, SUITE, {share: SHARE})
        self.share = share

    def make(self) -> None:
        """Delete the tree and make a new one, with packages and kernel."""
        packages.install(('cpio', 'e2fsprogs'))
        super().make()
        self.run('apt-get', '-q', 'install', '-y', '--no-install-recommends',
                 *PACKAGES)
        self._unpack_kernel()
        self.run('apt-get', 'clean')
        shutil.rmtree(self.root / 'var/lib/apt/lists')

    def _unpack_kernel(self) -> None:
        """Unpack the kernel: installing it would also make an initrd."""
        depends = self.run('apt-cache', 'depends', '--important', KERNEL)
        kernel = next(word for word in depends.split()
                      if word.startswith('linux-image-') and word != KERNEL)
        self.run('sh', '-ec', 'cd /var/tmp && apt-get -q download "$1" && '
                 'dpkg-deb -x linux-image-*.deb / && rm linux-image-*.deb && '
                 f'depmod {kernel.removeprefix("linux-image-")}',
                 'sh', kernel)

    @property
    def kernel_release(self) -> str:
        (modules,) = (self.root / 'usr/lib/modules').iterdir()
        return modules.name

    def modules(self, names: Iterable[str]) -> list[pathlib.Path]:
        """Return files of kernel modules and dependencies, in load order."""
        listed = self.run('modprobe', '-S', self.kernel_release, '-a',
                          '--show-depends', *names)
        # Each line is "insmod FILE", or "builtin NAME".
        words = (line.split() for line in listed.splitlines())
        files = [file for action, file in words if action == 'insmod']
        return [self.root / file.lstrip('/') for file in dict.fromkeys(files)]

    def make_venv(self, requirements: list[str]) -> None:
        """Delete the virtual environment and make a new one.

        :param requirements: packages from PyPI
        """
        shutil.rmtree(self.root / VENV.relative_to('/'), ignore_errors=True)
        self.adopt_machine()
        # With Debian's packages: libnbd's binding is not on PyPI, and
        # libvirt's binding must match the library.
        self.run('/usr/bin/python3', '-m', 'venv', '--system-site-packages',
                 VENV)
        self.pip('install', *requirements)

    def pip(self, *words: str | os.PathLike[str],
            env: dict[str, str] | None = None) -> None:
        self.run(VENV / 'bin/python', '-m', 'pip', '-q',
                 '--disable-pip-version-check', '--no-cache-dir', *words,
                 # Without the constraint of tools/test: it is for the libvirt
                 # of this machine.
                 env={'PIP_CONSTRAINT': '', 'PIP_ROOT_USER_ACTION': 'ignore',
                      **(env or {})})
