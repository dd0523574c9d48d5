# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext recover``: clean up while nova-compute is down."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
import typing as ty

# Nova and all that belongs to it is imported when the command runs: ``check``
# has to work where it can't be.

# Seconds that Nova's conductor has to tell of an instance.
RPC_TIMEOUT = 10


def run(options: argparse.Namespace) -> int:
    _configure(options)
    from nova_snapext import exception
    from nova_snapext import journal
    try:
        if options.dry_run:
            return int(not _recover(options.instance, None))
        with journal.locked():
            try:
                _end(int(not _recover(options.instance, _driver())))
            except Exception as error:
                traceback.print_exc()
                print(f'Nothing more could be done: {error}. Does libvirtd '
                      f'run, and is this nova-compute\'s user?',
                      file=sys.stderr)
                _end(1)
    except (exception.JournalLocked, exception.JournalFailed) as error:
        print(error, file=sys.stderr)
        return 1


def _end(code: int) -> ty.NoReturn:
    """End at once: Nova's threads for libvirt's events never do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _recover(instances: list[str], driver: ty.Any) -> bool:
    """Clean up, or, without a driver, tell what there is to clean up.

    :param instances: uuids; none: all
    :returns: whether nothing is left
    """
    from nova_snapext import exception
    from nova_snapext import journal
    from nova_snapext import recovery
    chosen = [entry for entry in journal.entries()
              if not instances or entry.instance in instances]
    missing = set(instances) - {entry.instance for entry in chosen}
    for instance in sorted(missing):
        print(f'The journal has no interrupted snapshot of instance '
              f'{instance}.', file=sys.stderr)
    if not (chosen or missing):
        print('There is nothing to clean up.')
    done = not missing
    for entry in chosen:
        print(recovery.describe(entry))
        try:
            if driver is not None:
                recovery.recover(driver, entry)
                print('    cleaned up')
        except exception.NotRecovered as error:
            print(error, file=sys.stderr)
            done = False
    return done


def _configure(options: argparse.Namespace) -> None:
    # As nova.cmd.compute begins, but always with native threads.
    os.environ['OS_NOVA_DISABLE_EVENTLET_PATCHING'] = 'true'
    from nova import monkey_patch
    monkey_patch.patch(backend='threading')
    from nova import config
    from nova import objects
    from oslo_log import log as logging
    arguments = [word for name in ('file', 'dir')
                 for path in getattr(options, f'config_{name}')
                 for word in (f'--config-{name}', path)]
    config.parse_args(['nova-compute', *arguments])
    logging.setup(config.CONF, 'nova')
    objects.register_all()


def _driver() -> ty.Any:
    """Make a driver as nova-compute does, for one host and no service."""
    from nova.conductor import rpcapi
    from nova import conf
    from nova.objects import base
    from nova import rpc
    from nova import utils
    from nova.virt import virtapi
    from oslo_privsep import priv_context

    from nova_snapext import driver
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    rpc.init(conf.CONF)
    base.NovaObject.indirection_api = rpcapi.ConductorAPI()
    # Known to oslo.messaging only now.
    conf.CONF.set_override('rpc_response_timeout', RPC_TIMEOUT)
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
