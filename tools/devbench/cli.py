# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/benchmark."""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

from devcloud import cloud
from devcloud import errors
from devcloud import layout
from devcloud import shell
from devcloud import state as cloud_state

from devbench import bars
from devbench import cases
from devbench import contestants
from devbench import micro
from devbench import page
from devbench import runner
from devbench import several
from devbench import terminal

DESCRIPTION = """\
Measure snapshots, and compare them with Nova's own and with the time in which
Glance stores the finished image. `run` needs the cloud of tools/cloud. `micro`
measures only the reader and the encoders, and needs no cloud.
"""

RESULTS, MICRO_RESULTS = 'benchmark.json', 'micro.json'
SEVERAL_RESULTS = 'several.json'
PAGE = 'performance.rst'


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog='benchmark', description=DESCRIPTION)
    commands = top.add_subparsers(dest='command', required=True)
    run = commands.add_parser('run', help='measure snapshots, on the cloud')
    _add_common(run, rounds=8)
    run.add_argument('--case', action='append', dest='cases',
                     choices=list(cases.BY_NAME), metavar='CASE',
                     help=f'measure only this case (may be repeated): '
                          f'{", ".join(cases.BY_NAME)}')
    run.add_argument('--contestant', action='append', dest='contestants',
                     choices=list(contestants.BY_NAME), metavar='CONTESTANT',
                     help=f'measure only this contestant (may be repeated): '
                          f'{"; ".join(contestants.BY_NAME)}')
    run.add_argument('--baseline', type=float, default=10, metavar='SECONDS',
                     help='observe the guest for this time before each turn '
                          '(%(default)s)')
    run.add_argument('--divide', type=int, default=1, metavar='N',
                     help="use only an Nth of each case's data")
    run.add_argument('--set', action='append', default=[], dest='settings',
                     metavar='SECTION.OPTION=VALUE',
                     help='add a setting of nova-compute for all contestants')
    alone = commands.add_parser(
        'micro', help='measure only the reader and the encoders')
    _add_common(alone, rounds=8)
    alone.add_argument('--size', type=int, default=1024, metavar='MIB',
                       help='data on each disk (%(default)s)')
    alone.add_argument('--virtual', type=int, default=1024, metavar='GIB',
                       help='size of the sparse disk (%(default)s)')
    several_ = commands.add_parser(
        'several', help='measure several snapshots at once, on the cloud')
    _add_common(several_, rounds=3)
    draw = commands.add_parser(
        'plot', help='make plots and pages of the docs from results')
    draw.add_argument('results', nargs='+', type=pathlib.Path,
                      help='results of `run`, `several` and `micro`')
    draw.add_argument('directory', type=pathlib.Path,
                      help='for example doc/source/admin')
    return top


def _add_common(command: argparse.ArgumentParser, rounds: int) -> None:
    command.add_argument('--rounds', type=int, default=rounds,
                         help='turns of each contestant (%(default)s)')
    command.add_argument('--output', type=pathlib.Path, metavar='DIRECTORY',
                         default=pathlib.Path('.tox/benchmark-results'),
                         help='directory for the results (%(default)s)')
    command.add_argument('--smoke', action='store_true',
                         help='check that it works: tiny data and one round')


def main(argv: list[str]) -> int:
    """Run one command.

    :param argv: its arguments
    :returns: the exit code
    """
    arguments = parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except errors.CloudError as exc:
        print(f'benchmark: {exc}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _micro(arguments: argparse.Namespace) -> None:
    micro.check_environment()
    size, virtual, rounds = (arguments.size * layout.MIB,
                             arguments.virtual * micro.GIB, arguments.rounds)
    if arguments.smoke:
        size, virtual, rounds = 16 * layout.MIB, 16 * micro.GIB, 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    directory = pathlib.Path(tempfile.mkdtemp(
        prefix='micro-', dir=arguments.output.absolute()))
    results = micro.run(directory, size, virtual, rounds, say)
    for disk in results['disks']:
        disk['bars'] = bars.micro_bars(disk)
    write(arguments.output / MICRO_RESULTS, results)
    say(f'results are in {arguments.output / MICRO_RESULTS}')
    print(terminal.micro(results))


def _run(arguments: argparse.Namespace) -> None:
    state = _cloud(arguments)
    path = arguments.output / RESULTS

    def save(results: dict[str, Any]) -> None:
        write(path, results)

    with cloud.lock(state):
        if arguments.smoke:
            runner.smoke(state, say, save)
        else:
            chosen = [cases.BY_NAME[name].scaled(arguments.divide)
                      for name in arguments.cases or cases.BY_NAME]
            runner.Run(
                state, arguments.contestants or contestants.USUAL,
                arguments.rounds, arguments.baseline, arguments.settings,
                say, save).run(chosen)
    say(f'results are in {path}')


def _several(arguments: argparse.Namespace) -> None:
    state = _cloud(arguments)
    path = arguments.output / SEVERAL_RESULTS
    with cloud.lock(state):
        if arguments.smoke:
            run = several.Run(state, 1, say, (1, 2), several.CASE.scaled(32))
        else:
            run = several.Run(state, arguments.rounds, say)
        write(path, run.run())
    say(f'results are in {path}')


def _cloud(arguments: argparse.Namespace) -> cloud_state.State:
    """Return the cloud, and create the directory for results.

    :raises: CloudError if it can't be measured
    """
    if os.geteuid() != 0:
        raise errors.CloudError('run this as root: it reads the counters of '
                                "other users' processes")
    arguments.output.mkdir(parents=True, exist_ok=True)
    return runner.running_cloud()


def _plot(arguments: argparse.Namespace) -> None:
    try:
        from devbench import plot
    except ImportError as exc:
        raise errors.CloudError(
            f'{sys.executable} has no matplotlib: run this with the Python '
            f"of tox's environment `benchmark`") from exc
    results = page.merged(
        json.loads(path.read_text()) for path in arguments.results)
    overview: dict[str, str] = {}
    images: dict[str, str] = {}
    for one in results:
        if one['kind'] == 'cloud' and one['cases']:
            overview = plot.overview(one, arguments.directory)
            images = plot.plots(one, arguments.directory)
    for name, text in (
            (PAGE, page.render(results, overview)),
            (f'{page.APPENDIX}.rst', page.render_appendix(results, images))):
        (arguments.directory / name).write_text(text)
        say(f'wrote {arguments.directory / name}')


def say(text: str) -> None:
    print(f'- {text}', flush=True)


def write(path: pathlib.Path, results: dict[str, object]) -> None:
    shell.write(path, json.dumps(results, indent=1) + '\n')


COMMANDS = {'run': _run, 'several': _several, 'micro': _micro,
            'plot': _plot}
