# SPDX-License-Identifier: Apache-2.0
"""Whether AppArmor or SELinux keeps QEMU from what a snapshot needs."""

from __future__ import annotations

from collections.abc import Iterator
import os
import pathlib

from nova_snapext.cmd.check import hypervisor
from nova_snapext.cmd.check import installation
from nova_snapext.cmd.check import item

# The kernel's word on AppArmor, and on SELinux: it exists only with SELinux.
APPARMOR_ENABLED = '/sys/module/apparmor/parameters/enabled'
SELINUX_ENFORCE = '/sys/fs/selinux/enforce'
RULES = 'etc/apparmor.d/abstractions/libvirt-qemu.d/nova-snapext'


def apparmor(_host: item.Host) -> Iterator[item.Item]:
    """Check that AppArmor lets QEMU create the socket of a backup job."""
    name = 'apparmor'
    if _first_line(APPARMOR_ENABLED) in (None, 'N'):
        yield item.ok(name, 'AppArmor is not enabled')
        return
    try:
        if not _confines(name):
            yield item.ok(name, 'AppArmor is enabled; libvirt does not '
                                'confine guests by it')
            return
    except hypervisor.Unreachable as error:
        yield item.unknown(name, f'AppArmor is enabled; whether libvirt '
                                 f'confines guests by it is not known: '
                                 f'{error}.')
        return
    yield _apparmor_rules()


def _apparmor_rules() -> item.Item:
    from nova_snapext import conf
    from nova_snapext.hypervisor import confinement
    name = 'apparmor'
    if not confinement.has_rules():
        return item.unknown(
            name, f'AppArmor confines guests, and its rules are not here: '
                  f'{confinement.APPARMOR} of the host with libvirt has them.')
    # AppArmor sees a path without symbolic links.
    work_directory = os.path.realpath(conf.CONF.snapext.work_directory)
    try:
        rules = list(confinement.guest_rules())
    except OSError as error:
        return item.unknown(name, f'AppArmor confines guests, and its rules '
                                  f'can\'t be read: {error}.',
                            'Run this command as root.')
    remedy = (f'Install {installation.shipped_file(RULES)} as the '
              f'documentation says ("AppArmor" in the installation guide), '
              f'with this directory in it.')
    if too_open := confinement.open_rules(rules, work_directory):
        return item.failed(
            name, f'AppArmor lets the QEMU of each guest read the snapshots '
                  f'of all other guests in {work_directory}, by the rule for '
                  f'{", ".join(too_open)}.', f'Remove this rule. {remedy}')
    if not confinement.allows_sockets(rules, work_directory):
        return item.failed(
            name, f'AppArmor confines guests, and no rule lets QEMU create a '
                  f'socket in {work_directory}: the strategy backup fails, '
                  f'and auto uses the next one.', remedy)
    fixed = ('' if confinement.helper_forbids_merge() is not False else
             '. This libvirt lets a guest write to the disk below its '
             'overlay: if it is older than 12.1, it has the fix, and the '
             'defects whose names begin with apparmor can be listed in '
             '[snapext]fixed_defects')
    return item.ok(name, f'AppArmor confines guests, and allows each the '
                         f'sockets of its own snapshots in '
                         f'{work_directory}{fixed}')


def selinux(_host: item.Host) -> Iterator[item.Item]:
    """Report whether SELinux confines guests; it needs no preparation."""
    name = 'selinux'
    enforcing = _first_line(SELINUX_ENFORCE)
    if enforcing is None:
        yield item.ok(name, 'SELinux is not enabled')
        return
    if enforcing == '0':
        yield item.ok(name, 'SELinux is permissive')
        return
    try:
        if not _confines(name):
            yield item.ok(name, 'SELinux is enabled; libvirt does not '
                                'confine guests by it')
            return
    except hypervisor.Unreachable as error:
        yield item.unknown(name, f'SELinux is enforcing; whether libvirt '
                                 f'confines guests by it is not known: '
                                 f'{error}.')
        return
    yield item.warning(
        name, 'SELinux is enforcing, and confines guests. nova-snapext was '
              'not tested with it.',
        'If a snapshot fails, "ausearch -m avc -ts recent" shows what was '
        'denied (see "Security" in the documentation).')


def _first_line(path: str) -> str | None:
    """Return what the kernel says in a file.

    :returns: None if it does not exist; empty if it can't be read
    """
    try:
        return pathlib.Path(path).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError:
        return ''


def _confines(model: str) -> bool:
    """Return whether libvirt confines new guests by a security module.

    :raises Unreachable: libvirt can't be asked
    """
    return f'<model>{model}</model>' in str(hypervisor.ask(
        lambda connection: connection.getCapabilities(), read_only=True))
