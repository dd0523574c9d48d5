# SPDX-License-Identifier: Apache-2.0
"""Start long-running processes, find them later, and stop them.

A process is identified by its id and its start time: a later process with the
same id is another one, and is never touched.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import grp
import json
import os
import pathlib
import pwd
import signal
import subprocess

from devcloud import errors
from devcloud import shell
from devcloud import wait

#: Seconds between SIGTERM and SIGKILL.
STOP_TIMEOUT = 20


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identity of a process, unique since the machine booted."""

    pid: int
    #: Clock ticks from boot to its start: field 22 of /proc/PID/stat.
    start: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> 'Identity | None':
        """Return the process with this id, or None; zombies do not count."""
        fields = _stat(pid)
        if fields is None or fields[0] in 'ZX':
            return None
        boot_id = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text()
        return cls(pid, int(fields[19]), boot_id.strip())

    def is_alive(self) -> bool:
        return Identity.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still the same one."""
        if self.is_alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def session(self) -> list['Identity']:
        """Return all processes of the session that this process leads."""
        members = []
        for entry in pathlib.Path('/proc').iterdir():
            if not entry.name.isdigit():
                continue
            fields = _stat(int(entry.name))
            if fields is not None and int(fields[3]) == self.pid:
                member = Identity.of(int(entry.name))
                if member is not None:
                    members.append(member)
        return members


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat, starting with the third (state)."""
    try:
        text = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return None
    return text.rpartition(')')[2].split()


class Daemon:
    """One process in the background, with its record and its log.

    :param name: its name in commands and messages
    :param record: file for its identity
    :param log: file for its output
    """

    def __init__(self, name: str, record: pathlib.Path,
                 log: pathlib.Path) -> None:
        self.name = name
        self.record = record
        self.log = log

    def identity(self) -> Identity | None:
        """Return the recorded process, or None if it has ended."""
        if not self.record.exists():
            return None
        recorded = Identity(**json.loads(self.record.read_text()))
        return recorded if recorded.is_alive() else None

    def is_running(self) -> bool:
        return self.identity() is not None

    def start(self, argv: Sequence[str], *, user: str | None = None,
              groups: Sequence[str] = (),
              env: Mapping[str, str] | None = None,
              cwd: str = '/', umask: int = 0o022) -> None:
        """Start the process in its own session and record its identity.

        :param argv: program and arguments
        :param user: run as this user, with its primary group
        :param groups: further groups of that user
        :param env: variables to add to our own environment
        :param cwd: directory to run it in
        :param umask: its file creation mask
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        ids: dict = {}
        if user is not None:
            entry = pwd.getpwnam(user)
            ids = {'user': entry.pw_uid, 'group': entry.pw_gid,
                   'extra_groups': [grp.getgrnam(group).gr_gid
                                    for group in groups]}
        with open(self.log, 'ab') as log:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, cwd=cwd,
                env={**os.environ, **(env or {})}, umask=umask, **ids)
        identity = Identity.of(child.pid)
        if identity is None:
            raise self.failure(f'{self.name} exited at once')
        shell.write(self.record,
                    json.dumps(dataclasses.asdict(identity)) + '\n')

    def await_ready(self, ready: Callable[[], object],
                    timeout: float) -> None:
        """Wait until the process is ready.

        :param ready: called until it returns something true
        :param timeout: in seconds
        :raises: CloudError with the end of its log, if it ends or is not
            ready in time
        """
        def check() -> object:
            if not self.is_running():
                raise self.failure(f'{self.name} has ended')
            return ready()
        try:
            wait.until(f'{self.name} ready', check, timeout)
        except errors.TimedOut as exc:
            raise self.failure(str(exc)) from exc

    def failure(self, text: str) -> errors.CloudError:
        return errors.CloudError(f'{text}; the end of its log:\n'
                                 f'{wait.tail(self.log)}')

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the process, and then the rest of its session.

        :param timeout: seconds from SIGTERM to SIGKILL
        :raises: TimedOut if a process survives SIGKILL
        """
        identity = self.identity()
        if identity is not None:
            children = [member for member in identity.session()
                        if member != identity]
            end([identity], timeout)
            end(children, timeout)
        self.record.unlink(missing_ok=True)


def end(processes: Sequence[Identity],
        timeout: float = STOP_TIMEOUT) -> None:
    """End processes: with SIGTERM first, then with SIGKILL.

    :param processes: the processes
    :param timeout: seconds from SIGTERM to SIGKILL
    :raises: TimedOut if one survives SIGKILL
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.signal(number)
        try:
            wait.until(f'end of {[one.pid for one in processes]}',
                       lambda: not any(one.is_alive() for one in processes),
                       timeout, interval=0.05)
            return
        except errors.TimedOut:
            if number == signal.SIGKILL:
                raise
