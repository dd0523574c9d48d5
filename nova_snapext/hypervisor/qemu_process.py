# SPDX-License-Identifier: Apache-2.0
"""The QEMU process of a guest: which version it is, and what it does.

libvirt reports the installed QEMU. A guest keeps running the QEMU that it was
started with when the package is upgraded. libvirt has no call that tells it,
except one that taints the domain (virDomainQemuMonitorCommand).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import pathlib
import re
import socket
import stat
import struct

import libvirt
from lxml import etree
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import versionutils
import psutil

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import errors
from nova_snapext.hypervisor import known_defects
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

LOCKS = pathlib.Path('/proc/locks')

# QEMU's lock of a disk that it has opened for writing is on this byte: see
# RAW_PERM_BASE in block/file-posix.c, and BLK_PERM_WRITE.
WRITE_LOCK = 101

# Minimum time between a change of the file and the start of the process, in
# seconds: a shorter one proves nothing. The start is counted from the host's
# boot, and the kernel reports the time of the boot in whole seconds.
START_PRECISION = 2

# As many links as the kernel follows: path_resolution(7).
MAX_LINKS = 40

# elf(5): size of the header in bytes; magic and class of a 64-bit program;
# type of a segment that is loaded; flag of one that is executed.
ELF_HEADER = 64
ELF_64_BIT = b'\x7fELF\x02'
PT_LOAD = 1
PF_X = 1


def running_version(host: libvirt_host.Host,
                    guest: domain.Domain) -> known_defects.Version | None:
    """Return the version of the QEMU that a guest runs in.

    It is the version of the guest's emulator if this is the file that the
    process runs, and is the one that libvirtd knows.

    :returns: None if the version can't be told, as after an upgrade
    """
    process = _process(guest)
    if process is None:
        return None
    emulator = _emulator(guest)
    try:
        if not _runs_file(process, emulator):
            LOG.debug('%s may have been replaced after guest %s was started',
                      emulator, guest.uuid)
            return None
        version = _version_of(emulator, _identity(emulator))
    except (*errors.HYPERVISOR_ERRORS, psutil.Error) as error:
        LOG.debug('The version of %(emulator)s of guest %(guest)s is '
                  'unknown: %(error)s',
                  {'emulator': emulator, 'guest': guest.uuid, 'error': error})
        return None
    # They differ if libvirtd is in another container with its own QEMU.
    return version if version == installed_version(host) else None


def _identity(path: str) -> tuple[int, ...]:
    """Return numbers that change if another file takes over a path."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
            status.st_ctime_ns)


@functools.lru_cache(maxsize=16)
def _version_of(emulator: str, _file: tuple[int, ...],
                ) -> known_defects.Version | None:
    """Return the version of an emulator, which takes 40 ms to tell it.

    :param _file: see _identity(); each file is asked once
    :raises ProcessExecutionError, OSError: it does not tell
    """
    output, _stderr = processutils.execute(
        emulator, '--version', timeout=CONF.snapext.operation_timeout)
    return parse_version(output)


def _runs_file(process: psutil.Process, path: str) -> bool:
    """Return whether a process is seen to run the present file of a path.

    :raises OSError, psutil.Error: the file or the process can't be seen
    """
    try:
        # The file is kept until the process ends, also if it is replaced.
        return os.path.samestat(
            os.stat(f'/proc/{process.pid}/exe'), os.stat(path))
    except PermissionError:
        # Only its own user and root may see that of a process: proc(5).
        pass
    # The clock may have been set since the file was changed. So the code has
    # to have the same size as well. A wrapper's does not.
    return (_code_pages(path) == _running_code_pages(process.pid) and
            _last_change(path) + START_PRECISION <= process.create_time())


def _last_change(path: str) -> float:
    """Return when the path of a file began to lead to its present content.

    :returns: in seconds since the epoch
    :raises OSError: the path does not exist
    """
    newest, at, links = 0.0, '/', 0
    parts = path.split('/')[::-1]
    while parts:
        part = parts.pop()
        if part == '..':
            at = os.path.dirname(at)
        if part in ('', '.', '..'):
            continue
        found = os.path.join(at, part)
        status = os.lstat(found)
        # A package replaces the file, and may restore an older mtime. A new
        # entry of a directory changes both times, and its new name one.
        if not (stat.S_ISDIR(status.st_mode) and
                status.st_mtime_ns == status.st_ctime_ns):
            newest = max(newest, status.st_ctime)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(found)
            parts += target.split('/')[::-1]
            if target.startswith('/'):
                at = '/'
        else:
            at = found
    return newest


def _code_pages(path: str) -> int | None:
    """Return how many pages of memory the code of a program takes.

    The kernel counts from the first to the last segment that is executable:
    load_elf_binary in fs/binfmt_elf.c, and elf(5).

    :returns: None if the file is no 64-bit program, as a script is not
    :raises OSError: the file can't be read
    """
    with open(path, 'rb') as file:
        header = file.read(ELF_HEADER)
        if len(header) < ELF_HEADER or header[:5] != ELF_64_BIT:
            return None
        order = '<' if header[5] == 1 else '>'
        (offset,) = struct.unpack_from(f'{order}Q', header, 32)
        size, number = struct.unpack_from(f'{order}2H', header, 54)
        file.seek(offset)
        segments = [struct.unpack_from(f'{order}2I5Q', file.read(size))
                    for _ in range(number)]
    code: list[tuple[int, int]] = [
        (address, address + length)
        for kind, flags, _offset, address, _physical, length, _memory
        in segments if kind == PT_LOAD and flags & PF_X]
    if not code:
        return None
    page = os.sysconf('SC_PAGE_SIZE')
    return (-(-max(end for _start, end in code) // page) -
            min(start for start, _end in code) // page)


def _running_code_pages(pid: int) -> int:
    """Return how many pages of memory the code of a process takes.

    Everybody may see that: proc(5), statm.

    :raises OSError: the process has ended, or can't be seen
    """
    return int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[3])


def may_have(defect: known_defects.Defect, host: libvirt_host.Host,
             guest: domain.Domain) -> bool:
    """Return whether a guest's QEMU may have a defect.

    :raises libvirtError: libvirt refuses
    """
    return (defect.name not in CONF.snapext.fixed_defects and defect.affects(
        running_version(host, guest), libvirt_version(host)))


def parse_version(output: str) -> known_defects.Version | None:
    """Return the version in the output of an emulator's ``--version``."""
    found = re.match(r'QEMU emulator version (\d+)\.(\d+)\.(\d+)', output)
    return tuple(map(int, found.groups())) if found else None


def installed_version(host: libvirt_host.Host) -> known_defects.Version:
    """Return the version of the QEMU that libvirtd would start.

    :raises libvirtError: libvirt refuses
    """
    return _as_tuple(host.get_connection().getVersion())


def libvirt_version(host: libvirt_host.Host) -> known_defects.Version:
    """Return the version of libvirtd.

    :raises libvirtError: libvirt refuses
    """
    return _as_tuple(host.get_connection().getLibVersion())


def _as_tuple(version: int) -> known_defects.Version:
    text = versionutils.convert_version_to_str(version)
    return tuple(map(int, text.split('.')))


def subject(guest: domain.Domain,
            disk: planning.RootDisk) -> known_defects.Subject:
    """Return what the conditions of known defects need.

    :param guest: a guest that runs or is paused
    :raises libvirtError: libvirt refuses
    """
    paused = guest.state()[0] != libvirt.VIR_DOMAIN_RUNNING
    return known_defects.Subject(
        definition=etree.fromstring(guest.get_xml_desc()), target=disk.target,
        paused=paused,
        inactive=paused and not is_open_for_writing(disk) and
        is_incoming(guest) is not False)


def is_incoming(guest: domain.Domain) -> bool | None:
    """Return whether a guest's QEMU was started to restore or migrate it.

    :returns: None if it can't be told
    """
    process = _process(guest)
    try:
        return None if process is None else '-incoming' in process.cmdline()
    except psutil.Error:
        return None


def is_open_for_writing(disk: planning.RootDisk) -> bool:
    """Return whether a QEMU is seen to have opened a disk for writing.

    :returns: False also if it can't be told. A guest has its own node of a
        block device, and another host has its own locks
    """
    try:
        file = os.stat(disk.path)
        locks = LOCKS.read_text().splitlines()
    except OSError:
        return False
    # As in "1: OFDLCK ADVISORY READ -1 fe:00:2498613 100 101", see proc(5).
    identity = (f'{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:'
                f'{file.st_ino}')
    for fields in (line.split() for line in locks):
        if fields[1] == 'OFDLCK' and fields[5] == identity:
            end = fields[7]
            if int(fields[6]) <= WRITE_LOCK and (
                    end == 'EOF' or int(end) >= WRITE_LOCK):
                return True
    return False


def started(guest: domain.Domain) -> list[tuple[int, int]]:
    """Return id and start of each process that runs as a guest's QEMU.

    A wrapper around QEMU has the same arguments. Other programs may have the
    guest's uuid as an argument, too, as "virsh console" has.

    :returns: the starts are in clock ticks since the host's boot, which no
        change of the clock changes: proc(5), starttime
    """
    found = []
    for process in psutil.process_iter(['cmdline']):
        if ('-uuid', guest.uuid) in itertools.pairwise(
                process.info['cmdline'] or ()):
            # It may have ended.
            with contextlib.suppress(OSError):
                status = pathlib.Path(f'/proc/{process.pid}/stat').read_text()
                # The name of the program may contain anything.
                fields = status[status.rindex(')'):].split()
                found.append((process.pid, int(fields[20])))
    return found


def check_server(path: str, guest: domain.Domain, uid: int) -> None:
    """Check that a guest's QEMU is what listens on a Unix socket.

    Any process of QEMU's user can put another socket into a directory that
    QEMU can write in: that of another guest, or of a server that only Nova's
    user can reach.

    :param path: path of the socket, which nobody but Nova can replace now
    :param uid: id of the user that the guest's QEMU runs as
    :raises UnexpectedState: another process listens
    :raises OSError: nothing listens
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONF.snapext.operation_timeout)
        client.connect(path)
        # Those of the process at its listen(2): unix(7), SO_PEERCRED.
        pid, user, _group = struct.unpack('3i', client.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize('3i')))
    if user != uid or _is_other(pid, guest):
        raise exception.UnexpectedState(
            reason=f'not the QEMU of the guest listens on its socket, but '
                   f'process {pid} of user {user}. A process of QEMU\'s user '
                   f'has replaced the socket: look for a guest that has '
                   f'taken over its QEMU')
    LOG.debug('Process %(pid)s of user %(user)s listens on %(path)s',
              {'pid': pid, 'user': user, 'path': path})


def _is_other(pid: int, guest: domain.Domain) -> bool:
    """Return whether a process is seen not to be a guest's QEMU.

    :param pid: 0 if it is in another PID namespace
    """
    try:
        return bool(pid) and guest.uuid not in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _emulator(guest: domain.Domain) -> str:
    """Return the path of the emulator in a guest's definition."""
    return etree.fromstring(guest.get_xml_desc()).findtext(
        './devices/emulator') or ''


def _process(guest: domain.Domain) -> psutil.Process | None:
    """Return a guest's QEMU process; None if there is not exactly one.

    A wrapper around QEMU is none: its version is not that of the QEMU.
    """
    emulator = _emulator(guest)
    found = []
    for process in psutil.process_iter(['cmdline']):
        arguments = list(process.info['cmdline'] or ())
        if (guest.uuid in arguments and '-uuid' in arguments and
                arguments[:1] == [emulator]):
            found.append(process)
    return found[0] if len(found) == 1 else None
