# SPDX-License-Identifier: Apache-2.0
"""The command ``nova-snapext check``."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import json
import os
import pwd
import signal
import socket
import sys
import typing as ty

from nova_snapext import bounded
from nova_snapext.cmd.check import ceph
from nova_snapext.cmd.check import compression
from nova_snapext.cmd.check import configuration
from nova_snapext.cmd.check import directories
from nova_snapext.cmd.check import glance
from nova_snapext.cmd.check import guests
from nova_snapext.cmd.check import hypervisor
from nova_snapext.cmd.check import installation
from nova_snapext.cmd.check import item
from nova_snapext.cmd.check import processors
from nova_snapext.cmd.check import security
from nova_snapext.cmd.check import trial
from nova_snapext.cmd import compute_config
from nova_snapext.cmd import exits
from nova_snapext.cmd import standalone
from nova_snapext import compat

#: Version of the JSON that is printed.
VERSION = 1

# Without these, those that come after them can't be made.
INSTALLED: tuple[item.Check, ...] = (
    installation.nova, installation.binding, installation.programs,
    installation.strategies, installation.driver, installation.packages)
# They need Nova's configuration. Root sees more.
CONFIGURED: tuple[item.Check, ...] = (
    configuration.compute_driver, configuration.running,
    configuration.options, processors.cpus, configuration.guest_trim,
    configuration.rootwrap, security.apparmor, security.selinux)
# They need what Nova's user may do, and no more.
AS_NOVA: tuple[item.Check, ...] = (
    hypervisor.connection, hypervisor.defects, hypervisor.root_helper,
    directories.work_directory, directories.instances_path,
    directories.journal_directory, directories.libvirt_directories,
    directories.space, glance.service_user, glance.answer, guests.driver,
    ceph.ceph, guests.guests, compression.compression)
TRIAL: tuple[item.Check, ...] = (glance.properties, trial.trial)
# What another user can find out.
AS_OTHER: tuple[item.Check, ...] = (
    hypervisor.connection, hypervisor.defects)

# Names of items, where they are not those of the functions.
NAMES: dict[item.Check, str] = {
    installation.binding: 'libnbd', configuration.files: 'configuration',
    configuration.running: 'nova-compute', hypervisor.connection: 'libvirt',
    hypervisor.defects: 'versions', glance.answer: 'glance',
    glance.properties: 'glance-properties', guests.driver: 'driver-starts'}

# Seconds for a check to find one thing. Calls to libvirtd, and programs, have
# shorter ones of their own.
TIMEOUT = 60
# The same for a trial, which may run on a busy host: a strategy that is not
# waited for leaves the guest behind.
TRIAL_TIMEOUT = 300

# Until these have passed, no other check can be made.
REQUIRED = (installation.nova, installation.driver)

SIGNS = {item.Status.OK: 'ok  ', item.Status.WARNING: 'warn',
         item.Status.UNKNOWN: '?   ', item.Status.FAILED: 'FAIL'}


def items(options: argparse.Namespace) -> Iterator[item.Item]:
    """Run all checks, up to a failure that makes the rest useless."""
    host = item.Host(options)
    _prepare(options)
    for check in INSTALLED:
        found = [*_run(check, host)]
        yield from found
        if check in REQUIRED and _worst(found) is item.Status.FAILED:
            return
    yield from _run(configuration.files, host)
    if host.source is None:
        return
    yield from _run_all(CONFIGURED, host)
    yield from _become_nova(host)
    yield from _run_all(AS_NOVA if host.is_nova else AS_OTHER, host)
    if options.trial:
        yield from _run_all(TRIAL, host) if host.is_nova else [item.unknown(
            'trial', 'Nothing was tried, because only Nova\'s user can.')]


def _prepare(options: argparse.Namespace) -> None:
    # Those that come after will say what is wrong.
    with contextlib.suppress(exits.CommandError, ImportError):
        compute_config.adopt_environment(compute_config.find(options).process)
    compute_config.adopt_environment(None)
    with contextlib.suppress(ImportError, AttributeError):
        compat.use_native_threads()


def _run_all(checks: Iterable[item.Check],
             host: item.Host) -> Iterator[item.Item]:
    for check in checks:
        is_finished = yield from _run(check, host)
        if not is_finished and check in TRIAL:
            # It still uses the journal of trials, and would change that of
            # the next.
            return


def _run(check: item.Check,
         host: item.Host) -> Generator[item.Item, None, bool]:
    """Run a check, which must not keep the others from being run.

    :returns: whether it does not run any more
    """
    name = name_of(check)
    seconds = TRIAL_TIMEOUT if check in TRIAL else TIMEOUT
    found = ty.cast(ty.Any, check(host))
    try:
        while one := bounded.call(lambda: next(found, None), seconds):
            yield one
    except bounded.NoResponse as error:
        yield item.unknown(name, f'This check was not finished: {error}.',
                           'See that what it waits for runs.')
        return False
    except Exception as error:
        if host.options.debug:
            raise
        if compute_config.is_option_error(error):
            yield item.unknown(
                name, f'This check could not be made: '
                      f'{compute_config.option_error_text(error)}.',
                'Correct the option: see "options".')
        else:
            yield item.unknown(
                name, f'This check could not be made: '
                      f'{type(error).__name__}: {error}.',
                'See the details with "nova-snapext --debug check".')
    finally:
        # What a trial has made is removed. One that hangs can't be closed.
        with contextlib.suppress(ValueError):
            found.close()
    return True


def name_of(check: item.Check) -> str:
    """Return the name of a check's items, also if it can't be made."""
    return NAMES.get(check) or check.__name__.replace('_', '-')


def _become_nova(host: item.Host) -> Iterator[item.Item]:
    try:
        standalone.become_owner_of_state(
            standalone.state_path(host.source))
    except exits.CommandError as error:
        yield item.unknown(
            'user', f'This user does not see what Nova\'s user may do '
                    f'(libvirt, directories, Glance, guests). {error}')
        return
    host.is_nova = True
    yield item.ok('user', f'the following was seen as '
                          f'{pwd.getpwuid(os.geteuid()).pw_name}, the user '
                          f'of nova-compute')


def _worst(found: Iterable[item.Item]) -> item.Status:
    order = [*item.Status]
    return max((one.status for one in found), key=order.index,
               default=item.Status.OK)


def run(options: argparse.Namespace) -> int:
    """Print each item, and return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    found: list[item.Item] = []
    with _silence(options), contextlib.closing(ty.cast(
            ty.Any, items(options))) as checked:
        for one in checked:
            found.append(one)
            if options.format == 'text':
                print(standalone.printable(text(one)), flush=True)
    if options.format == 'json':
        print(json.dumps(as_json(found), indent=2))
    else:
        print(_summary(found))
    return code(found)


def _interrupt(_number: int, _frame: object) -> None:
    # As Ctrl-C: what a trial has created is removed.
    raise KeyboardInterrupt


@contextlib.contextmanager
def _silence(options: argparse.Namespace) -> Iterator[None]:
    """Keep others' warnings away: what matters is in the items.

    Libraries in C, and the helpers that are started, write to the
    descriptor.
    """
    import logging
    if options.debug:
        yield
        return
    logging.disable()
    sys.stderr.flush()
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
        logging.disable(logging.NOTSET)


def text(one: item.Item) -> str:
    """Return an item for people."""
    remedy = f'\n      -> {one.remedy}' if one.remedy else ''
    return f'{SIGNS[one.status]}  {one.name}: {one.text}{remedy}'


def _summary(found: list[item.Item]) -> str:
    counts = [(status, sum(one.status is status for one in found))
              for status in item.Status if status is not item.Status.OK]
    listed = ', '.join(f'{count} {status}' for status, count in counts
                       if count)
    return f'{len(found)} checks: {listed or "nothing is wrong"}.'


def as_json(found: list[item.Item]) -> dict[str, ty.Any]:
    """Return the items in types that JSON has."""
    return {'version': VERSION, 'host': socket.gethostname(),
            'status': str(_worst(found)),
            'items': [{'name': one.name, 'status': str(one.status),
                       'text': one.text, 'remedy': one.remedy}
                      for one in found]}


def code(found: list[item.Item]) -> int:
    """Return the exit code."""
    return {item.Status.FAILED: exits.FOUND,
            item.Status.UNKNOWN: exits.NOT_DONE}.get(
                _worst(found), exits.CLEAN)


DESCRIPTION = """\
Find what could keep snapshots from working on this host, and say what to do.
Run it as root: other users see less. It changes nothing, and nova-compute may
run.
"""

EXAMPLES = """\
examples:
  nova-snapext check                  before the first snapshot, as root
  nova-snapext check --trial          takes snapshots of a guest of its own
  nova-snapext check --format json    for scripts
"""


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'check', help='find what could keep snapshots from working here',
        description=DESCRIPTION,
        epilog=f'{EXAMPLES}\n{exits.TEXT}',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--trial', action='store_true',
        help='also define a small guest without network on the libvirt of '
             'this host, try each strategy on it, and remove it; and create '
             'an image without data in Glance, and delete it')
    parser.add_argument('--format', choices=('text', 'json'), default='text',
                        help='output for people (default) or for scripts')
    standalone.add_options(parser)
    parser.set_defaults(run=run)
