# SPDX-License-Identifier: Apache-2.0
"""Whether libvirt can be used with Nova's rights, and its known defects."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import grp
import os
import pwd
import re
import typing as ty

from nova_snapext import bounded
from nova_snapext.cmd.check import item

# Nova's for the values of [libvirt]virt_type: LibvirtDriver._uri() in
# nova/virt/libvirt/driver.py.
URIS = {'lxc': 'lxc:///system', 'parallels': 'parallels:///system'}
URI = 'qemu:///system'

# libvirt's name of it, and the beginning of the names of its defects.
APPARMOR = 'apparmor'

# Seconds for libvirtd to respond. A call to one that hangs never ends.
TIMEOUT = 20


class Unreachable(Exception):
    """libvirtd can't be asked; the text says why."""


def uri() -> str:
    """Return the URI that nova-compute connects to."""
    from nova_snapext import conf
    options = conf.CONF.libvirt
    return options.connection_uri or URIS.get(options.virt_type, URI)


def ask(question: Callable[[ty.Any], ty.Any], read_only: bool) -> ty.Any:
    """Return what libvirtd answers.

    :param read_only: ask by the socket that all users may use
    :raises Unreachable: libvirtd can't be asked
    """
    try:
        import libvirt
    except ImportError as error:
        raise Unreachable(f'libvirt\'s Python binding can\'t be imported: '
                          f'{error}') from error
    # It would print each error.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connect = libvirt.openReadOnly if read_only else libvirt.open

    def run() -> ty.Any:
        with contextlib.closing(connect(uri())) as connection:
            return question(connection)

    try:
        return bounded.call(run, TIMEOUT)
    except Exception as error:
        raise Unreachable(str(error)) from error


def connection(host: item.Host) -> Iterator[item.Item]:
    """Check that libvirtd responds, with the rights that Nova needs."""
    name = 'libvirt'
    if not host.is_nova:
        try:
            ask(lambda connection: connection.getVersion(), read_only=True)
        except Unreachable as error:
            yield item.unknown(name, f'libvirt at {uri()} does not respond to '
                                     f'this user: {error}.')
        else:
            yield item.unknown(name, f'libvirt at {uri()} responds; whether '
                                     f'it does so to Nova is not seen by '
                                     f'this user.')
        return
    try:
        capabilities = ask(lambda connection: connection.getCapabilities(),
                           read_only=False)
    except Unreachable as error:
        user = pwd.getpwuid(os.geteuid()).pw_name
        yield item.failed(
            name, f'libvirt at {uri()} can\'t be used by {user}, the user of '
                  f'nova-compute: {error}.',
            f'See that libvirtd runs, and that {user} may use it: "usermod '
            f'--append --groups libvirt {user}", then restart nova-compute.')
        return
    host.libvirt = True
    host.qemu = _qemu_owner(capabilities)
    yield item.ok(name, f'libvirt at {uri()} responds to '
                        f'{pwd.getpwuid(os.geteuid()).pw_name}')
    if not _is_local():
        yield item.warning(
            name, f'libvirtd is reached by the network ({uri()}): a libvirtd '
                  f'that hangs is not noticed.')


def _is_local() -> bool:
    return not re.match(r'[a-z]+\+(?!unix)', uri()) and (
        ':///' in uri())


def _qemu_owner(capabilities: str) -> tuple[int, int] | None:
    """Return the ids of the user and group that QEMU runs as by default.

    https://libvirt.org/formatcaps.html: the baselabel of the model dac.
    """
    label = re.search(r'<model>dac</model>.*?<baselabel[^>]*>\+?(\w+):\+?'
                      r'(\w+)</baselabel>', capabilities, re.DOTALL)
    if label is None:
        return None
    user, group = label.groups()
    try:
        return (int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid,
                int(group) if group.isdigit() else
                grp.getgrnam(group).gr_gid)
    except KeyError:
        return None


def defects(_host: item.Host) -> Iterator[item.Item]:
    """Report the known defects of the installed QEMU and libvirt.

    They are no problem of the installation: strategies are refused for the
    guests concerned.
    """
    from nova_snapext import conf
    from nova_snapext.hypervisor import known_defects
    name = 'versions'
    try:
        *numbers, capabilities = ask(lambda connection: (
            connection.getVersion(), connection.getLibVersion(),
            connection.getCapabilities()), read_only=True)
    except Unreachable as error:
        yield item.unknown(name, f'The versions of QEMU and libvirt, and '
                                 f'their known defects, are not known: '
                                 f'{error}.')
        return
    qemu, daemon = (
        (number // 1000000, number // 1000 % 1000, number % 1000)
        for number in numbers)
    is_confined = f'<model>{APPARMOR}</model>' in capabilities
    found = [defect for defect in known_defects.present(qemu, daemon)
             if is_confined or not defect.name.startswith(APPARMOR)]
    yield item.ok(name, f'QEMU {known_defects.version_text(qemu)} and libvirt '
                        f'{known_defects.version_text(daemon)}: '
                        f'{len(found) or "no"} known defects')
    fixed = set(conf.CONF.snapext.fixed_defects)
    for defect in found:
        if defect.name in fixed:
            yield item.ok(name, f'known defect {defect.name}: fixed here, as '
                                f'[snapext]fixed_defects says')
        else:
            yield item.warning(
                name, f'known defect {defect.name}, of {defect.guests}: '
                      f'{defect.consequence}. Refused for these guests: '
                      f'{defect.refused_strategies()}.')
    if unknown := sorted(fixed - {defect.name for defect in
                                  known_defects.DEFECTS}):
        yield item.warning(
            name, f'[snapext]fixed_defects names {", ".join(unknown)}, which '
                  f'is no known defect.', 'Correct the name, or remove it.')


def root_helper(host: item.Host) -> Iterator[item.Item]:
    """Check that Nova may run its root helper, without a password."""
    import shlex
    import subprocess

    from nova import utils
    name = 'root-helper'
    helper = shlex.split(utils.get_root_helper())
    if os.geteuid() == 0:
        host.root_helper = True
        yield item.ok(name, 'nova-compute runs as root')
        return
    # sudo would ask for a password.
    command = [helper[0], '-n', *helper[1:], 'true']
    try:
        done = subprocess.run(command, capture_output=True, text=True,
                              timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield item.failed(name, f'Nova\'s root helper "{shlex.join(command)}" '
                                f'can\'t be run: {error}.', 'Install sudo.')
        return
    # rootwrap's numbers: it runs, and refuses "true" (99), or finds no such
    # program (96, 98). See RC_UNAUTHORIZED in oslo_rootwrap/cmd.py.
    if done.returncode in (0, 96, 98, 99):
        host.root_helper = True
        yield item.ok(name, f'Nova\'s root helper runs: {shlex.join(helper)}')
        return
    # The last line of rootwrap's traceback says it.
    reason = (done.stderr.strip() or f'exit code {done.returncode}')
    if reason.startswith('Traceback'):
        reason = reason.splitlines()[-1]
    yield item.failed(
        name, f'Nova\'s root helper "{shlex.join(command)}" fails: '
              f'{" ".join(reason.split())}. Block devices, and disks that '
              f'belong to QEMU, need it.',
        'Install the file for sudo of your distribution\'s Nova, such as '
        '/etc/sudoers.d/nova-common.' if 'sudo:' in reason else
        'Correct the file of [DEFAULT]rootwrap_config, and those of its '
        'filters_path.')
