# SPDX-License-Identifier: Apache-2.0
"""Results as tables of text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right.

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
    """Give a median, and the least and the most in brackets."""
    if summary is None:
        return '-'
    median, least, most = (number(summary[name] / unit, digits)
                           for name in ('median', 'min', 'max'))
    return f'{median} ({least}-{most})'


def micro(results: dict) -> str:
    """The results of the micro-benchmarks."""
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
                spread(found.get('memory'), 1 << 20, 1),
                *(number(disk['ratios'][name].get(one)) for one in others)])
        parts.append(table(rows))
    return '\n\n'.join(parts)
