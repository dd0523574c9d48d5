# SPDX-License-Identifier: Apache-2.0
"""Make the tree, copy the checkout into it, and run a program there."""

import os
import pathlib
import shutil
import subprocess
import time

from devcloud import debian_tree
from devcloud import shell
from devcloud import state as devcloud_state
from devcloud import venv

#: The usual release, Debian 13: libvirt 11.3, QEMU 10.0, Python 3.13.
SUITE = 'trixie'

#: The copy of the checkout, inside the tree. tox and its environments are in
#: its directory .tox, and stay for the next run.
CHECKOUT = pathlib.PurePosixPath('/checkout')
KEPT = '.tox'

#: Prefixes of the variables that the program gets from us. Others, of tox and
#: of virtual environments, contain paths that do not exist inside.
PASSED = ('CI', 'PIP_', 'SNAPEXT_', 'TERM', 'http_proxy', 'https_proxy',
          'no_proxy')

#: Files of this machine.
NOT_PASSED = ('PIP_CONSTRAINT', 'PIP_FIND_LINKS')


class Rig:
    """The rig with one release of Debian.

    :param root: its state directory
    :param suite: Debian's name of the release
    """

    def __init__(self, root: pathlib.Path, suite: str) -> None:
        self._state = devcloud_state.State(root)
        self._tree = debian_tree.Tree(root / 'tree', suite)
        self._checkout = self._tree.root / CHECKOUT.relative_to('/')

    @classmethod
    def default(cls, suite: str) -> 'Rig':
        """Return the rig in SNAPEXT_DEBIAN_RIG_DIR, or in the usual place."""
        path = os.environ.get('SNAPEXT_DEBIAN_RIG_DIR',
                              '/var/lib/snapext-debian-rig')
        return cls(pathlib.Path(path).absolute() / suite, suite)

    def run(self, command: list[str]) -> int:
        """Run a program in a copy of the checkout, inside the tree.

        :param command: the program, and its arguments
        :returns: its exit code
        """
        with self._state.lock():
            self._make_tree()
            self._copy_checkout()
            try:
                return self._run(command)
            finally:
                self._clean()

    def _make_tree(self) -> None:
        """Make the tree, unless it exists. tools/test installs the rest."""
        suite = self._tree.suite
        if not self._state.is_done('tree', suite):
            began = time.monotonic()
            self._tree.make()
            self._state.mark_done('tree', suite)
            print(f'Debian {suite} made in {self._tree.root} in '
                  f'{time.monotonic() - began:.0f} s', flush=True)
        # This machine may be another one than the tree was made on.
        self._tree.adopt_machine()

    def _copy_checkout(self) -> None:
        """Replace the copy of the checkout: tests and builds write into it."""
        self._checkout.mkdir(exist_ok=True)
        for path in self._checkout.iterdir():
            if path.is_dir() and path.name != KEPT:
                shutil.rmtree(path)
            elif not path.is_dir():
                path.unlink()
        venv.copy_sources(venv.checkout_files(), self._checkout)
        # pbr gets the version from git's history.
        shutil.copytree(devcloud_state.CHECKOUT / '.git',
                        self._checkout / '.git', symlinks=True)

    def _run(self, command: list[str]) -> int:
        passed = {name: value for name, value in os.environ.items()
                  if name.startswith(PASSED) and name not in NOT_PASSED}
        with subprocess.Popen(
                self._tree.command('env', '-C', CHECKOUT, *command),
                env={**passed, **debian_tree.ENVIRONMENT,
                     'HOME': '/root'}) as process:
            try:
                return process.wait()
            finally:
                # With it, the kernel ends everything that it has started.
                process.kill()

    def _clean(self) -> None:
        """Remove what a killed test leaves outside its namespaces."""
        tmp = self._tree.root / 'tmp'
        # The kernel shows paths as seen inside, which others may have, too.
        inodes = {path.lstat().st_ino for path in tmp.rglob('*')}
        listed = shell.run(['losetup', '--list', '--noheadings', '--raw',
                            '--output', 'NAME,BACK-INO'])
        for device, inode in map(str.split, listed.splitlines()):
            if int(inode) in inodes:
                shell.run(['losetup', '--detach', device])
        for path in tmp.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
