# SPDX-License-Identifier: Apache-2.0
"""``nova-snapext recover``: clean up while nova-compute is stopped."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
import typing as ty

# Nova, and each module that imports it, is imported when the command runs:
# the command check has to work where Nova can't be imported.

# Seconds that Nova's conductor has to answer a question about an instance.
RPC_TIMEOUT = 10


def run(options: argparse.Namespace) -> int:
    """Recover interrupted snapshots, or list them (--dry-run).

    :returns: the exit code: 0 if nothing is left, else 1. After a recovery
        the process ends with it.
    """
    _configure(options)
    from nova_snapext import exception
    from nova_snapext import journal
    try:
        if options.dry_run:
            return int(not _recover(options.instance, None))
        with journal.locked():
            try:
                _exit(int(not _recover(options.instance, _create_driver())))
            except Exception as error:
                traceback.print_exc()
                print(f'The recovery stopped: {error}. Check that libvirtd '
                      f'runs, and that you run this command as the user of '
                      f'nova-compute.', file=sys.stderr)
                _exit(1)
    except (exception.JournalLocked, exception.JournalFailed) as error:
        print(error, file=sys.stderr)
        return 1


def _exit(code: int) -> ty.NoReturn:
    """End the process: Nova's threads for libvirt's events never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _recover(instances: list[str], driver: ty.Any) -> bool:
    """Recover interrupted snapshots, and print what is done.

    :param instances: uuids; empty: all instances
    :param driver: None: only list the snapshots
    :returns: whether nothing is left
    """
    from nova_snapext import exception
    from nova_snapext import journal
    from nova_snapext.recovery import recover
    entries = [entry for entry in journal.entries()
               if not instances or entry.instance_uuid in instances]
    missing = set(instances) - {entry.instance_uuid for entry in entries}
    for instance in sorted(missing):
        print(f'The journal has no interrupted snapshot of instance '
              f'{instance}.', file=sys.stderr)
    if not (entries or missing):
        print('There is nothing to clean up.')
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


def _configure(options: argparse.Namespace) -> None:
    # As nova.cmd.compute begins, but always with native threads.
    os.environ['OS_NOVA_DISABLE_EVENTLET_PATCHING'] = 'true'
    from nova import monkey_patch
    monkey_patch.patch(backend='threading')
    from nova import config
    from nova import objects
    from oslo_log import log as logging
    arguments = [argument for name in ('file', 'dir')
                 for path in getattr(options, f'config_{name}')
                 for argument in (f'--config-{name}', path)]
    config.parse_args(['nova-compute', *arguments])
    logging.setup(config.CONF, 'nova')
    objects.register_all()


def _create_driver() -> ty.Any:
    """Create a driver as nova-compute does, without its service."""
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
    # rpc.init() registers this option.
    conf.CONF.set_override('rpc_response_timeout', RPC_TIMEOUT)
    created = driver.SnapextDriver(virtapi.VirtAPI())
    created._host.initialize()
    return created


def add_to(commands: ty.Any) -> None:
    """Add this command to the parser's commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'recover',
        help='clean up after interrupted snapshots while nova-compute is '
             'stopped; run it as the user of nova-compute')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='only list the interrupted snapshots and what they left')
    for name in ('file', 'dir'):
        parser.add_argument(
            f'--config-{name}', action='append', default=[],
            help='Nova\'s configuration; by default that of nova-compute')
    parser.add_argument(
        'instance', nargs='*',
        help='uuid of an instance; by default all instances')
    parser.set_defaults(run=run)
