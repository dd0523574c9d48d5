# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext check``: can this host's Nova load and use the driver?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import typing as ty

DISTRIBUTION = 'nova-snapext'
DRIVER = 'snapext.SnapextDriver'
MODULE = 'nova.virt.snapext'
MIN_NOVA = 34
NAMESPACE = 'nova_snapext.strategies'
OURS = {'backup', 'cold', 'external', 'internal', 'native'}
# Reads into buffers of ours, which it lets go of again.
MIN_LIBNBD = (1, 14)


class Problem(Exception):
    """Something that keeps the driver from working, and its remedy."""


def nova_installed() -> str:
    spec = importlib.util.find_spec('nova')
    if spec is None or spec.origin is None:
        raise Problem(
            f'Nova is not installed for {sys.executable}. Install '
            f'{DISTRIBUTION} with the pip of the Python that nova-compute '
            f'runs with, and run this command from there.')
    version = importlib.metadata.version('nova')
    where = os.path.dirname(spec.origin)
    if int(version.partition('.')[0]) < MIN_NOVA:
        raise Problem(f'Nova {version} in {where} is too old: {MIN_NOVA} '
                      f'(2026.2) or newer is needed.')
    return f'Nova {version} in {where}'


def driver_loads() -> str:
    """Check that Nova finds the driver where compute_driver looks for it."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None:
        where = importlib.import_module('nova.virt').__path__[0]
        cause = ('it is an editable install, which leaves Nova\'s directory '
                 'alone' if _editable() else
                 'it is installed for another prefix')
        raise Problem(
            f'Nova does not see {DISTRIBUTION}: there is no '
            f'{os.path.join(where, "snapext.py")}; {cause}. Install the '
            f'built wheel with the Python that Nova is installed for:\n'
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


def nbd_binding() -> str:
    if importlib.util.find_spec('nbd') is None:
        raise Problem(
            'libnbd\'s Python binding (import nbd) is missing. It is in the '
            'package python3-libnbd of Debian and Red Hat, not on PyPI; a '
            'virtual environment sees it when made with '
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
            f'The strategies {", ".join(missing)} are not known to Python: '
            f'{DISTRIBUTION} is on its path, but not installed. Install the '
            f'built wheel with pip.')
    return f'strategies {", ".join(names)}'


def programs() -> str:
    qemu = 'qemu-utils (Debian) or qemu-img (Red Hat)'
    packages = {'qemu-nbd': qemu, 'qemu-img': qemu, 'setpriv': 'util-linux'}
    missing = [f'{program}, of the package {package}'
               for program, package in packages.items()
               if shutil.which(program) is None]
    if missing:
        raise Problem(f'Programs are missing: {"; ".join(missing)}.')
    return ', '.join(packages)


CHECKS: tuple[Callable[[], str], ...] = (
    nova_installed, nbd_binding, programs, strategies, driver_loads)


def results() -> Iterator[tuple[bool, str]]:
    """Run the checks, as far as they make sense after one that failed."""
    for check in CHECKS:
        try:
            yield True, check()
        except Problem as problem:
            yield False, str(problem)
            if check is nova_installed:
                return


def run(_options: argparse.Namespace) -> int:
    failed = False
    for passed, text in results():
        print(f'{"ok  " if passed else "FAIL"}  {text}')
        failed |= not passed
    return int(failed)


def add_to(commands: ty.Any) -> None:
    """Add the subcommand to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'check', help='tell whether Nova can load and use the driver here, '
                      'and if not, what to do')
    parser.set_defaults(run=run)
