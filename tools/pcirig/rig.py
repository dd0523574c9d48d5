# SPDX-License-Identifier: Apache-2.0
"""Run tests on the rig: make the disk, boot the machine, report."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import time

from devcloud import errors
from devcloud import shell
from devcloud import state as devcloud_state
from devcloud import venv
from devcloud import wait
from pcirig import boot
from pcirig import tree as debian_tree

SOURCES = pathlib.Path(__file__).with_name('guest')

#: Maximum seconds of the outer machine's run.
TIMEOUT = 1500

#: Files with the packages from PyPI that the project and its tests need; and
#: the package that builds the wheel.
REQUIREMENTS = ('requirements.txt', 'test-requirements.txt')
BUILD_REQUIREMENT = 'setuptools'

DISK_SIZE = '6G'

#: The smallest machine that supports passthrough: its IOMMU remaps interrupts
#: and, for VFIO, reports each mapping to QEMU (caching mode); its card has
#: virtual functions and its own port.
#: https://www.qemu.org/docs/master/system/devices/igb.html
QEMU = (
    'qemu-system-x86_64', '-nodefaults', '-no-user-config', '-no-reboot',
    '-display', 'none', '-accel', 'tcg,thread=multi,tb-size=512',
    '-machine', 'q35', '-cpu', 'max', '-smp', '2', '-m', '3G',
    '-device', 'intel-iommu,intremap=on,caching-mode=on',
    '-device', 'pcie-root-port,id=card-port,chassis=1,slot=1',
    '-netdev', 'user,id=wire,restrict=on',
    '-device', 'igb,bus=card-port,netdev=wire',
    '-kernel', '/rig/vmlinux', '-initrd', '/rig/outer-initramfs',
    '-append', 'console=ttyS0 quiet panic=-1 mitigations=off intel_iommu=on '
               'iommu=pt',
    '-drive', 'file=/rig/disk,format=raw,if=none,id=root,snapshot=on',
    '-device', 'virtio-blk-pci,drive=root',
    '-fsdev', 'local,id=run,path=/rig/run,security_model=passthrough',
    '-device', 'virtio-9p-pci,fsdev=run,mount_tag=rig',
    '-serial', 'file:/rig/run/console.log',
    '-chardev', 'stdio,id=output,signal=off,logfile=/rig/run/output.log',
    '-serial', 'chardev:output',
)

#: Not stestr: it starts Python three times, and each start takes 10 seconds
#: here. Standard output is the serial line, which is our output.
TESTS = """\
stty -onlcr
cd /rig/checkout
export OS_STDOUT_CAPTURE=1 OS_STDERR_CAPTURE=1 OS_LOG_CAPTURE=1
exec python -m unittest discover -v -s tests/pci -t . {filters}
"""


class Rig:
    """The rig in its state directory.

    :param root: the directory
    """

    def __init__(self, root: pathlib.Path) -> None:
        self._state = devcloud_state.State(root)
        self._share = root / 'share'
        self._run = self._share / 'run'
        self._tree = debian_tree.Tree(root / 'tree', self._share)
        self._began = time.monotonic()

    @classmethod
    def default(cls) -> 'Rig':
        """Return the rig in SNAPEXT_PCI_RIG_DIR, or in the usual directory."""
        path = os.environ.get('SNAPEXT_PCI_RIG_DIR',
                              '/var/lib/snapext-pci-rig')
        return cls(pathlib.Path(path).absolute())

    def say(self, text: str) -> None:
        print(f'[{time.monotonic() - self._began:6.1f} s] {text}', flush=True)

    def test(self, filters: list[str], timeout: float) -> int:
        """Run the tests.

        :param filters: parts of their names, or patterns; empty: all tests
        :param timeout: maximum seconds of the machine's run
        :returns: the exit code
        """
        command = TESTS.format(filters=shlex.join(
            word for name in filters for word in ('-k', name)))
        with self._state.lock():
            code = self._boot(command, timeout, subprocess.DEVNULL)
            output = (self._run / 'output.log').read_text(errors='replace')
        ran = _sum(r'^Ran (\d+) tests?', output)
        failed = _sum(r'(?:failures|errors|unexpected successes)=(\d+)',
                      output)
        skipped = _sum(r'skipped=(\d+)', output)
        print(f'{ran - failed - skipped} passed, {failed} failed')
        return code

    def open_shell(self, timeout: float) -> int:
        """Run a shell on the outer machine; see :meth:`test`."""
        with self._state.lock():
            return self._boot('cd /rig/checkout\nexec setsid -c sh -i\n',
                              timeout, None)

    def _boot(self, command: str, timeout: float, stdin: int | None) -> int:
        self._make_disk()
        self._fill_share(command)
        self.say('booting the outer machine')
        with subprocess.Popen(self._tree.command(*QEMU),
                              stdin=stdin) as machine:
            try:
                machine.wait(timeout)
            except subprocess.TimeoutExpired:
                raise errors.TimedOut(
                    f'the outer machine did not end within {timeout:.0f} s; '
                    f'{self._console()}') from None
            finally:
                # It must not outlive this process. Killing it is safe: its
                # disk is a snapshot.
                machine.kill()
        code = self._run / 'exit-code'
        if not code.exists():
            raise errors.CloudError(
                f'the outer machine has failed; {self._console()}')
        self.say('the outer machine has ended')
        return int(code.read_text())

    def _console(self) -> str:
        return f'its console:\n{wait.tail(self._run / "console.log")}'

    def _make_disk(self) -> None:
        """Make the outer machine's disk, unless it exists."""
        state, tree = self._state, self._tree
        packages = repr((debian_tree.SUITE, debian_tree.PACKAGES))
        if not state.is_done('tree', packages):
            shutil.rmtree(state.root / 'done', ignore_errors=True)
            tree.make()
            state.mark_done('tree', packages)
            self.say(f'Debian {debian_tree.SUITE} made in {tree.root}')
        requirements = _requirements()
        if not state.is_done('venv', repr(requirements)):
            (state.root / 'done/disk').unlink(missing_ok=True)
            tree.make_venv(requirements)
            state.mark_done('venv', repr(requirements))
            self.say('virtual environment with Nova made')
        if not state.is_done('disk'):
            disk = self._share / 'disk'
            disk.unlink(missing_ok=True)
            shell.run(['mke2fs', '-q', '-t', 'ext4', '-d', tree.root,
                       '-O', '^has_journal', disk, DISK_SIZE])
            boot.kernel(tree, self._share / 'vmlinux')
            state.mark_done('disk')
            self.say('disk of the outer machine made')

    def _fill_share(self, command: str) -> None:
        """Copy the files of this run to the machine's shared directory."""
        checkout = devcloud_state.CHECKOUT
        wheels = self._make_wheel()
        shutil.rmtree(self._run, ignore_errors=True)
        for name in ('tests', 'tools'):
            shutil.copytree(checkout / name, self._run / 'checkout' / name,
                            ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copytree(wheels, self._run, dirs_exist_ok=True)
        shutil.copy(SOURCES / 'outer', self._run)
        shell.write(self._run / 'command', command)
        boot.initramfs(self._tree, SOURCES / 'initramfs',
                       ('virtio_blk', 'ext4', '9p', '9pnet_virtio'),
                       self._share / 'outer-initramfs')
        guest = self._run / 'guest'
        guest.mkdir()
        os.link(self._share / 'vmlinux', guest / 'vmlinux')
        boot.initramfs(self._tree, SOURCES / 'inner', ('igbvf',),
                       guest / 'initramfs')

    def _make_wheel(self) -> pathlib.Path:
        """Build the project's wheel, if its sources have changed.

        :returns: the directory with the wheel
        """
        build = self._share / 'build'
        files = venv.source_files()
        fingerprint = venv.fingerprint_of(files)
        if not self._state.is_done('wheel', fingerprint):
            shutil.rmtree(build, ignore_errors=True)
            venv.copy_sources(files, build / 'source')
            inside = debian_tree.SHARE / 'build'
            # The version does not matter, so git is not needed.
            self._tree.pip('wheel', '--no-deps', '--no-build-isolation',
                           '-w', inside / 'wheels', inside / 'source',
                           env={'PBR_VERSION': '0.0.1'})
            self._state.mark_done('wheel', fingerprint)
        return build / 'wheels'


def _requirements() -> list[str]:
    texts = [(devcloud_state.CHECKOUT / name).read_text()
             for name in REQUIREMENTS]
    return [BUILD_REQUIREMENT,
            *(line for text in texts for line in text.splitlines()
              if line and not line.startswith('#'))]


def _sum(pattern: str, text: str) -> int:
    return sum(map(int, re.findall(pattern, text, re.MULTILINE)))
