# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext check``: check whether Nova can use the driver here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import configparser
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shutil
import sys
import typing as ty

# This module does not import Nova.
from nova_snapext import compat

DISTRIBUTION = 'nova-snapext'
DRIVER = 'snapext.SnapextDriver'
MODULE = 'nova.virt.snapext'
NAMESPACE = 'nova_snapext.strategies'
OURS = {'backup', 'cold', 'external', 'internal', 'native'}
# The first version that reads into a buffer of the caller and releases it
# afterwards.
MIN_LIBNBD = (1, 14)
# Where packages install it; the option rootwrap_config of Nova can differ.
ROOTWRAP_CONFIG = '/etc/nova/rootwrap.conf'
FILTERS = 'etc/nova/rootwrap.d/snapext.filters'
PRIVSEP_CONTEXT = 'nova_snapext.hypervisor.privsep.context'
# Nova's default for virt_type kvm and qemu.
LIBVIRT_URI = 'qemu:///system'
# The kernel's word on AppArmor, and on SELinux: it exists only with SELinux.
APPARMOR_ENABLED = '/sys/module/apparmor/parameters/enabled'
SELINUX_ENFORCE = '/sys/fs/selinux/enforce'
# Nova's default of [libvirt]snapshots_directory.
WORK_DIRECTORY = '/var/lib/nova/instances/snapshots'
RULES = 'etc/apparmor.d/abstractions/libvirt-qemu.d/nova-snapext'


class Problem(Exception):
    """A reason why the driver can't work, with its remedy."""


class Unknown(Exception):
    """A reason why something could not be found out."""


def nova_installed() -> str:
    spec = importlib.util.find_spec('nova')
    if spec is None or spec.origin is None:
        raise Problem(
            f'Nova is not installed for {sys.executable}. Install '
            f'{DISTRIBUTION} with the pip of the Python that runs '
            f'nova-compute, and run this command from there.')
    version = importlib.metadata.version('nova')
    directory = os.path.dirname(spec.origin)
    if int(version.partition('.')[0]) < compat.MIN_NOVA:
        raise Problem(f'Nova {version} in {directory} is too old: Nova '
                      f'{compat.SUPPORTED_NOVA} is needed.')
    return f'Nova {version} in {directory}'


def driver_loads() -> str:
    """Check that Nova finds the driver that compute_driver names."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None:
        directory = importlib.import_module('nova.virt').__path__[0]
        cause = ('it is an editable install, which adds nothing to Nova\'s '
                 'directory' if _editable() else
                 'it is installed for another prefix')
        raise Problem(
            f'Nova does not find {DISTRIBUTION}: '
            f'{os.path.join(directory, "snapext.py")} does not exist; '
            f'{cause}. Install the built wheel with the Python that Nova is '
            f'installed for:\n'
            f'    {sys.executable} -m pip install --force-reinstall '
            f'--no-deps nova_snapext-*.whl')
    try:
        importlib.import_module(MODULE)
    except ImportError as error:
        raise Problem(f'{spec.origin} can\'t be imported: {error}') from error
    return f'compute_driver = {DRIVER}, found as {spec.origin}'


def _editable() -> bool:
    origin = importlib.metadata.distribution(DISTRIBUTION).read_text(
        'direct_url.json')
    return bool(origin and json.loads(origin).get(
        'dir_info', {}).get('editable'))


def compatible() -> str:
    """Check the private names of other packages that the driver uses."""
    differences = compat.check()
    if differences:
        listed = '\n    '.join(differences)
        raise Problem(
            f'The driver does not start with these packages '
            f'({compat.versions()}):\n    {listed}\nNova '
            f'{compat.SUPPORTED_NOVA} is supported. Install the packages that '
            f'your OpenStack release is tested with, or a {DISTRIBUTION} for '
            f'the installed ones.')
    return f'{len(compat.NAMES)} names as expected in {compat.versions()}'


def nbd_binding() -> str:
    if importlib.util.find_spec('nbd') is None:
        raise Problem(
            'The Python binding of libnbd (import nbd) is missing. Debian and '
            'Red Hat have it in the package python3-libnbd; it is not on '
            'PyPI. A virtual environment finds it if it was created with '
            '--system-site-packages.')
    nbd = importlib.import_module('nbd')
    version = nbd.NBD().get_version()
    if tuple(map(int, version.split('.')[:2])) < MIN_LIBNBD:
        raise Problem(f'libnbd {version} is too old: {MIN_LIBNBD[0]}.'
                      f'{MIN_LIBNBD[1]} or newer is needed.')
    return f'libnbd {version}'


def strategies() -> str:
    names = sorted(importlib.metadata.entry_points(group=NAMESPACE).names)
    missing = sorted(OURS - set(names))
    if missing:
        raise Problem(
            f'Python does not know the strategies {", ".join(missing)}: '
            f'{DISTRIBUTION} is on its path, but not installed. Install the '
            f'built wheel with pip.')
    return f'strategies {", ".join(names)}'


def programs() -> str:
    qemu = 'qemu-utils (Debian) or qemu-img (Red Hat)'
    packages = {'qemu-nbd': qemu, 'qemu-img': qemu, 'setpriv': 'util-linux'}
    missing = [f'{program}, in the package {package}'
               for program, package in packages.items()
               if shutil.which(program) is None]
    if missing:
        raise Problem(f'Programs are missing: {"; ".join(missing)}.')
    return ', '.join(packages)


def privileges() -> str:
    """Check that rootwrap lets Nova start the driver's privileged helper."""
    config = configparser.RawConfigParser()
    try:
        if not config.read(ROOTWRAP_CONFIG):
            return f'no rootwrap: {ROOTWRAP_CONFIG} does not exist'
        directories = [
            pathlib.Path(path.strip()) for path in
            config.get('DEFAULT', 'filters_path', fallback='').split(',')]
        allowed = [file for directory in directories
                   for file in sorted(directory.glob('*.filters'))
                   if _allows_context(file.read_text())]
    except (OSError, configparser.Error) as error:
        raise Problem(f'The rootwrap filters of {ROOTWRAP_CONFIG} can\'t be '
                      f'read: {error}. Run this command as root or as the '
                      f'user of nova-compute.') from error
    if not allowed:
        filters = _shipped_file(FILTERS)
        raise Problem(
            f'rootwrap does not allow the privileged helper of '
            f'{DISTRIBUTION}: no filter in '
            f'{", ".join(map(str, directories))} contains the context '
            f'{PRIVSEP_CONTEXT}. Copy {filters} there.')
    return f'privileged helper allowed by {allowed[0]}'


def _shipped_file(source: str) -> str:
    """Return where pip has installed a file of this package.

    :param source: its path in the source
    """
    for file in importlib.metadata.files(DISTRIBUTION) or ():
        if str(file).endswith(source):
            return os.path.normpath(file.locate())
    # An editable install has only the checkout.
    return source


def _allows_context(filters: str) -> bool:
    """Return whether the text of a filter file has our privsep context."""
    patterns = re.findall(
        r'^[^#\n]*\bprivsep-helper\b.*--privsep_context,\s*([^,\s]+)', filters,
        re.MULTILINE)
    return any(re.fullmatch(pattern, PRIVSEP_CONTEXT) for pattern in patterns)


def defects() -> str:
    """Report the known defects of the installed QEMU and libvirt.

    They are no problem of the installation: strategies are refused for the
    guests concerned.
    """
    known_defects = importlib.import_module(
        'nova_snapext.hypervisor.known_defects')
    try:
        qemu, daemon = (
            (number // 1000000, number // 1000 % 1000, number % 1000)
            for number in _ask_libvirt(lambda connection: (
                connection.getVersion(), connection.getLibVersion())))
    except Unknown as error:
        return f'known defects of QEMU and libvirt are not checked: {error}'
    found = known_defects.present(qemu, daemon)
    names = (f'QEMU {known_defects.version_text(qemu)} and libvirt '
             f'{known_defects.version_text(daemon)}')
    if not found:
        return f'{names}: no known defects'
    listed = '\n    '.join(
        f'{defect.name}: {defect.guests}: refused: '
        f'{defect.refused_strategies()}' for defect in found)
    return (f'{names}: {len(found)} known defects (see "Known defects" in the '
            f'documentation; guests that were started with another QEMU can '
            f'have others)\n    {listed}')


def _ask_libvirt(question: Callable[[ty.Any], ty.Any]) -> ty.Any:
    """Return what libvirtd answers.

    :raises Unknown: libvirt's binding is missing, or libvirtd does not answer
    """
    try:
        libvirt = importlib.import_module('libvirt')
    except ImportError as error:
        raise Unknown(str(error)) from error
    try:
        connection = libvirt.openReadOnly(LIBVIRT_URI)
        try:
            return question(connection)
        finally:
            connection.close()
    except libvirt.libvirtError as error:
        raise Unknown(str(error)) from error


def apparmor() -> str:
    """Check that AppArmor lets QEMU create the socket of a backup job."""
    if _first_line(APPARMOR_ENABLED) in (None, 'N'):
        return 'AppArmor is not enabled'
    try:
        if not _confines('apparmor'):
            return 'AppArmor is enabled; libvirt does not confine guests by it'
    except Unknown as error:
        return (f'AppArmor is enabled; whether libvirt confines guests by it '
                f'is not checked: {error}')
    confinement = importlib.import_module(
        'nova_snapext.hypervisor.confinement')
    if not confinement.has_rules():
        return ('AppArmor confines guests; its rules are not checked, because '
                f'the {confinement.APPARMOR} of libvirt\'s host is not here')
    # AppArmor sees a path without symbolic links.
    work_directory = os.path.realpath(_work_directory())
    try:
        rules = list(confinement.guest_rules())
    except OSError as error:
        raise Problem(
            f'AppArmor confines guests, and its rules can\'t be read: '
            f'{error}. Run this command as root.') from error
    advice = (f'Install {_shipped_file(RULES)} as the documentation says '
              f'("AppArmor" in the installation guide), with this directory '
              f'in it')
    too_open = confinement.open_rules(rules, work_directory)
    if too_open:
        raise Problem(
            f'AppArmor lets the QEMU of each guest read the snapshots of all '
            f'other guests in {work_directory}, by the rule for '
            f'{", ".join(too_open)}. Remove this rule. {advice}.')
    if not confinement.allows_sockets(rules, work_directory):
        raise Problem(
            f'AppArmor confines guests, and no rule lets QEMU create a socket '
            f'in {work_directory}: the strategy backup fails, and auto uses '
            f'the next one. {advice}.')
    fixed = ('' if confinement.helper_forbids_merge() is not False else
             '. This libvirt lets a guest write to the disk below its '
             'overlay: if it is older than 12.1, it has the fix, and the '
             'defects whose names begin with apparmor can be listed in '
             '[snapext]fixed_defects')
    return (f'AppArmor confines guests, and allows each the sockets of its '
            f'own snapshots in {work_directory}{fixed}')


def selinux() -> str:
    """Report whether SELinux confines guests; it needs no preparation."""
    enforcing = _first_line(SELINUX_ENFORCE)
    if enforcing is None:
        return 'SELinux is not enabled'
    if enforcing == '0':
        return 'SELinux is permissive'
    try:
        if not _confines('selinux'):
            return 'SELinux is enabled; libvirt does not confine guests by it'
    except Unknown as error:
        return (f'SELinux is enforcing; whether libvirt confines guests by it '
                f'is not checked: {error}')
    return ('SELinux is enforcing, and confines guests. nova-snapext was not '
            'tested with it. If a snapshot fails, "ausearch -m avc -ts '
            'recent" shows what was denied (see "Security" in the '
            'documentation)')


def work_directory() -> str:
    """Check that the path of a Unix socket fits into the work directory."""
    path = _work_directory()
    limit = importlib.import_module(
        'nova_snapext.resources.work_directory').PATH_LIMIT
    length = len(os.fsencode(path))
    if length > limit:
        raise Problem(
            f'[snapext]work_directory {path} has {length} bytes, and can have '
            f'{limit}: only Nova\'s own snapshots are possible. Set it to a '
            f'shorter path.')
    return f'work directory {path}'


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

    :raises Unknown: libvirt can't be asked
    """
    capabilities = str(_ask_libvirt(
        lambda connection: connection.getCapabilities()))
    return f'<model>{model}</model>' in capabilities


def _work_directory() -> str:
    """Return [snapext]work_directory, or its default where it is unknown."""
    try:
        conf = importlib.import_module('nova_snapext.conf').CONF
        conf([], project='nova', prog='nova-compute')
        # Nova's own defaults are below its source.
        if conf.config_file or conf.config_dir:
            directory: str = conf.snapext.work_directory
            return os.path.abspath(directory)
    except Exception as error:
        # Whatever Nova's configuration is like, the other checks go on.
        print(f'Nova\'s configuration could not be read: {error}',
              file=sys.stderr)
    return WORK_DIRECTORY


CHECKS: tuple[Callable[[], str], ...] = (
    nova_installed, nbd_binding, programs, privileges, strategies,
    driver_loads, compatible, defects, work_directory, apparmor, selinux)

# Without these, those that come after them can't be made.
REQUIRED = (nova_installed, driver_loads)


def results() -> Iterator[tuple[bool, str]]:
    """Run the checks, up to the first failure that makes the rest useless.

    :returns: for each check, whether it passed, and the text to print
    """
    for check in CHECKS:
        try:
            yield True, check()
        except Problem as problem:
            yield False, str(problem)
            if check in REQUIRED:
                return


def run(_options: argparse.Namespace) -> int:
    """Print the result of each check.

    :returns: the exit code: 0 if all passed, else 1
    """
    failed = False
    for passed, text in results():
        print(f'{"ok  " if passed else "FAIL"}  {text}')
        failed |= not passed
    return int(failed)


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'check', help='check whether Nova can load and use the driver on '
                      'this host; print a remedy if not')
    parser.set_defaults(run=run)
