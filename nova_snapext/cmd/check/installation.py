# SPDX-License-Identifier: Apache-2.0
"""Whether all that the driver needs is installed for nova-compute's Python.

This module works where Nova is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import sysconfig

from nova_snapext.cmd.check import item
from nova_snapext import compat
from nova_snapext import finder
from nova_snapext import libnbd

DISTRIBUTION = 'nova-snapext'
MODULE = 'nova.virt.snapext'
NAMESPACE = 'nova_snapext.strategies'
OURS = {'backup', 'cold', 'external', 'internal', 'native', 'rbd'}
QEMU_PACKAGE = 'qemu-utils (Debian) or qemu-img (Red Hat)'
PROGRAMS = {'qemu-nbd': QEMU_PACKAGE, 'qemu-img': QEMU_PACKAGE,
            'setpriv': 'util-linux'}


def nova(_host: item.Host) -> Iterator[item.Item]:
    """Check that this Python has a Nova that is supported."""
    spec = importlib.util.find_spec('nova')
    if spec is None or spec.origin is None:
        yield item.failed(
            'nova', f'Nova is not installed for {sys.executable}.',
            f'Install {DISTRIBUTION} with the pip of the Python that runs '
            f'nova-compute, and run this command from there.')
        return
    found = (f'Nova {importlib.metadata.version("nova")} in '
             f'{os.path.dirname(spec.origin)}')
    if old := compat.too_old():
        yield item.failed('nova', f'{old}; this is {found}.',
                          'Upgrade Nova, and then nova-snapext.')
    elif new := compat.untested():
        yield item.warning('nova', f'{new}.')
    else:
        yield item.ok('nova', found)


def binding(_host: item.Host) -> Iterator[item.Item]:
    """Check that libnbd's binding is the right one."""
    try:
        module = libnbd.load()
    except libnbd.LibnbdError as error:
        yield item.failed('libnbd', str(error))
        return
    version = module.NBD().get_version()
    yield item.ok('libnbd', f'libnbd {version}, loaded from {module.__file__}')


def programs(_host: item.Host) -> Iterator[item.Item]:
    """Check that QEMU's programs are found with nova-compute's PATH."""
    missing = [f'{program} ({package})'
               for program, package in PROGRAMS.items()
               if shutil.which(program) is None]
    if missing:
        yield item.failed(
            'programs', f'Programs are missing in {os.environ.get("PATH")}: '
                        f'{", ".join(missing)}.',
            'Install the packages in parentheses.')
    else:
        yield item.ok('programs', ', '.join(PROGRAMS))


def strategies(_host: item.Host) -> Iterator[item.Item]:
    """Check that Python knows the strategies of this package."""
    names = set(importlib.metadata.entry_points(group=NAMESPACE).names)
    missing = sorted(OURS - names)
    if missing:
        yield item.failed(
            'strategies',
            f'Python does not know the strategies {", ".join(missing)}: '
            f'{DISTRIBUTION} is on its path, but not installed, or an older '
            f'version is.', _install())
    else:
        yield item.ok('strategies', f'strategies {", ".join(sorted(names))}')


def driver(_host: item.Host) -> Iterator[item.Item]:
    """Check that Nova finds the driver that compute_driver names."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None:
        directory = importlib.import_module('nova.virt').__path__[0]
        if _editable():
            cause = (f'{DISTRIBUTION} is an editable install, which adds '
                     f'nothing to Nova\'s directory')
        elif finder.is_registered():
            cause = f'{DISTRIBUTION} is not installed with all its files'
        else:
            cause = ('this Python did not read nova-snapext.pth, which is '
                     'installed beside nova_snapext')
        yield item.failed(
            'driver',
            f'Nova does not find the driver: '
            f'{os.path.join(directory, "snapext.py")} does not exist, and '
            f'{cause}.', _install())
        return
    try:
        importlib.import_module('nova_snapext.driver')
    except ImportError as error:
        yield item.failed('driver', f'The driver can\'t be imported: {error}',
                          'Install what is missing.')
        return
    yield item.ok('driver', f'snapext.SnapextDriver, found as {spec.origin}')


def _install() -> str:
    """Return how to install the package for this Python."""
    managed = (sys.prefix == sys.base_prefix and os.path.exists(os.path.join(
        sysconfig.get_path('stdlib'), 'EXTERNALLY-MANAGED')))
    return (f'Install the built wheel, neither editable nor with --target, '
            f'with the Python that runs nova-compute: {sys.executable} -m pip '
            f'install --force-reinstall --no-deps '
            f'{"--break-system-packages " if managed else ""}'
            f'nova_snapext-*.whl; or the Debian package of nova-snapext, '
            f'where Nova is one.')


def _editable() -> bool:
    try:
        origin = importlib.metadata.distribution(DISTRIBUTION).read_text(
            'direct_url.json')
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(origin and json.loads(origin).get(
        'dir_info', {}).get('editable'))


def packages(_host: item.Host) -> Iterator[item.Item]:
    """Check the private names of other packages that the driver uses."""
    differences = compat.check()
    if differences:
        yield item.failed(
            'packages',
            f'The driver does not start with these packages '
            f'({compat.versions()}): {"; ".join(differences)}.',
            f'Install the packages that your OpenStack release is tested '
            f'with, or a {DISTRIBUTION} for the installed ones. Nova '
            f'{compat.SUPPORTED_NOVA} is supported.')
    else:
        yield item.ok('packages', f'{len(compat.names())} names as expected '
                                  f'in {compat.versions()}')


def shipped_file(source: str) -> str:
    """Return where a file of this package is installed.

    :param source: its path in the source, which is returned if it is not
        installed
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [os.path.normpath(str(file.locate())) for file in files
             if str(file).endswith(source)]
    # A package of a distribution has it in its place.
    return next(filter(os.path.exists, [*found, f'/{source}']), source)
