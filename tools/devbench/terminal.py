# SPDX-License-Identifier: Apache-2.0
"""Format results as tables of text."""

from collections.abc import Sequence

from devbench import bars

MIB = 1 << 20


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is aligned left, the others right.

    :param rows: the first one is the header
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join([row[0].ljust(widths[0]), *(
        cell.rjust(width) for cell, width in zip(
            row[1:], widths[1:], strict=True))]).rstrip() for row in rows]
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])


def number(value: float | None, digits: int = 2) -> str:
    return '-' if value is None else f'{value:,.{digits}f}'


def spread(summary: dict[str, float] | None, unit: float = 1,
           digits: int = 2) -> str:
    """Return a median, and the minimum and maximum in brackets."""
    if summary is None:
        return '-'
    median, least, most = (number(summary[name] / unit, digits)
                           for name in ('median', 'min', 'max'))
    return f'{median} ({least}-{most})'


def micro(results: dict) -> str:
    """Return the results of the micro-benchmarks."""
    parts = []
    for disk in results['disks']:
        others = list(dict.fromkeys(
            other for quotients in disk['ratios'].values()
            for other in quotients))
        rows = [[disk['name'], 'wall s', 'CPU s', 'server CPU s',
                 'planning s', 'memory MiB', *(f'x {one}' for one in others)]]
        for name, found in disk['summaries'].items():
            rows.append([
                name, spread(found['wall']), spread(found['cpu']),
                spread(found['server_cpu']), spread(found.get('planning')),
                spread(found.get('memory'), MIB, 1),
                *(number(disk['ratios'][name].get(one)) for one in others)])
        parts += [table(rows), verdicts(disk['bars'])]
    return '\n\n'.join(parts)


#: Columns of a case's table: title, quantity, unit, digits.
COLUMNS = (
    ('wall s', 'wall', 1, 2),
    ('freeze s', 'freeze', 1, 3),
    ('frozen after s', 'until_frozen', 1, 2),
    ('stall s', 'stall', 1, 2),
    ('stall before', 'stall_before', 1, 2),
    ('sent MiB', 'sent', MIB, 0),
    ('read MiB', 'read', MIB, 0),
    ('staged MiB', 'space_staged', MIB, 1),
    ('scratch MiB', 'space_scratch', MIB, 1),
    ('disk grows MiB', 'space_disk', MIB, 1),
    ('nova CPU s/GiB', 'compute_cpu_per_gib', 1, 2),
    ('QEMU CPU s/GiB', 'qemu_cpu_per_gib', 1, 2),
    ('Glance CPU s/GiB', 'glance_cpu_per_gib', 1, 2),
    ('Glance faults k', 'glance_faults', 1000, 0),
    ('memory MiB', 'memory', MIB, 1),
)


def case(found: dict) -> str:
    """Return a case's results: figures, ratios, bars."""
    rows = [[found['name'], *(column[0] for column in COLUMNS),
             'guest I/O']]
    for name, quantities in found['summaries'].items():
        row = [name, spread(quantities.get('wall'))]
        for _, quantity, unit, digits in COLUMNS[1:]:
            value = quantities.get(quantity, {}).get('median')
            row.append('-' if value is None
                       else number(value / unit, digits))
        io = bars.throughput(found, name, 'rewrites')
        if io is None:
            io = bars.throughput(found, name, 'records')
        rows.append([*row, number(io)])
    parts = [f'{found["title"]}: {found["data"] >> 20} MiB of data, '
             f'{found["allocated"] >> 20} MiB allocated', table(rows)]
    rows = [['wall time as a multiple of', *bars.COMPARED]]
    for name, quotients in found['ratios'].items():
        rows.append([name, *(number(quotients.get(other))
                             for other in bars.COMPARED)])
    return '\n\n'.join([*parts, table(rows), verdicts(found['bars'])])


def verdicts(found: list[dict]) -> str:
    """Return a table of bars, reached and missed."""
    rows = [['bar', 'value', 'bar', '']]
    for one in found:
        sign = '>=' if one['at_least'] else '<='
        rows.append([one['what'], number(one['value']),
                     f'{sign} {one["bar"]:g}', one['verdict']])
    return table(rows)
