# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/cloud."""

import argparse
import os
import shutil
import subprocess
import sys

from devcloud import cloud
from devcloud import compute
from devcloud import demo
from devcloud import errors
from devcloud import state as cloud_state
from devcloud import venv

DESCRIPTION = """\
Run a small real OpenStack on this machine. All services listen on 127.0.0.1.
All state is in /var/lib/snapext-cloud (or in $SNAPEXT_CLOUD_DIR).
"""


#: Commands that change the cloud: only one of them may run at a time.
CHANGING = ('up', 'down', 'configure', 'restart')


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog='cloud', description=DESCRIPTION)
    commands = top.add_subparsers(dest='command', required=True)
    up = commands.add_parser(
        'up', help='install and start everything missing')
    up.add_argument('--ceph', action='store_true',
                    help='add a Ceph cluster, which stays until `down '
                         '--purge`')
    up.add_argument('--horizon', action='store_true',
                    help='add Horizon and a browser to test it with; Horizon '
                         'stays until `down --purge`')
    up.add_argument('--nova', type=int, choices=venv.releases(),
                    help='install the release of OpenStack with this Nova: '
                         '31 is 2025.1; by default what is installed stays, '
                         'and a new cloud has the newest')
    down = commands.add_parser('down', help='stop all services and guests')
    down.add_argument('--purge', action='store_true',
                      help='remove the state directory too')
    commands.add_parser('status', help='show which services and guests run')
    logs = commands.add_parser(
        'logs', help="print a service's log, or the names of all logs")
    logs.add_argument('service', nargs='?',
                      help='as in the output of `status`')
    logs.add_argument('-f', '--follow', action='store_true',
                      help='print new lines as they come')
    env = commands.add_parser(
        'env', help='print variables for a shell: eval "$(tools/cloud env)"')
    env.add_argument('user', nargs='?', choices=['admin', 'demo'],
                     default='admin')
    configure = commands.add_parser(
        'configure', help='change options of nova-compute, or of Glance, and '
                          'restart it')
    configure.add_argument('settings', nargs='*',
                           metavar='[glance:]SECTION.OPTION=VALUE')
    configure.add_argument('--reset', action='store_true',
                           help='undo all earlier changes first')
    run = commands.add_parser(
        'demo', help='start the cloud, take a snapshot of a guest while it '
                     'writes, and check the image')
    run.add_argument('--keep', action='store_true',
                     help='do not delete the guests and the image')
    restart = commands.add_parser('restart', help='restart one service')
    restart.add_argument('service', help='as in the output of `status`')
    return top


def main(argv: list[str]) -> int:
    """Run one command.

    :param argv: its arguments
    :returns: the exit code
    """
    arguments = parser().parse_args(argv)
    if os.geteuid() != 0:
        return _as_root(argv)
    try:
        if arguments.command in CHANGING:
            with cloud.lock(cloud_state.State.default()):
                return _dispatch(arguments)
        return _dispatch(arguments)
    except errors.CloudError as exc:
        print(f'cloud: {exc}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # The reader of our output has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _as_root(argv: list[str]) -> int:
    if shutil.which('sudo') is None:
        print('cloud: run this as root (sudo is not installed)',
              file=sys.stderr)
        return 1
    directory = os.environ.get('SNAPEXT_CLOUD_DIR')
    variables = [f'SNAPEXT_CLOUD_DIR={directory}'] if directory else []
    return subprocess.run(
        ['sudo', *variables, sys.executable, os.path.abspath(sys.argv[0]),
         *argv]).returncode


def _dispatch(arguments: argparse.Namespace) -> int:
    state = cloud_state.State.default()
    match arguments.command:
        case 'up':
            if arguments.nova:
                venv.choose_release(state, arguments.nova)
            cloud.Up(state, arguments.ceph, arguments.horizon).run()
        case 'down':
            cloud.down(state, arguments.purge)
        case 'status':
            return 0 if cloud.status(state) else 1
        case 'logs':
            return cloud.show_log(state, arguments.service,
                                  arguments.follow)
        case 'env':
            print(cloud.environment(state, arguments.user), end='')
        case 'configure':
            compute.configure(state, arguments.settings, arguments.reset)
        case 'demo':
            with cloud.lock(state):
                cloud.Up(state).run()
            return 0 if demo.Demo(state, arguments.keep).run() else 1
        case 'restart':
            cloud.restart(state, arguments.service)
    return 0
