# SPDX-License-Identifier: Apache-2.0
"""Results as a page of the docs."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from devbench import bars
from devbench import contestants
from devbench import terminal

MIB = 1 << 20

#: File beside the page with what no program can write.
PROFILE = 'performance-profile.inc'

HEADER = f'''\
..
    Made from the results of `tools/benchmark` by `tools/benchmark plot`.

===========
Performance
===========

What a snapshot costs, beside Nova's own and beside the limit: the time in
which the same Glance takes a ready-made file of the same image, the same guest
running beside it. *Plain PUT* is python-glanceclient as it is, *best PUT* the
same with pieces of 128 KiB. Nova's own is its own code, reached through the
strategy ``native``; *LibvirtDriver live*, where it took part, is Nova without
anything of ours. All contestants of a case took turns within one run; figures
are medians, with the least and the most in brackets. Only ratios within a run
say something about another machine.

.. include:: {PROFILE}
'''

#: Columns of a case's tables: what it takes, and what it costs.
TIMES = (
    ('Wall, s', lambda case, name: _spread(case, name, 'wall')),
    ('of best PUT', lambda case, name: _ratio(
        case, name, contestants.BEST_PUT)),
    ('of Nova live', lambda case, name: _ratio(
        case, name, contestants.NOVA_LIVE)),
    ('Freeze, s', lambda case, name: _median(case, name, 'freeze', 1, 3)),
    ('Stall, s (before)', lambda case, name: _stall(case, name)),
    ('Guest I/O', lambda case, name: _throughput(case, name)),
)
COSTS = (
    ('Read, sent per byte of data', lambda case, name: _bytes(case, name)),
    ('Host space, MiB (scratch)', lambda case, name: _space(case, name)),
    ('CPU, s/GiB: nova-compute, QEMU, Glance',
     lambda case, name: _cpu(case, name)),
    ('Memory, MiB', lambda case, name: _median(
        case, name, 'memory', MIB, 0)),
)


def merged(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one of several runs on the cloud, each of other cases.

    :returns: the others are as they were
    """
    found: list[dict[str, Any]] = []
    for one in results:
        first = next((earlier for earlier in found
                      if earlier['kind'] == one['kind'] == 'cloud'), None)
        if first is None:
            found.append(dict(one))
        else:
            for what in ('cases', 'failures'):
                first[what] = [*first[what], *one[what]]
    return found


def render(results: list[dict[str, Any]], images: dict[str, str]) -> str:
    """Give results as reStructuredText.

    :param results: of runs on the cloud and of micro-benchmarks
    :param images: of each plot, its file name by its title
    """
    parts = [HEADER]
    for one in results:
        parts.append(_micro(one) if one['kind'] == 'micro'
                     else _cloud(one, images))
    return '\n'.join(parts)


def _cloud(results: dict[str, Any], images: dict[str, str]) -> str:
    lines = [*_heading('Through Nova\'s API', '='), '',
             _host(results['host']), '']
    for title, file in images.items():
        lines += [f'.. figure:: {file}', '', f'   {title}', '']
    for case in results['cases']:
        title = case['title']
        lines += [*_heading(title[0].upper() + title[1:], '-'), '',
                  f'{case["data"] // MIB:,} MiB of data that are not zeros, '
                  f'{case["allocated"] // MIB:,} MiB allocated; rounds: '
                  f'{_rounds(case)}.', '',
                  *_case(case, TIMES), '', *_case(case, COSTS), '',
                  *_bars(case['bars']), '']
        lines += _failures(case.get('failures', ()))
    lines += _failures(results.get('failures', ()))
    lines += [
        'Guest I/O: what the guest still wrote, as a part of what it wrote '
        'before. Read,', 'sent: bytes of the disk that were read, and bytes '
        'sent to Glance, for each byte of', 'data; of Nova\'s own, all that '
        'its processes read. Host space: at its peak, beyond',
        'the scratch file that keeps what the guest writes meanwhile. '
        'Memory: of nova-compute,', 'above idle.', '']
    return '\n'.join(lines)


def _rounds(case: dict[str, Any]) -> int:
    return max(found['wall']['rounds']
               for found in case['summaries'].values() if 'wall' in found)


def _micro(results: dict[str, Any]) -> str:
    lines = [*_heading('Reader and encoder alone', '='), '',
             f'To nowhere, {results["data"] // MIB:,} MiB of data, '
             f'{results["rounds"]} rounds, all from the same qemu-nbd. '
             f'{_host(results["host"])}', '']
    for disk in results['disks']:
        others = list(dict.fromkeys(
            other for quotients in disk['ratios'].values()
            for other in quotients))
        rows = [[name, *(terminal.spread(found.get(quantity), unit, digits)
                         for quantity, unit, digits in (
                             ('wall', 1, 2), ('cpu', 1, 2),
                             ('planning', 1, 2), ('memory', MIB, 1))),
                 *(terminal.number(disk['ratios'][name].get(other))
                   for other in others)]
                for name, found in disk['summaries'].items()]
        lines += [*_heading(f'A disk that is {disk["name"]}', '-'), '',
                  *table(['', 'Wall, s', 'CPU, s', 'Planning, s',
                          'Memory, MiB', *(f'of {one}' for one in others)],
                         rows), '', *_bars(disk['bars']), '']
    return '\n'.join(lines)


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Give a list-table's lines."""
    yield from ('.. list-table::', '   :header-rows: 1', '')
    for row in (header, *rows):
        for number, cell in enumerate(row):
            yield f'   {" " if number else "*"} - {cell}'.rstrip()


def _case(case: dict[str, Any], columns: tuple[Any, ...]
          ) -> Iterator[str]:
    return table(['', *(title for title, _ in columns)], [
        [name, *(cell(case, name) for _, cell in columns)]
        for name in case['summaries']])


def _bars(found: list[dict[str, Any]]) -> Iterator[str]:
    return table(['Bar', 'Value', '', 'Verdict'], [
        [one['what'], terminal.number(one['value']),
         f'at {"least" if one["at_least"] else "most"} {one["bar"]:g}',
         one['verdict']] for one in found])


def _failures(failures: list[str]) -> list[str]:
    if not failures:
        return []
    return ['Failed:', '', *(f'* ``{one.splitlines()[0]}``'
                             for one in failures), '']


def _heading(title: str, line: str) -> list[str]:
    return [title, line * len(title)]


def _host(host: dict[str, Any]) -> str:
    return (f'{host["cores"]} cores ({host["processor"]}), '
            f'{host["memory_mib"] // 1024} GiB; {host["system"]}, QEMU '
            f'{host["qemu"]}, libvirt {host["libvirt"]}; measured '
            f'{host["when"][:10]}.')


def _median(case: dict[str, Any], name: str, quantity: str, unit: float,
            digits: int) -> str:
    value = bars.median(case, name, quantity)
    return '' if value is None else terminal.number(value / unit, digits)


def _spread(case: dict[str, Any], name: str, quantity: str) -> str:
    return terminal.spread(case['summaries'][name].get(quantity))


def _ratio(case: dict[str, Any], name: str, other: str) -> str:
    value = case['ratios'].get(name, {}).get(other)
    return '' if value is None else terminal.number(value)


def _stall(case: dict[str, Any], name: str) -> str:
    stall = _median(case, name, 'stall', 1, 2)
    return stall and f'{stall} ({_median(case, name, "stall_before", 1, 2)})'


def _throughput(case: dict[str, Any], name: str) -> str:
    value = bars.throughput(case, name, 'rewrites')
    if value is None:
        value = bars.throughput(case, name, 'records')
    return '' if value is None else terminal.number(value)


def _bytes(case: dict[str, Any], name: str) -> str:
    read, sent = (_median(case, name, quantity, case['data'], 2)
                  for quantity in ('read', 'sent'))
    return f'{read or "-"}, {sent}'


def _space(case: dict[str, Any], name: str) -> str:
    staged, scratch = (_median(case, name, f'space_{kind}', MIB, 0)
                       for kind in ('staged', 'scratch'))
    return staged and f'{staged} ({scratch})'


def _cpu(case: dict[str, Any], name: str) -> str:
    return ', '.join(
        _median(case, name, f'{who}_cpu_per_gib', 1, 1) or '-'
        for who in ('compute', 'qemu', 'glance'))
