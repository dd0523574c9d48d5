# SPDX-License-Identifier: Apache-2.0
"""A Debian tree in a directory, to run programs of another release.

The programs share this machine's kernel, devices and network.
"""

from collections.abc import Mapping
import os
import pathlib
import shlex
import shutil

from devcloud import packages
from devcloud import shell

#: Files of this machine that the tree gets, to access the same registries.
MACHINE_FILES = ('etc/hosts', 'etc/pip.conf', 'etc/resolv.conf',
                 'etc/ssl/certs/ca-certificates.crt')

#: Makes the installation fast, and excludes files that no test needs.
DPKG_CONFIGURATION = """\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
"""

#: Runs a program so that it, and all its children, end with this process.
CONTAINED = ('setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount', '--pid',
             '--fork', '--kill-child')

#: Variables of all programs inside a tree.
ENVIRONMENT = {'DEBIAN_FRONTEND': 'noninteractive', 'LC_ALL': 'C.UTF-8',
               'PATH': '/usr/sbin:/usr/bin:/sbin:/bin'}


class Tree:
    """A Debian tree in a directory.

    :param root: the directory
    :param suite: Debian's name of the release
    :param binds: directories of this machine, and their paths in the tree
    """

    def __init__(self, root: pathlib.Path, suite: str,
                 binds: Mapping[pathlib.Path, pathlib.PurePath] | None = None,
                 ) -> None:
        self.root = root
        self.suite = suite
        self._binds = dict(binds or {})

    def command(self, *argv: str | os.PathLike[str]) -> list[str]:
        """Return the command line to run a program inside the tree.

        It and all its children end when this process does, or when the
        program does. What is mounted disappears with them.
        """
        tree = shlex.quote(str(self.root))
        lines = ['set -e', f'mount --bind {tree} {tree}']
        for source, place in self._binds.items():
            target = shlex.quote(f'{self.root}{place}')
            lines += [f'mkdir -p {target}',
                      f'mount --bind {shlex.quote(str(source))} {target}']
        lines += [f'mount -t proc proc {tree}/proc',
                  f'mount --rbind /dev {tree}/dev',
                  f'mount --rbind /sys {tree}/sys',
                  f'mount -t tmpfs -o mode=755 tmpfs {tree}/run',
                  # Not chroot alone: a program that enters the namespace
                  # again (nsenter) must also find the tree.
                  f'cd {tree}', 'pivot_root . .', 'umount --lazy .',
                  'exec chroot . "$@"']
        return [*CONTAINED, 'sh', '-c', '\n'.join(lines), 'sh',
                *(os.fspath(word) for word in argv)]

    def run(self, *argv: str | os.PathLike[str],
            env: Mapping[str, str] | None = None) -> str:
        """Run a program inside the tree, and return its output."""
        return shell.run(self.command(*argv),
                         env={**ENVIRONMENT, **(env or {})})

    def make(self) -> None:
        """Delete the tree and make a new one, with the base packages only."""
        shutil.rmtree(self.root, ignore_errors=True)
        packages.install(('debootstrap',))
        # ca-certificates now: installed later, it would replace the machine's.
        shell.run([*CONTAINED, '--mount-proc', 'debootstrap',
                   '--variant=minbase', '--include=ca-certificates',
                   self.suite, self.root, *_mirror()])
        self.adopt_machine()
        shell.write(self.root / 'etc/dpkg/dpkg.cfg.d/tree',
                    DPKG_CONFIGURATION)
        # A copy of a mirror may be older than the mirror allows.
        shell.write(self.root / 'etc/apt/apt.conf.d/tree',
                    'Acquire::Check-Valid-Until "false";\n')
        # Packages must not start their services.
        shell.write(self.root / 'usr/sbin/policy-rc.d',
                    '#!/bin/sh\nexit 101\n', mode=0o755)

    def adopt_machine(self) -> None:
        """Give the tree this machine's names, certificates and settings."""
        for name in MACHINE_FILES:
            if (source := pathlib.Path('/', name)).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, self.root / name)


def _mirror() -> list[str]:
    """Return the package mirror of this machine; debootstrap's differs."""
    return shell.run(['apt-get', 'indextargets', '--format', '$(REPO_URI)',
                      'Label: Debian', 'Identifier: Packages']).split()[:1]
