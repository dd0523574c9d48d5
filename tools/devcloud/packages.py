# SPDX-License-Identifier: Apache-2.0
"""Install or unpack Debian packages."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile

from devcloud import errors
from devcloud import shell

#: Packages that the cloud needs.
NEEDED = (
    'busybox-static',
    'cpio',
    'e2fsprogs',
    'gcc',
    'genisoimage',
    'libc6-dev',
    'libnbd-bin',
    'libvirt-clients',
    'libvirt-daemon-driver-qemu',
    'libvirt-daemon-system',
    'libvirt-dev',
    'lvm2',
    'mariadb-server',
    'mtools',
    'ovmf',
    'pkg-config',
    'python3-dev',
    'python3-libnbd',
    'python3-venv',
    'qemu-block-extra',
    'qemu-system-x86',
    'qemu-utils',
    'rabbitmq-server',
    'sudo',
    'syslinux',
    'syslinux-common',
    'util-linux',
)

#: Packages that Ceph needs in addition.
CEPH = (
    'ceph-common',
    'ceph-mgr',
    'ceph-mon',
    'ceph-osd',
    'python3-rados',
    'python3-rbd',
)

#: Packages of the browser that the tests of Horizon drive.
BROWSER = (
    'chromium',
    'chromium-driver',
    'fonts-dejavu-core',
)

POLICY = pathlib.Path('/usr/sbin/policy-rc.d')


def missing(names: tuple[str, ...]) -> list[str]:
    """Return the names of those packages that are not installed."""
    try:
        listed = shell.run(['dpkg-query', '-W', '-f',
                            '${Package} ${db:Status-Status}\n', *names])
    except errors.CommandFailed as exc:  # dpkg does not know some of them.
        listed = exc.output
    except errors.CloudError as exc:
        raise errors.CloudError(
            'this needs Debian 12: dpkg is not installed') from exc
    installed = {line.split()[0] for line in listed.splitlines()
                 if line.endswith(' installed')}
    return [name for name in names if name not in installed]


def install(names: tuple[str, ...] = NEEDED) -> list[str]:
    """Install the missing packages, without starting their services.

    :param names: the packages
    :returns: the names of the packages that were missing
    """
    absent = missing(names)
    if absent:
        with _no_services():
            _apt('install', '-y', '--no-install-recommends', *absent)
    return absent


def unpack(names: tuple[str, ...], target: pathlib.Path) -> None:
    """Download packages and unpack their files, without installing them.

    :param names: the packages
    :param target: directory to unpack into
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='snapext-deb-') as scratch:
        os.chmod(scratch, 0o755)  # apt downloads as its own user.
        _apt('download', *names, cwd=scratch)
        for package in pathlib.Path(scratch).glob('*.deb'):
            shell.run(['dpkg-deb', '-x', package, target])


def dependency(name: str, prefix: str) -> str:
    """Return the first dependency whose name starts with a prefix."""
    _refresh_if_unknown(name)
    listed = shell.run(['apt-cache', 'depends', '--important', name])
    for line in listed.splitlines():
        kind, _, needed = line.strip().partition(': ')
        if kind == 'Depends' and needed.startswith(prefix):
            return needed
    raise errors.CloudError(f'{name} has no dependency {prefix}*')


def _apt(*words: str, cwd: str | None = None) -> None:
    """Run apt-get; if it fails, update the package lists and try again."""
    command = ['apt-get', '-q', '-o', 'DPkg::Lock::Timeout=120', *words]
    env = {'DEBIAN_FRONTEND': 'noninteractive'}
    try:
        shell.run(command, env=env, cwd=cwd)
    except errors.CommandFailed:
        _refresh()
        shell.run(command, env=env, cwd=cwd)


def _refresh() -> None:
    shell.run(['apt-get', '-q', 'update'])


def _refresh_if_unknown(name: str) -> None:
    if not shell.run(['apt-cache', 'policy', name]).strip():
        _refresh()


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Prevent packages from starting services during installation."""
    if POLICY.exists():
        yield
        return
    shell.write(POLICY, '#!/bin/sh\nexit 101\n', mode=0o755)
    try:
        yield
    finally:
        POLICY.unlink()
