# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that is separate from the libvirtd of the machine.

libvirtd and virtlogd run in mount namespaces that replace all directories of
libvirt. Images and other paths are the same inside and outside. Use it without
the cloud like this::

    with Libvirtd(pathlib.Path('/tmp/state')) as libvirtd:
        connection = libvirt.open(libvirtd.uri)
"""

import contextlib
import os
import pathlib
import signal
import uuid

from devcloud import errors
from devcloud import kvm
from devcloud import process
from devcloud import shell
from devcloud import wait

#: libvirt's directories, and their replacements in the state directory.
DIRECTORIES = {
    '/etc/libvirt': 'etc',
    '/var/lib/libvirt': 'lib',
    '/var/cache/libvirt': 'cache',
    '/var/log/libvirt': 'log',
    '/run/libvirt': 'run',
}

#: Members of this group may use the read-write socket.
GROUP = 'libvirt'

#: QEMU runs as this user; it is Debian's default.
QEMU_USER = 'libvirt-qemu'

#: Maximum length of a Unix socket's path, in bytes.
SOCKET_PATH_MAX = 107

#: Seconds until libvirtd must have probed QEMU and must listen.
START_TIMEOUT = 60

LIBVIRTD_CONF = f"""\
unix_sock_group = "{GROUP}"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{{host_uuid}}"
"""

# NOTE: with `namespaces = []`, QEMU sees the same files as libvirtd. Without
# it, libvirt makes a private /dev for each guest from the real /dev, with
# /dev/kvm in it. AppArmor's rules do not allow our directories.
QEMU_CONF = f"""\
user = "{QEMU_USER}"
group = "{QEMU_USER}"
dynamic_ownership = 1
namespaces = []
security_driver = "none"
"""

#: Run a program ($3 and following). The directories of $1 are mounted over
#: those of libvirt, and the file $2, if set, is mounted over /dev/kvm.
NAMESPACE_SCRIPT = """\
set -e
state=$1 no_kvm=$2
shift 2
""" + ''.join(f'mount --bind "$state/{replacement}" {directory}\n'
              for directory, replacement in DIRECTORIES.items()) + f"""\
test -z "$no_kvm" || mount --bind "$no_kvm" {kvm.DEVICE}
exec "$@"
"""


class Libvirtd:
    """libvirtd and virtlogd, and their guests.

    :param state_dir: directory for all their files; QEMU's user must be
        able to enter it
    :param use_kvm: whether guests get KVM; None: if it works
    """

    def __init__(self, state_dir: pathlib.Path,
                 use_kvm: bool | None = None) -> None:
        self.state_dir = state_dir.absolute()
        self._libvirtd = self._daemon('libvirtd')
        self._virtlogd = self._daemon('virtlogd')
        self._kvm = use_kvm

    def _daemon(self, name: str) -> process.Daemon:
        return process.Daemon(name, self.state_dir / f'{name}.json',
                              self.state_dir / f'{name}.log')

    @property
    def socket(self) -> pathlib.Path:
        """Return the path of the read-write socket outside the namespace."""
        return self.state_dir / 'run' / 'libvirt-sock'

    @property
    def uri(self) -> str:
        return f'qemu:///system?socket={self.socket}'

    @property
    def daemons(self) -> tuple[process.Daemon, process.Daemon]:
        return self._virtlogd, self._libvirtd

    @property
    def has_kvm(self) -> bool:
        """Return whether guests get KVM; probed before libvirtd starts."""
        known = self.state_dir / 'kvm'
        if self._kvm is None and self.is_running() and known.exists():
            self._kvm = known.read_text() == 'works'
        if self._kvm is None:
            self._kvm = kvm.works()
        return self._kvm

    def __enter__(self) -> 'Libvirtd':
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def is_running(self) -> bool:
        return self._libvirtd.is_running()

    def start(self) -> None:
        """Start both daemons, unless they run.

        :raises: CloudError if libvirtd does not become ready
        """
        if len(os.fsencode(self.socket)) > SOCKET_PATH_MAX:
            raise errors.CloudError(
                f'{self.socket} is too long a path for a Unix socket; choose '
                f'a state directory with a shorter name')
        self._write_configuration()
        run = self.state_dir / 'run'
        if not self._virtlogd.is_running():
            self._virtlogd.start(self._inside(
                '/usr/sbin/virtlogd', '--pid-file', f'{run}/virtlogd.pid'))
            self._virtlogd.await_ready(
                lambda: wait.unix_connectable(run / 'virtlogd-sock'),
                START_TIMEOUT)
        if not self._libvirtd.is_running():
            shell.write(self.state_dir / 'kvm',
                        'works' if self.has_kvm else 'does not work')
            self._libvirtd.start(self._inside(
                '/usr/sbin/libvirtd', '--pid-file', f'{run}/libvirtd.pid'))
            self._libvirtd.await_ready(self._responds, START_TIMEOUT)

    def stop(self) -> None:
        """Stop the guests, then the daemons."""
        self.stop_guests()
        self._libvirtd.stop()
        self._virtlogd.stop()

    def kill(self) -> None:
        """Kill libvirtd only, like a crash; guests continue to run."""
        identity = self._libvirtd.identity()
        if identity is not None:
            identity.signal(signal.SIGKILL)
            wait.until('end of libvirtd',
                       lambda: not identity.is_alive(), START_TIMEOUT)

    def virsh(self, *words: str, timeout: float = 60) -> str:
        """Run a virsh command on this libvirtd and return its output."""
        return shell.run(['virsh', '-q', '-c', self.uri, *words],
                         timeout=timeout)

    def guests(self) -> dict[str, process.Identity]:
        """Return the QEMU processes by domain name, from their pid files."""
        found = {}
        for pid_file in (self.state_dir / 'run' / 'qemu').glob('*.pid'):
            text = pid_file.read_text().strip()
            identity = process.Identity.of(int(text)) if text else None
            if identity and _is_qemu(identity.pid, pid_file.stem):
                found[pid_file.stem] = identity
        return found

    def stop_guests(self) -> None:
        """Stop all guests hard, through libvirt if it responds."""
        guests = self.guests()
        if self.is_running():
            for name in guests:
                with contextlib.suppress(errors.CloudError):
                    self.virsh('destroy', name, timeout=30)
        process.end(list(guests.values()))

    def _responds(self) -> bool:
        # The socket alone proves nothing: an earlier libvirtd may have left
        # it. It is replaced when the new libvirtd begins to listen.
        try:
            self.virsh('uri')
        except errors.CommandFailed:
            return False
        return True

    def _inside(self, *argv: str) -> list[str]:
        """Return the command line to run a program in the namespace."""
        no_kvm = ''
        if kvm.DEVICE.exists() and not self.has_kvm:
            no_kvm = str(self.state_dir / 'no-kvm')
        return ['unshare', '--mount', '--propagation', 'slave', 'sh', '-c',
                NAMESPACE_SCRIPT, 'sh', str(self.state_dir), no_kvm, *argv]

    def _write_configuration(self) -> None:
        for directory, replacement in DIRECTORIES.items():
            (self.state_dir / replacement).mkdir(parents=True, exist_ok=True)
            pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        os.chmod(self.state_dir, 0o755)
        # NOTE: a regular file without permissions prevents libvirtd from
        # probing QEMU for KVM again on each define; /dev/null does not.
        shell.write(self.state_dir / 'no-kvm', '', mode=0)
        known = self.state_dir / 'host_uuid'
        if not known.exists():
            shell.write(known, str(uuid.uuid4()))
        etc = self.state_dir / 'etc'
        shell.write(etc / 'libvirtd.conf', LIBVIRTD_CONF.format(
            host_uuid=known.read_text()))
        shell.write(etc / 'qemu.conf', QEMU_CONF)


def _is_qemu(pid: int, name: str) -> bool:
    """Return whether a process is the QEMU of this guest."""
    try:
        command = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
    except OSError:
        return False
    return f'guest={name},'.encode() in command
