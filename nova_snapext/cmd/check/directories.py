# SPDX-License-Identifier: Apache-2.0
"""Whether the directories of snapshots can be used, and have space."""

from __future__ import annotations

from collections.abc import Iterator
import os
import pathlib
import pwd
import stat

from nova_snapext.cmd.check import item

MOUNTS = '/proc/self/mountinfo'

# File systems that forget everything when the host restarts, and those that
# other hosts can have, too.
VOLATILE = {'tmpfs', 'ramfs'}
SHARED = {'nfs', 'nfs4', 'ceph', 'cifs', 'glusterfs', 'fuse.glusterfs',
          'ocfs2', 'gfs2', 'lustre', '9p', 'virtiofs'}

# The extended attribute of a POSIX access control list: acl(5).
ACL = 'system.posix_acl_access'


def journal_directory(_host: item.Host) -> Iterator[item.Item]:
    """Check the directory that recovery depends on."""
    from nova_snapext import conf
    name, path = 'journal-directory', conf.CONF.snapext.journal_directory
    found = [*_writable(name, '[snapext]journal_directory', path)]
    kind = _file_system(path)
    if kind in VOLATILE:
        found.append(item.failed(
            name, f'[snapext]journal_directory {path} is on a {kind}, which '
                  f'forgets everything when this host restarts: what a '
                  f'snapshot leaves then is not cleaned up.',
            'Set it to a directory on a disk of this host.'))
    elif kind in SHARED:
        found.append(item.warning(
            name, f'[snapext]journal_directory {path} is on {kind}.',
            'Set it to storage of this host only: each host needs its own.'))
    if os.path.isdir(path):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            found.append(item.failed(
                name, f'Others than Nova\'s user may write to '
                      f'[snapext]journal_directory {path} (mode {mode:o}).',
                f'Run "chmod 0700 {path}".'))
    yield from found or [item.ok(name, f'journal directory {path}')]


def work_directory(host: item.Host) -> Iterator[item.Item]:
    """Check where sockets and scratch files are, and QEMU's way there."""
    from nova_snapext import conf
    from nova_snapext.resources import work_directory
    name = 'work-directory'
    path = os.path.abspath(conf.CONF.snapext.work_directory)
    found = []
    length = len(os.fsencode(path))
    if length > work_directory.PATH_LIMIT:
        found.append(item.failed(
            name, f'[snapext]work_directory {path} has {length} bytes, and '
                  f'can have {work_directory.PATH_LIMIT}: only Nova\'s own '
                  f'snapshots are possible.', 'Set it to a shorter path.'))
    found += _writable(name, '[snapext]work_directory', path)
    if os.path.isdir(path):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            found.append(item.failed(
                name, f'Others than Nova\'s user may write to '
                      f'[snapext]work_directory {path} (mode {mode:o}).',
                f'Run "chmod go-w {path}".'))
    found += _way_of_qemu(name, path, host.qemu)
    yield from found or [item.ok(name, f'work directory {path}')]


def instances_path(host: item.Host) -> Iterator[item.Item]:
    """Check where the overlays of guests are."""
    from nova_snapext import conf
    name, path = 'instances-path', conf.CONF.instances_path
    found = [*_writable(name, '[DEFAULT]instances_path', path),
             *_way_of_qemu(name, path, host.qemu)]
    yield from found or [item.ok(name, f'instances in {path}')]


def libvirt_directories(_host: item.Host) -> Iterator[item.Item]:
    """Check where libvirt keeps what snapshots sync."""
    from nova_snapext import conf
    name = 'libvirt-directories'
    options = conf.CONF.snapext
    missing = [
        f'[snapext]{option} ({options[option]})' for option in
        ('libvirt_config_directory', 'libvirt_save_directory')
        if _is_missing(options[option])]
    if missing:
        yield item.warning(
            name, f'There is no {", nor ".join(missing)}: all file systems '
                  f'of this host are synced in its place, which takes longer.',
            'Set it to the directory of the libvirtd that has the guests, if '
            'its files are on this host.')
    else:
        yield item.ok(name, 'libvirt\'s directories are there')


def _is_missing(path: str) -> bool:
    """Return whether a path is known not to exist."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass  # in a directory that only root may search
    return False


def space(_host: item.Host) -> Iterator[item.Item]:
    """Check the free space where something grows during a snapshot."""
    from oslo_utils import units

    from nova_snapext import conf
    from nova_snapext import space as free_space
    name, keep = 'space', conf.CONF.snapext.min_free_disk_mb
    paths = {'[snapext]work_directory': conf.CONF.snapext.work_directory,
             '[DEFAULT]instances_path': conf.CONF.instances_path,
             '[snapext]journal_directory':
                 conf.CONF.snapext.journal_directory}
    for option, path in paths.items():
        try:
            free = free_space.free_bytes(path) // units.Mi
            files = os.statvfs(_existing(path))
        except OSError as error:
            yield item.unknown(name, f'The free space of {path} is not '
                                     f'known: {error}.')
            continue
        if files.f_files and not files.f_favail:
            yield item.failed(
                name, f'The file system of {option} ({path}) can have no '
                      f'more files.', 'Remove some.')
        if option == '[snapext]journal_directory':
            # Only reserved space is missing there: it needs some KiB.
            if not files.f_bavail:
                yield item.failed(name, f'The file system of {option} '
                                        f'({path}) is full.', 'Free space.')
        elif free < keep:
            yield item.failed(
                name, f'The file system of {option} ({path}) has {free} MiB '
                      f'free (less [DEFAULT]reserved_host_disk_mb), and '
                      f'[snapext]min_free_disk_mb keeps {keep} MiB: '
                      f'strategies that need space there are refused.',
                'Free space, or lower one of the options.')
        else:
            yield item.ok(name, f'{free} MiB free for {option}; {keep} of '
                                f'them are kept')


def _writable(name: str, option: str, path: str) -> Iterator[item.Item]:
    """Check that this user can create files in a directory, or create it."""
    path = os.path.abspath(path)
    existing = _existing(path)
    if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
        return
    user = pwd.getpwuid(os.geteuid()).pw_name
    doing = 'write to' if existing == path else 'create'
    if not os.path.isdir(existing):
        reason = f'{existing} is no directory'
        remedy = f'Change the option, or move {existing} away.'
    else:
        status = os.stat(existing)
        reason = (f'{existing} belongs to user {_name(status.st_uid)}, mode '
                  f'{stat.S_IMODE(status.st_mode):o}')
        remedy = (f'Run "install -d -o {user} {path}" as root, or change the '
                  f'option.')
        if existing != path and not os.access(existing, os.X_OK):
            # What is below it is not seen, and would not help.
            doing = 'reach'
            remedy = (f'Run "chmod o+x {existing}" as root, and this command '
                      f'again; or change the option.')
    yield item.failed(
        name, f'{user}, the user of nova-compute, can\'t {doing} {option} '
              f'{path}: {reason}.', remedy)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups(uid: int, gid: int) -> set[int]:
    """Return the groups of a process that libvirt starts as a user.

    Those that the user has in addition belong to them: virGetGroupList() in
    libvirt's src/util/virutil.c.
    """
    try:
        return {*os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)}
    except KeyError:
        return {gid}


def _way_of_qemu(name: str, path: str,
                 qemu: tuple[int, int] | None) -> Iterator[item.Item]:
    """Check that the user of QEMU may search all directories of a path.

    :param qemu: ids of the user and the group
    """
    if qemu is None or qemu[0] == 0:
        return
    groups = _groups(*qemu)
    real = pathlib.Path(os.path.realpath(path))
    for directory in reversed((real, *real.parents)):
        try:
            status = os.stat(directory)
            if ACL in os.listxattr(directory):
                continue
        except OSError:
            continue  # it does not exist yet, or has no such attributes
        if not stat.S_ISDIR(status.st_mode):
            return  # _writable() has reported it
        if status.st_uid == qemu[0]:
            allowed = status.st_mode & stat.S_IXUSR
        elif status.st_gid in groups:
            allowed = status.st_mode & stat.S_IXGRP
        else:
            allowed = status.st_mode & stat.S_IXOTH
        if not allowed:
            yield item.failed(
                name, f'QEMU\'s user {_name(qemu[0])} can\'t reach {path}: it '
                      f'may not search {directory} (mode '
                      f'{stat.S_IMODE(status.st_mode):o}).',
                f'Run "chmod o+x {directory}" as root.')
            return


def _existing(path: str) -> str:
    """Return a path, or its nearest parent that exists."""
    path = os.path.abspath(path)
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _file_system(path: str) -> str:
    """Return the kernel's name of the kind of a path's file system.

    :returns: empty if it is not known
    """
    real = os.path.realpath(_existing(path))
    best, kind = '', ''
    try:
        lines = pathlib.Path(MOUNTS).read_text().splitlines()
    except OSError:
        return ''
    for line in lines:
        # As in "36 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw": proc(5).
        before, _, after = line.partition(' - ')
        mount = before.split()[4].encode().decode('unicode_escape')
        if (real == mount or real.startswith(mount.rstrip('/') + '/')) and (
                len(mount) >= len(best)):
            best, kind = mount, after.split()[0]
    return kind
