# SPDX-License-Identifier: Apache-2.0
"""Nova's driver in a process of its own, for the commands that need it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
import contextlib
import os
import shlex
import sys
import traceback
import typing as ty

# Nova, and each module that imports it, is imported when a command runs: the
# command check has to work where Nova can't be imported.

# Seconds that Nova's conductor has to answer a question about an instance.
RPC_TIMEOUT = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for Nova's configuration."""
    for name in ('file', 'dir'):
        parser.add_argument(
            f'--config-{name}', action='append', default=[],
            help='Nova\'s configuration; by default that of nova-compute')


def configure(options: argparse.Namespace) -> None:
    """Prepare this process as nova-compute does, with its configuration."""
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


def run(command: Callable[[ty.Any], bool],
        lock: contextlib.AbstractContextManager[None]) -> int:
    """Run a command with a driver.

    :param command: returns whether nothing is left
    :param lock: keeps nova-compute from running beside it
    :returns: the exit code, if the lock is taken: 1. Otherwise the process
        ends, with 0 if nothing is left, else 1
    """
    from nova_snapext import exception
    try:
        with lock:
            try:
                end(int(not command(create_driver())))
            except Exception as error:
                traceback.print_exc()
                print(f'The command stopped: {error}. Check that libvirtd '
                      f'runs, and that you run this command as the user of '
                      f'nova-compute.', file=sys.stderr)
                end(1)
    except (exception.JournalLocked, exception.JournalFailed) as error:
        print(error, file=sys.stderr)
        return 1


def create_driver() -> ty.Any:
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


def end(code: int) -> ty.NoReturn:
    """End the process: Nova's threads for libvirt's events never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
