# SPDX-License-Identifier: Apache-2.0
"""The Debian tree that the emulated machine runs, and that QEMU comes from.

It is newer than the machine it is made on: Debian 13 is the first whose QEMU
emulates an SR-IOV card (``igb``).
"""

from collections.abc import Iterable
import os
import pathlib
import shutil

from devcloud import packages
from devcloud import shell

SUITE = 'trixie'

#: Where a directory of ours is seen inside of the tree.
SHARE = pathlib.PurePosixPath('/rig')

#: The virtual environment, inside of the tree.
VENV = pathlib.PurePosixPath('/opt/venv')

#: What the tests, Nova and we need of Debian.
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

#: Not the one for clouds: that has no driver for the card.
KERNEL = 'linux-image-amd64'

#: What reaches the registries from this machine, reaches them from the tree.
OF_THE_MACHINE = ('etc/hosts', 'etc/pip.conf', 'etc/resolv.conf',
                  'etc/ssl/certs/ca-certificates.crt')

#: Files that nobody reads in there.
DPKG_CONFIGURATION = """\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
"""

#: Runs a program so that it, and whatever it has started, ends with us.
CONTAINED = ('setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount', '--pid',
             '--fork', '--kill-child')

#: Runs a program ($4 and on) in the tree $1, with the directory $2 at $3. The
#: mounts go with the namespace.
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
    :param share: directory that is seen inside of it as /rig
    """

    def __init__(self, root: pathlib.Path, share: pathlib.Path) -> None:
        self.root = root
        self.share = share

    def command(self, *argv: str | os.PathLike[str]) -> list[str]:
        """The command line that runs a program inside of the tree."""
        return [*CONTAINED, 'sh', '-c', INSIDE, 'sh', str(self.root),
                str(self.share), str(SHARE),
                *(os.fspath(word) for word in argv)]

    def run(self, *argv: str | os.PathLike[str],
            env: dict[str, str] | None = None) -> str:
        """Run a program inside of the tree, and return what it wrote."""
        return shell.run(self.command(*argv), env={
            'DEBIAN_FRONTEND': 'noninteractive', 'LC_ALL': 'C.UTF-8',
            'PATH': '/usr/sbin:/usr/bin', **(env or {})})

    def make(self) -> None:
        """Make the tree anew, with its packages and its kernel."""
        shutil.rmtree(self.root, ignore_errors=True)
        packages.install(('cpio', 'debootstrap', 'e2fsprogs'))
        shell.run([*CONTAINED, '--mount-proc', 'debootstrap',
                   '--variant=minbase', SUITE, self.root, *_mirror()])
        self._adopt_machine()
        shell.write(self.root / 'etc/dpkg/dpkg.cfg.d/pci-rig',
                    DPKG_CONFIGURATION)
        # No service of the packages may start.
        shell.write(self.root / 'usr/sbin/policy-rc.d',
                    '#!/bin/sh\nexit 101\n', mode=0o755)
        self.run('apt-get', '-q', 'install', '-y', '--no-install-recommends',
                 *PACKAGES)
        self._unpack_kernel()
        self.run('apt-get', 'clean')
        shutil.rmtree(self.root / 'var/lib/apt/lists')

    def _adopt_machine(self) -> None:
        for name in OF_THE_MACHINE:
            if (source := pathlib.Path('/', name)).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, self.root / name)

    def _unpack_kernel(self) -> None:
        """Unpack the kernel: installing it would make an initrd too."""
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
        """Files of kernel modules and what they need, in loading order."""
        listed = self.run('modprobe', '-S', self.kernel_release, '-a',
                          '--show-depends', *names)
        # Each line is "insmod FILE", or "builtin NAME".
        words = (line.split() for line in listed.splitlines())
        files = [file for action, file in words if action == 'insmod']
        return [self.root / file.lstrip('/') for file in dict.fromkeys(files)]

    def make_venv(self, requirements: list[str]) -> None:
        """Make the virtual environment anew.

        :param requirements: what comes from PyPI
        """
        shutil.rmtree(self.root / VENV.relative_to('/'), ignore_errors=True)
        self._adopt_machine()
        # Debian's packages are visible: libnbd's binding is not on PyPI, and
        # that of libvirt has to match the library.
        self.run('/usr/bin/python3', '-m', 'venv', '--system-site-packages',
                 VENV)
        self.pip('install', *requirements)

    def pip(self, *words: str | os.PathLike[str],
            env: dict[str, str] | None = None) -> None:
        self.run(VENV / 'bin/python', '-m', 'pip', '-q',
                 '--disable-pip-version-check', '--no-cache-dir', *words,
                 # Not those of tools/test, for this machine's own libvirt.
                 env={'PIP_CONSTRAINT': '', 'PIP_ROOT_USER_ACTION': 'ignore',
                      **(env or {})})


def _mirror() -> list[str]:
    """Where this machine has its packages from; debootstrap knows another."""
    return shell.run(['apt-get', 'indextargets', '--format', '$(REPO_URI)',
                      'Label: Debian', 'Identifier: Packages']).split()[:1]
