# SPDX-License-Identifier: Apache-2.0
"""The Debian tree of the emulated machine. It also contains QEMU.

It is newer than the machine that it is made on: Debian 13 is the first release
whose QEMU emulates an SR-IOV card (``igb``).
"""

from collections.abc import Iterable
import os
import pathlib
import shutil

from devcloud import packages
from devcloud import shell

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

#: Files of this machine that the tree gets, to access the same registries.
MACHINE_FILES = ('etc/hosts', 'etc/pip.conf', 'etc/resolv.conf',
                 'etc/ssl/certs/ca-certificates.crt')

#: Excludes files that the rig does not need.
DPKG_CONFIGURATION = """\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
"""

#: Runs a program so that it, and all its children, end with this process.
CONTAINED = ('setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount', '--pid',
             '--fork', '--kill-child')

#: Runs a program ($4 and following) in the tree $1, with the directory $2 at
#: $3. The mounts disappear with the namespace.
INSIDE = """\
set -e
tree=$1 share=$2 place=$3
shift 3
mkdir -p "$tree$place"
mount --bind "$share" "$tree$place"
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
exec chroot "$tree" "$@"
"""


class Tree:
    """A Debian tree in a directory.

    :param root: the directory
    :param share: directory that is /rig inside the tree
    """

    def __init__(self, root: pathlib.Path, share: pathlib.Path) -> None:
        self.root = root
        self.share = share

    def command(self, *argv: str | os.PathLike[str]) -> list[str]:
        """Return the command line to run a program inside the tree."""
        return [*CONTAINED, 'sh', '-c', INSIDE, 'sh', str(self.root),
                str(self.share), str(SHARE),
                *(os.fspath(word) for word in argv)]

    def run(self, *argv: str | os.PathLike[str],
            env: dict[str, str] | None = None) -> str:
        """Run a program inside the tree, and return its output."""
        return shell.run(self.command(*argv), env={
            'DEBIAN_FRONTEND': 'noninteractive', 'LC_ALL': 'C.UTF-8',
            'PATH': '/usr/sbin:/usr/bin', **(env or {})})

    def make(self) -> None:
        """Delete the tree and make a new one, with packages and kernel."""
        shutil.rmtree(self.root, ignore_errors=True)
        packages.install(('cpio', 'debootstrap', 'e2fsprogs'))
        shell.run([*CONTAINED, '--mount-proc', 'debootstrap',
                   '--variant=minbase', SUITE, self.root, *_mirror()])
        self._adopt_machine()
        shell.write(self.root / 'etc/dpkg/dpkg.cfg.d/pci-rig',
                    DPKG_CONFIGURATION)
        # Packages must not start their services.
        shell.write(self.root / 'usr/sbin/policy-rc.d',
                    '#!/bin/sh\nexit 101\n', mode=0o755)
        self.run('apt-get', '-q', 'install', '-y', '--no-install-recommends',
                 *PACKAGES)
        self._unpack_kernel()
        self.run('apt-get', 'clean')
        shutil.rmtree(self.root / 'var/lib/apt/lists')

    def _adopt_machine(self) -> None:
        for name in MACHINE_FILES:
            if (source := pathlib.Path('/', name)).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, self.root / name)

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
        self._adopt_machine()
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


def _mirror() -> list[str]:
    """Return the package mirror of this machine; debootstrap's differs."""
    return shell.run(['apt-get', 'indextargets', '--format', '$(REPO_URI)',
                      'Label: Debian', 'Identifier: Packages']).split()[:1]
