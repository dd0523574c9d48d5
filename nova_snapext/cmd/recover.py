# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext recover``: clean up while nova-compute is down."""

from __future__ import annotations

import argparse
import sys
import typing as ty

# Nova and all that belongs to it is imported when the command runs: ``check``
# has to work where it can't be.

# Seconds that Nova's conductor has to tell of an instance.
RPC_TIMEOUT = 10


def run(options: argparse.Namespace) -> int:
    driver = None if options.dry_run else _driver(options)
    if driver is None:
        _configure(options)
    from nova_snapext import exception
    from nova_snapext import journal
    from nova_snapext import recovery
    chosen = [entry for entry in journal.entries()
              if not options.instance or entry.instance in options.instance]
    missing = set(options.instance) - {entry.instance for entry in chosen}
    for instance in sorted(missing):
        print(f'The journal has no interrupted snapshot of instance '
              f'{instance}.')
    failed = bool(missing)
    try:
        with journal.locked():
            for entry in chosen:
                print(recovery.describe(entry))
                if driver is not None:
                    recovery.recover(driver, entry)
                    print('    cleaned up')
    except exception.JournalLocked as error:
        print(error, file=sys.stderr)
        return 1
    except exception.NotRecovered as error:
        print(error, file=sys.stderr)
        failed = True
    if not chosen:
        print('There is nothing to clean up.')
    return int(failed)


def _configure(options: argparse.Namespace) -> None:
    from nova import config
    from nova import objects
    arguments = [word for name in ('file', 'dir')
                 for path in getattr(options, f'config_{name}')
                 for word in (f'--config-{name}', path)]
    config.parse_args(['nova-compute', *arguments])
    objects.register_all()


def _driver(options: argparse.Namespace) -> ty.Any:
    """Make a driver as nova-compute does, for one host and no service."""
    _configure(options)
    from nova.conductor import rpcapi
    from nova import conf
    from nova.objects import base
    from nova import rpc
    from nova.virt import virtapi

    from nova_snapext import driver
    conf.CONF.set_override('rpc_response_timeout', RPC_TIMEOUT)
    rpc.init(conf.CONF)
    base.NovaObject.indirection_api = rpcapi.ConductorAPI()
    made = driver.SnapextDriver(virtapi.VirtAPI())
    made._host.initialize()
    return made


def add_to(commands: ty.Any) -> None:
    """Add the subcommand to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'recover',
        help='clean up after snapshots that were interrupted, while '
             'nova-compute is down; run it as nova-compute\'s user')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='only tell what there is to clean up')
    for name in ('file', 'dir'):
        parser.add_argument(
            f'--config-{name}', action='append', default=[],
            help='Nova\'s configuration; by default what nova-compute finds')
    parser.add_argument(
        'instance', nargs='*', help='uuid of an instance; by default all')
    parser.set_defaults(run=run)
