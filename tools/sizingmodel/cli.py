# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/sizing."""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import json
import math
import sys
from typing import Any, NoReturn

from sizingmodel import model as modelling
from sizingmodel import simulation

DESCRIPTION = """\
Compute what the snapshots of many guests need: time, space on the hosts, and
what Glance has to take. It prints formulas for equal guests that are asked for
at once, and a simulation of the whole night. Nothing has to be installed.

All guests are alike. Sizes are in GiB (1024 MiB) and rates in MiB/s, unless an
option says otherwise. Defaults were measured on a machine with two cores and
without KVM, which ran Glance, too: replace them by your own figures.
doc/source/admin/sizing.rst explains how to get them, and what is left out.
"""

EPILOG = """\
examples:
  One host with 20 guests; all are asked for at once:
    tools/sizing --guests 20 --data 10 --disk 40 --write-rate 1
  1000 hosts, in a night of six hours; Glance takes 4000 MiB/s:
    tools/sizing --hosts 1000 --guests 20 --data 10 --disk 40 --write-rate 1 \\
        --window 6 --glance-rate 4000
"""

#: The simulation takes about a minute for so many.
MOST_SNAPSHOTS = 200_000

#: A host with more snapshots at once than this does not exist.
MOST_CONCURRENT = 1000

GIB = 1024

#: Options whose default depends on the image; options where 0 means no limit;
#: options that the model takes as they are.
OF_IMAGE = ('sent', 'encode_rate', 'memory', 'cpu')
SHARED = ('host_read_rate', 'host_network', 'host_cores', 'glance_rate')
AS_GIVEN = ('hosts', 'guests', 'write_rate', 'write_size', 'seed',
            'concurrent', 'fixed', 'upload_rate', 'merge_rate', 'glance_cpu')


class _Parser(argparse.ArgumentParser):

    def error(self, message: str) -> NoReturn:
        """Print one sentence instead of the usage."""
        self.exit(2, f'{self.prog}: {message} (see --help)\n')


def _number(least: float, most: float = 1e9) -> Callable[[str], float]:
    """Return a type for argparse: a number with limits."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f'{text!r} is not a number from {least:.10g} to {most:.10g}')
        return value

    return parse


def _integer(least: int, most: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number with limits."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f'{text!r} is not a whole number from {least} to {most}')
        return value

    return parse


_POSITIVE, _AT_LEAST_0 = _number(0.001), _number(0)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog='sizing', description=DESCRIPTION, epilog=EPILOG,
                  allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument('--json', action='store_true',
                     help='print JSON: MiB, seconds, MiB/s')
    _add_guests(top.add_argument_group('guests and hosts'))
    _add_schedule(top.add_argument_group('when'))
    _add_snapshot(top.add_argument_group('one snapshot'))
    _add_shared(top.add_argument_group(
        'what snapshots share (0: no limit)'))
    return top


def _add_guests(group: Any) -> None:
    group.add_argument('--hosts', type=_integer(1, MOST_SNAPSHOTS), default=1,
                       help='number of compute hosts (%(default)s)')
    group.add_argument('--guests', type=_integer(1, MOST_SNAPSHOTS), default=1,
                       help='guests on each host; each has one snapshot '
                            '(%(default)s)')
    group.add_argument('--data', type=_POSITIVE, required=True, metavar='GIB',
                       help='what one snapshot reads: allocated data of the '
                            'root disk and its backing files; for a block '
                            'device, all of the device')
    group.add_argument('--data-spread', type=_number(0, 100), default=0,
                       metavar='PERCENT',
                       help='data of a guest is up to so much less or more, '
                            'at random; the most must fit on --disk '
                            '(%(default)s)')
    group.add_argument('--disk', type=_POSITIVE, required=True, metavar='GIB',
                       help='virtual size of the root disk: no scratch file '
                            'and no overlay gets larger')
    group.add_argument('--write-rate', type=_AT_LEAST_0, required=True,
                       metavar='MIB/S',
                       help='what one guest writes to its root disk')
    group.add_argument('--write-size', type=_POSITIVE, metavar='KIB',
                       default=modelling.CLUSTER_KIB,
                       help='size of one of its writes, in KiB; each smaller '
                            'than a cluster of 64 KiB takes a whole one '
                            '(%(default)s)')
    group.add_argument('--write-area', type=_POSITIVE, metavar='GIB',
                       help='part of the root disk that it writes to, if that '
                            'is known (the whole disk)')


def _add_schedule(group: Any) -> None:
    group.add_argument('--window', type=_AT_LEAST_0, default=0,
                       metavar='HOURS',
                       help='time in which the snapshots are asked for; 0: '
                            'all at once (%(default)s)')
    group.add_argument('--arrivals', choices=('random', 'even'),
                       default='random',
                       help='how they are spread over that time '
                            '(%(default)s)')
    group.add_argument('--seed', type=_integer(0, 1 << 32), default=1,
                       help='of all that is random: the same number gives the '
                            'same night (%(default)s)')
    group.add_argument('--concurrent', type=_integer(1, MOST_CONCURRENT),
                       default=modelling.CONCURRENT,
                       help='most snapshots of a host at once: with native '
                            'threads the higher one of [DEFAULT]'
                            'max_concurrent_snapshots and '
                            'max_concurrent_builds; under eventlet '
                            'max_concurrent_snapshots, and 10 at most; with '
                            'both, max_concurrent_disk_ops at most '
                            '(%(default)s)')


def _add_snapshot(group: Any) -> None:
    kinds = modelling.KINDS
    group.add_argument('--image', choices=tuple(kinds), default='plain',
                       help='plain; zeroes: zeros are left out '
                            '([snapext]detect_zeroes), which needs --sent; or '
                            'compressed. Sets the defaults of --sent, '
                            '--encode-rate, --memory and --cpu (%(default)s)')
    group.add_argument('--merge-rate', type=_POSITIVE, metavar='MIB/S',
                       help='the strategy is external, and a host merges so '
                            'much of one overlay; without it, backup: '
                            'nothing is merged')
    for field, kind, unit, text in (
            ('sent', _number(1e-6, 2), 'BYTES',
             'bytes that are sent for each byte of data'),
            ('encode_rate', _POSITIVE, 'MIB/S',
             'data that one snapshot reads and encodes'),
            ('memory', _AT_LEAST_0, 'MIB',
             'of one snapshot, in nova-compute'),
            ('cpu', _POSITIVE, 'SECONDS',
             'CPU of nova-compute and QEMU for a GiB of data')):
        values = {image: getattr(kinds[image], field) for image in kinds}
        defaults = ', '.join(
            f'{image}: {"required" if value is None else f"{value:g}"}'
            for image, value in values.items())
        group.add_argument(f'--{field.replace("_", "-")}', type=kind,
                           metavar=unit, help=f'{text} ({defaults})')
    group.add_argument('--upload-rate', type=_POSITIVE, metavar='MIB/S',
                       default=modelling.UPLOAD_RATE,
                       help='what Glance takes of one upload (%(default)s)')
    group.add_argument('--fixed', type=_AT_LEAST_0, metavar='SECONDS',
                       default=modelling.FIXED,
                       help='time that does not depend on the data '
                            '(%(default)s)')
    group.add_argument('--glance-cpu', type=_AT_LEAST_0, metavar='SECONDS',
                       default=modelling.GLANCE_CPU,
                       help='CPU of Glance for a GiB that is sent '
                            '(%(default)s)')


def _add_shared(group: Any) -> None:
    for name, unit, text in (
            ('--host-read-rate', 'MIB/S',
             'data that the snapshots of a host read together: what its '
             'storage gives, or [snapext]read_rate_limit_mbps'),
            ('--host-network', 'MIB/S',
             'what the snapshots of a host send together'),
            ('--host-cores', 'CPUS',
             'CPUs of a host that its snapshots may use'),
            ('--glance-rate', 'MIB/S',
             'what Glance takes of all uploads together')):
        group.add_argument(name, type=_AT_LEAST_0, default=0, metavar=unit,
                           help=f'{text} (%(default)s)')


def model(arguments: argparse.Namespace) -> modelling.Model:
    """Return what is to be modelled.

    :raises ValueError: the arguments do not fit together
    """
    if arguments.hosts * arguments.guests > MOST_SNAPSHOTS:
        raise ValueError(
            f'--hosts times --guests is {arguments.hosts * arguments.guests}, '
            f'more than the {MOST_SNAPSHOTS} that can be simulated')
    if arguments.data > arguments.disk:
        raise ValueError(
            f'--data {arguments.data:g} is more than --disk '
            f'{arguments.disk:g}')
    most = arguments.data * (1 + arguments.data_spread / 100)
    # 10 GiB and 10 % are a little above 11 GiB.
    if most > arguments.disk and not math.isclose(most, arguments.disk):
        raise ValueError(
            f'--data {arguments.data:g} with --data-spread '
            f'{arguments.data_spread:g} is up to {most:.10g}, more than '
            f'--disk {arguments.disk:.10g}')
    given = vars(arguments)
    kind = modelling.KINDS[arguments.image]
    if arguments.sent is None and kind.sent is None:
        raise ValueError(
            f'--image {arguments.image} needs --sent: the part of --data that '
            'is not zeros, such as 0.034')
    fields: dict[str, Any] = {
        **{name: given[name] for name in AS_GIVEN},
        **{name: given[name] or math.inf for name in SHARED},
        **{name: getattr(kind, name) if given[name] is None else given[name]
           for name in OF_IMAGE}}
    made = modelling.Model(
        **fields, data=arguments.data * GIB, disk=arguments.disk * GIB,
        write_area=(arguments.write_area or math.inf) * GIB,
        spread=arguments.data_spread / 100, window=arguments.window * 3600,
        is_even=arguments.arrivals == 'even')
    if made.merge_rate is not None and made.merge_rate <= made.growth:
        raise ValueError(
            f'--merge-rate has to be above {made.growth:g} MiB/s. The '
            f'overlay grows so fast, and the merge would never end')
    return made


def formula(one: modelling.Model) -> dict[str, float]:
    """Return what the formulas give: seconds, MiB, MiB/s and CPUs."""
    return {
        'one_snapshot_seconds': one.snapshot_seconds(1, 1),
        'loaded_snapshot_seconds': one.snapshot_seconds(
            one.at_once, one.hosts),
        'night_seconds': one.night_seconds,
        'host_space_mib': one.host_space,
        'host_memory_mib': one.at_once * one.memory,
        'cpu_seconds_per_gib': one.cpu,
        'host_cpu_seconds': one.guests * one.data / GIB * one.cpu,
        'glance_demand_mib_per_second': one.glance_demand,
        'sent_mib': one.sent_in_all}


def simulate(one: modelling.Model) -> dict[str, Any]:
    """Return what the simulation gives: seconds, MiB and MiB/s."""
    run = simulation.Simulation(one)
    run.run()
    snapshots = run.snapshots
    seconds = (max(snapshot.ended_at for snapshot in snapshots)
               - min(snapshot.asked_at for snapshot in snapshots))
    return {
        'wait_seconds': _percentiles([
            snapshot.began_at - snapshot.asked_at for snapshot in snapshots]),
        'snapshot_seconds': _percentiles([
            snapshot.ended_at - snapshot.began_at for snapshot in snapshots]),
        'total_seconds': _percentiles([
            snapshot.ended_at - snapshot.asked_at for snapshot in snapshots]),
        'night_seconds': seconds,
        'host_running': max(host.most_running for host in run.hosts),
        'host_space_mib': max(host.space for host in run.hosts),
        'glance_uploads': run.peak_uploads,
        'glance_peak_mib_per_second': run.peak_rate,
        'glance_mean_mib_per_second': run.received / seconds,
        'glance_peak_cpus': run.peak_rate / GIB * one.glance_cpu,
        'sent_mib': run.received}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {'p50': simulation.percentile(values, 0.5),
            'p95': simulation.percentile(values, 0.95), 'max': max(values)}


def _lines(one: modelling.Model, computed: dict[str, float],
           simulated: dict[str, Any]) -> Iterator[str]:
    """Return the lines of the text for people."""
    yield 'By formula: all guests equal, all asked for at once'
    yield from _rows([
        ('One snapshot alone', _time(computed['one_snapshot_seconds'])),
        (f'One of {one.at_once} on each host',
         _time(computed['loaded_snapshot_seconds'])),
        ('All snapshots', _time(computed['night_seconds'])),
        ('Scratch or overlays of a host, peak',
         _size(computed['host_space_mib'])),
        ('Memory of a host', _size(computed['host_memory_mib'])),
        ('CPU of a host, per GiB of data',
         f'{computed["cpu_seconds_per_gib"]:.1f} s'),
        ('CPU of a host, all snapshots', _time(computed['host_cpu_seconds'])),
        ('Hosts could send to Glance',
         _rate(computed['glance_demand_mib_per_second'])),
        ('Glance has to store', _size(computed['sent_mib']))])
    yield ''
    when = (f'asked for in {_time(one.window)}' if one.window
            else 'asked for at once')
    yield (f'By simulation: {one.hosts * one.guests} snapshots, {when}, seed '
           f'{one.seed}')
    yield f'  {"":36}{"p50":>12}{"p95":>12}{"max":>12}'
    for name, title in (('wait_seconds', 'Wait before the disk is frozen'),
                        ('snapshot_seconds', 'Snapshot'),
                        ('total_seconds', 'Both')):
        yield f'  {title:36}' + ''.join(
            f'{_time(value):>12}' for value in simulated[name].values())
    yield from _rows([
        ('First request to last end', _time(simulated['night_seconds'])),
        ('Snapshots of a host, peak', str(simulated['host_running'])),
        ('Scratch or overlays of a host, peak',
         _size(simulated['host_space_mib'])),
        ('Uploads to Glance, peak', str(simulated['glance_uploads'])),
        ('Glance receives, peak',
         _rate(simulated['glance_peak_mib_per_second'])),
        ('CPUs of Glance for that', f'{simulated["glance_peak_cpus"]:.1f}'),
        ('Glance receives, mean',
         _rate(simulated['glance_mean_mib_per_second']))])


def _rows(rows: list[tuple[str, str]]) -> Iterator[str]:
    for title, value in rows:
        yield f'  {title:36}{value:>12}'


def _time(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 100:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}'


def _size(mib: float) -> str:
    """Return a size for people."""
    for limit, unit in ((GIB, 'MiB'), (GIB ** 2, 'GiB')):
        if mib < limit:
            return f'{mib * GIB / limit:.{0 if unit == "MiB" else 1}f} {unit}'
    return f'{mib / GIB ** 2:.1f} TiB'


def _rate(rate: float) -> str:
    return f'{rate:.0f} MiB/s'


def main(argv: list[str]) -> int:
    """Run the command.

    :param argv: its arguments
    :returns: the exit code
    """
    top = parser()
    arguments = top.parse_args(argv)
    try:
        one = model(arguments)
    except ValueError as error:
        top.error(str(error))
    computed, simulated = formula(one), simulate(one)
    if arguments.json:
        # JSON has no infinity: a limit that there is not is null.
        assumed = {name: None if value == math.inf else value
                   for name, value in vars(one).items()}
        print(json.dumps({'assumed': assumed, 'formula': computed,
                          'simulation': simulated}, indent=2))
    else:
        sys.stdout.writelines(
            f'{line}\n' for line in _lines(one, computed, simulated))
    return 0
