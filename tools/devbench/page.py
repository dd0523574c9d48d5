# SPDX-License-Identifier: Apache-2.0
"""Write results as two pages of the docs.

One page is for people: what was measured, and how much better it is. The other
one, the appendix, has every case and every figure.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import csv
import io
from typing import Any

from devbench import bars
from devbench import contestants
from devbench import terminal

MIB = 1 << 20

#: Text that no program can write: on the page, and in the appendix.
WHY = 'performance-why.inc'
PROFILE = 'performance-profile.inc'

#: The appendix, without its suffix.
APPENDIX = 'performance-appendix'

GENERATED = '''\
..
    Generated from the results of ``tools/benchmark`` by
    ``tools/benchmark plot``.

'''

HEADER = f'''\
{GENERATED}\
===========
Performance
===========

What was measured
=================

The time and the resources of a snapshot, compared with Nova's own snapshot and
with the limit. The limit is the *best PUT*: the time in which the same Glance
stores a finished file of the same image. All contestants of a case took turns
in one run, beside the same guest. Figures are medians. Compare ratios, not
seconds, with another machine.

How much better
===============

'''

APPENDIX_HEADER = f'''\
{GENERATED}\
=======================
Performance: every case
=======================

:doc:`performance` is the summary. *Plain PUT* is an upload by
python-glanceclient without changes; *best PUT* is the same in chunks of 128
KiB. *Nova* is Nova's own snapshot, taken through the strategy ``native``.
*LibvirtDriver live*, where it took part, is Nova without nova-snapext. Figures
are medians, with minimum and maximum in brackets.

Guest I/O
    Data that the guest wrote during the snapshot, relative to before.

Other guests
    CPU time that other guests got during the snapshot, relative to before.

Read, sent
    Bytes read from the disk and bytes sent to Glance, for each byte of data.
    For Nova's own snapshot, all bytes that its processes read.

Host space
    Highest use, without the scratch file. The scratch file, in brackets, keeps
    the data that the guest overwrites during the snapshot.

Memory
    Memory of nova-compute above idle.
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
    ('Other guests', lambda case, name: _neighbours(case, name)),
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
    """Merge several runs on the cloud, each with other cases, into one.

    :returns: the merged run, and all other results as they were
    """
    found: list[dict[str, Any]] = []
    for one in results:
        first = next((earlier for earlier in found
                      if earlier['kind'] == one['kind'] == 'cloud'), None)
        if first is None:
            found.append(dict(one))
        else:
            for key in ('cases', 'failures'):
                first[key] = [*first[key], *one[key]]
    return found


def render(results: list[dict[str, Any]], images: dict[str, str]) -> str:
    """Return the page for people, as reStructuredText.

    :param results: of runs on the cloud and of micro-benchmarks
    :param images: file names of its plots, by title
    """
    lines = [HEADER.rstrip('\n'), '']
    for one in results:
        if one['kind'] == 'cloud':
            lines += [*_overview(one), '', *_figures(images),
                      _host(one['host']), '']
        if one['kind'] == 'several':
            lines += [*_several(one), '']
    lines += [*_targets(results), '', f'.. include:: {WHY}', '',
              '.. toctree::', '   :maxdepth: 1', '', f'   {APPENDIX}']
    return '\n'.join(lines) + '\n'


def render_appendix(results: list[dict[str, Any]], images: dict[str, str]
                    ) -> str:
    """Return the page with all cases, as reStructuredText.

    :param results: of runs on the cloud and of micro-benchmarks
    :param images: file names of its plots, by title
    """
    parts = [APPENDIX_HEADER]
    for one in results:
        parts.append(SECTIONS[one['kind']](one, images))
    return '\n'.join([*parts, f'.. include:: {PROFILE}']) + '\n'


def _overview(results: dict[str, Any]) -> list[str]:
    """Return the lines of a table with a row for each case."""
    rows = []
    for case in results['cases']:
        names = [contestants.BACKUP, contestants.COMPRESSED]
        if case['name'] == 'busy':
            # What the docs recommend there.
            names.append('external')
        rows += [_overview_row(case, name) for name in names
                 if name in case['summaries']]
    return table(
        ['Root disk', 'Best PUT, s', 'nova-snapext, s', 'Nova, s',
         'of best PUT', 'of Nova', 'Longest stall, s', "Nova's stall, s",
         'Host space, MiB', "Nova's space, MiB"], rows)


def _overview_row(case: dict[str, Any], name: str) -> list[str]:
    title = case['title'][0].upper() + case['title'][1:]
    if name == contestants.COMPRESSED:
        title += ', compressed'
    elif name != contestants.BACKUP:
        title += f', by {name}'
    nova = next((other for other in (contestants.NOVA_LIVE,
                                     contestants.NOVA_COLD)
                 if bars.median(case, other, 'wall') is not None), '')
    cold = ' (cold)' if nova == contestants.NOVA_COLD else ''
    return [title, _median(case, contestants.BEST_PUT, 'wall', 1, 1),
            _median(case, name, 'wall', 1, 1),
            _median(case, nova, 'wall', 1, 1) + cold,
            _ratio(case, name, contestants.BEST_PUT),
            _ratio(case, name, nova),
            _median(case, name, 'stall', 1, 2),
            _median(case, nova, 'stall', 1, 2),
            _all_space(case, name), _all_space(case, nova)]


def _all_space(case: dict[str, Any], name: str) -> str:
    values = [bars.median(case, name, f'space_{kind}')
              for kind in ('staged', 'disk', 'scratch')]
    if values[0] is None:
        return ''
    return terminal.number(sum(value or 0 for value in values) / MIB, 0)


def _targets(results: list[dict[str, Any]]) -> Iterator[str]:
    """Return how many targets were reached, and those that were not."""
    found = [(_place(group), one) for result in results
             for group in (*result.get('cases', ()),
                           *result.get('disks', ()),
                           *([result] if result['kind'] == 'several' else ()))
             for one in group['bars'] if one['value'] is not None]
    missed = [(where, one) for where, one in found
              if one['verdict'] == 'missed']
    yield (f'{len(found) - len(missed)} of {len(found)} targets were '
           f'reached{". These were missed:" if missed else "."}')
    if missed:
        yield ''
        yield from table(['Case', 'Target', '', 'Value'], [
            [where, one['what'], _bound(one), _missed_value(one)]
            for where, one in missed])


def _place(group: dict[str, Any]) -> str:
    title = group.get('title') or f'a disk that is {group["name"]}'
    return title[0].upper() + title[1:]


def _missed_value(one: dict[str, Any]) -> str:
    value, bar = (terminal.number(one[name]) for name in ('value', 'bar'))
    if value != bar:
        return value
    return f'just {"below" if one["at_least"] else "above"} {one["bar"]:g}'


def _figures(images: dict[str, str]) -> list[str]:
    lines = []
    for title, file in images.items():
        lines += [f'.. figure:: {file}', '', f'   {title}', '']
    return lines


def _cloud(results: dict[str, Any], images: dict[str, str]) -> str:
    lines = [*_heading('Through Nova\'s API', '='), '',
             _host(results['host']), '', *_figures(images)]
    for case in results['cases']:
        lines += [*_heading(_place(case), '-'), '',
                  f'{case["data"] // MIB:,} MiB of data other than zeros, '
                  f'{case["allocated"] // MIB:,} MiB allocated; rounds: '
                  f'{_rounds(case)}.', '',
                  *_case(case, TIMES), '', *_case(case, COSTS), '',
                  *_bars(case['bars']), '']
        lines += _failures(case.get('failures', ()))
    lines += _failures(results.get('failures', ()))
    return '\n'.join(lines)


def _several(results: dict[str, Any]) -> list[str]:
    """Return the lines of the section about several snapshots at once."""
    return [
        *_heading('Several snapshots at once', '='), '',
        f'{results["title"]}; rounds: {results["rounds"]}. '
        f'{_host(results["host"])}', '',
        *table(['', 'At once', 'Wall, s', 'of as many one by one',
                'CPU of nova-compute, s/GiB', 'Memory of each, MiB'], [
            [row['contestant'], str(row['number']),
             terminal.spread(row['wall']), terminal.number(row['of_one']),
             terminal.number(row['cpu_per_gib']['median'], 1),
             terminal.number(row['memory']['max'] / MIB, 0)]
            for row in results['rows']])]


def _rounds(case: dict[str, Any]) -> int:
    return max(found['wall']['rounds']
               for found in case['summaries'].values() if 'wall' in found)


def _micro(results: dict[str, Any]) -> str:
    lines = [*_heading('Reader and encoder alone', '='), '',
             f'The output is discarded. {results["data"] // MIB:,} MiB of '
             f'data, {results["rounds"]} rounds, all from the same qemu-nbd. '
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


#: The appendix's section about each kind of results.
SECTIONS = {
    'cloud': _cloud,
    'micro': lambda results, _images: _micro(results),
    'several': lambda results, _images: '\n'.join(
        [*_several(results), '', *_bars(results['bars']), '']),
}


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a csv-table: one line for each row."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([header, *rows])
    return ['.. csv-table::', '   :header-rows: 1', '',
            *(f'   {row}' for row in text.getvalue().splitlines())]


def _case(case: dict[str, Any], columns: tuple[Any, ...]
          ) -> list[str]:
    return table(['', *(title for title, _ in columns)], [
        [name, *(cell(case, name) for _, cell in columns)]
        for name in case['summaries']])


def _bars(found: list[dict[str, Any]]) -> list[str]:
    return table(['Target', 'Value', '', 'Verdict'], [
        [one['what'], terminal.number(one['value']), _bound(one),
         one['verdict']] for one in found])


def _bound(one: dict[str, Any]) -> str:
    return f'at {"least" if one["at_least"] else "most"} {one["bar"]:g}'


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


def _neighbours(case: dict[str, Any], name: str) -> str:
    value = bars.throughput(case, name, 'neighbours')
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
