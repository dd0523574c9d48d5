# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext recover``: clean up while nova-compute is stopped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys
import typing as ty

from nova_snapext.cmd import standalone


def run(options: argparse.Namespace) -> int:
    """Recover interrupted snapshots, or list them (--dry-run).

    :returns: the exit code: 0 if nothing is left, else 1. After a recovery
        the process ends with it.
    """
    standalone.configure(options)
    if options.dry_run:
        return int(not recover_all(None, options.instance))
    from nova_snapext import journal
    return standalone.run(
        lambda driver: recover_all(driver, options.instance),
        journal.locked())


def recover_all(driver: ty.Any, instances: Sequence[str] = ()) -> bool:
    """Recover interrupted snapshots, and print what is done.

    :param driver: None: only list the snapshots
    :param instances: uuids; empty: all instances
    :returns: whether nothing is left
    """
    from nova_snapext import exception
    from nova_snapext import journal
    from nova_snapext.recovery import recover
    if driver is not None:
        journal.finish_writes()
    entries = [entry for entry in journal.entries()
               if not instances or entry.instance_uuid in instances]
    missing = set(instances) - {entry.instance_uuid for entry in entries}
    for instance in sorted(missing):
        print(f'The journal has no interrupted snapshot of instance '
              f'{instance}.', file=sys.stderr)
    if not (entries or missing):
        print('There is nothing to clean up in the journal.')
    done = not missing
    for entry in entries:
        print(recover.describe(entry))
        try:
            if driver is not None:
                recover.recover_entry(driver, entry)
                print('    cleaned up')
        except exception.NotRecovered as error:
            print(error, file=sys.stderr)
            done = False
    return done


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'recover',
        help='clean up after interrupted snapshots while nova-compute is '
             'stopped; run it as the user of nova-compute')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='only list the interrupted snapshots and what they left')
    standalone.add_options(parser)
    parser.add_argument(
        'instance', nargs='*',
        help='uuid of an instance; by default all instances')
    parser.set_defaults(run=run)
