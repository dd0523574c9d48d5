# SPDX-License-Identifier: Apache-2.0
"""Ratios, and bars: the targets of snapshots."""

from typing import Any

from devbench import contestants
from devbench import figures
from devbench import micro

MIB = 1 << 20

#: The wall times of all contestants are compared with those of these.
COMPARED = (contestants.BEST_PUT, contestants.PLAIN_PUT,
            contestants.NOVA_LIVE, contestants.NOVA_COLD,
            contestants.NOVA_OFF)

#: A guest's stall may be longer than before by this, in seconds. It covers the
#: time between two polls, and other activity of the machine.
NOISE = 0.25

#: A bar: its name, the value, the bar, and whether more is better.
Bar = tuple[str, float | None, float, bool]


def ratios(case: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the median wall times as multiples of those in COMPARED."""
    def wall(name: str) -> float | None:
        return median(case, name, 'wall')
    return {name: {other: quotient for other in COMPARED
                   if (quotient := figures.ratio(wall(name), wall(other)))}
            for name in case['summaries']}


def median(case: dict[str, Any], contestant: str, quantity: str,
           which: str = 'median') -> float | None:
    return case['summaries'].get(contestant, {}).get(quantity, {}).get(which)


def bars(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare a case with its bars."""
    found = [*_wall(case), *_bytes(case), *_guest(case),
             *_memory(case, contestants.BACKUP)]
    if case['name'] == 'system':
        found += [*_compressed(case), *_memory(case, contestants.COMPRESSED)]
    return judged(found)


def micro_bars(disk: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the results of a micro-benchmark with their bars."""
    found: list[Bar] = []
    for name in ('qcow2', 'qcow2, zeros found'):
        quotients = disk['ratios'].get(name, {})
        if micro.CONVERT in quotients:
            found.append((
                f'{name}: times the speed of qemu-img convert to a file',
                figures.ratio(1, quotients[micro.CONVERT]), 2, True))
        found += [
            (f'{name}: wall / nbdcopy to null',
             quotients.get(micro.NBDCOPY), 1.3, False),
            (f'{name}: memory, MiB', figures.ratio(
                median(disk, name, 'memory', 'max'), MIB), 64, False)]
        if disk['name'] == 'sparse':
            found.append((f'{name}: planning, s',
                          median(disk, name, 'planning'), 10, False))
    return judged(found)


def judged(found: list[Bar]) -> list[dict[str, Any]]:
    """Return bars as results have them, with their verdicts."""
    return [{'what': what, 'value': value, 'bar': bar, 'at_least': more,
             'verdict': figures.verdict(value, bar, more)}
            for what, value, bar, more in found]


def _wall(case: dict[str, Any]) -> list[Bar]:
    quotients = case['ratios'].get(contestants.BACKUP)
    if quotients is None:
        return []
    found: list[Bar] = []
    if case['name'] == 'incompressible':
        found += [(f'backup: wall / {other}', quotients.get(other), bar,
                   False) for other, bar in (
                       (contestants.BEST_PUT, 1.10),
                       (contestants.PLAIN_PUT, 0.85),
                       (contestants.NOVA_LIVE, 0.5))]
    if case['name'] == 'busy':
        found.append((f'backup: wall / {contestants.BEST_PUT}',
                      quotients.get(contestants.BEST_PUT), 1.15, False))
    found += [(f'backup: wall / {other}, below', quotients.get(other), 1,
               False) for other in (contestants.NOVA_LIVE,
                                    contestants.NOVA_COLD)]
    return found


def _compressed(case: dict[str, Any]) -> list[Bar]:
    name = contestants.COMPRESSED
    quotients = case['ratios'].get(name, {})
    return [(f'{name}: wall / {other}', quotients.get(other), bar, False)
            for other, bar in ((contestants.PLAIN_PUT, 0.6),
                               (contestants.BEST_PUT, 1))]


def _bytes(case: dict[str, Any]) -> list[Bar]:
    name = contestants.BACKUP
    return [
        ('backup: host space beyond scratch, MiB', figures.ratio(
            median(case, name, 'space_staged', 'max'), MIB), 0, False),
        ('backup: read / allocated', figures.ratio(
            median(case, name, 'read'), case['allocated']), 1.02, False),
        ('backup: sent / data that is not zero', figures.ratio(
            median(case, name, 'sent'), case['data']), 1.01, False)]


def _guest(case: dict[str, Any]) -> list[Bar]:
    name = contestants.BACKUP
    stall, before = (median(case, name, one)
                     for one in ('stall', 'stall_before'))
    found: list[Bar] = [
        ('backup: longest stall beyond the baseline\'s, s',
         None if stall is None or before is None else stall - before,
         NOISE, False)]
    for what in ('records', 'rewrites', 'neighbours'):
        ours, nova = (throughput(case, one, what)
                      for one in (name, contestants.NOVA_LIVE))
        if ours is not None and nova is not None:
            found.append((f'backup: guest {what} / Nova live\'s',
                          figures.ratio(ours, nova), 1, True))
    return found


def throughput(case: dict[str, Any], contestant: str, what: str
               ) -> float | None:
    """Return a guest's throughput during the snapshot, relative to before.

    It is the same guest before each turn: all contestants are compared with
    the same throughput, as a few seconds before one turn are too short.

    :param what: records or rewrites; neighbours: CPU time of other guests
    """
    before = figures.summary(
        median(case, one, f'{what}_before') for one in case['summaries'])
    return figures.ratio(median(case, contestant, what),
                         before and before['median'])


def _memory(case: dict[str, Any], name: str) -> list[Bar]:
    return [(f'{name}: memory of nova-compute above idle, MiB', figures.ratio(
        median(case, name, 'memory', 'max'), MIB), 64, False)]
