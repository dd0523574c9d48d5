# SPDX-License-Identifier: Apache-2.0
"""Draw results as small PNG files.

The same results give the same bytes, with one version of matplotlib. No other
module needs matplotlib.
"""

import io
import pathlib
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from PIL import Image

from devbench import bars
from devbench import contestants

MIB = 1 << 20

#: Plots are as wide as a page, in inches.
WIDTH = 8

#: Dots per inch: text of 9 points is easy to read, and a file is small.
RESOLUTION = 100

#: Colours in a file. The plots have five, and their shades at the edges of
#: the text; more colours double the size and look the same.
COLOURS = 24

STYLE = {
    'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.grid': True, 'grid.alpha': 0.3, 'axes.axisbelow': True,
}

OURS, NOVA, NOVA_COLD, LIMIT = '#2b6cb0', '#b7791f', '#e0b36a', '#718096'

#: File name of the plot on the page for people; the others are in the
#: appendix.
OVERVIEW = 'performance-overview.png'

#: Where its axis ends, as a multiple of the best PUT: one case is many times
#: as slow, and would make the differences of all others too small to see.
OVERVIEW_LIMIT = 5


def overview(results: dict[str, Any], directory: pathlib.Path
             ) -> dict[str, str]:
    """Write the plot that compares all cases.

    :param results: of a run on the cloud
    :returns: file names by title
    """
    with mpl.rc_context(STYLE):
        _save(_overview(results['cases']), directory / OVERVIEW)
    return {'Time from the request until the image is active, as a multiple '
            "of the limit: Glance's time for a finished file": OVERVIEW}


def plots(results: dict[str, Any], directory: pathlib.Path
          ) -> dict[str, str]:
    """Write the plots that show each case.

    :param results: of a run on the cloud
    :returns: file names by title
    """
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, title, draw in (
                ('wall', 'Time from the request until the image is active: '
                 'median, minimum and maximum', _wall),
                ('guest', 'The guest during the snapshot: longest stall, and '
                 'longest stall before; throughput, relative to that before',
                 _guest),
                ('bytes', 'Bytes read and sent for each byte of data',
                 _bytes),
                ('space', 'Highest use of host space: staged files, growth '
                 'of the disk, and scratch file', _space)):
            file = f'performance-{name}.png'
            _save(draw(results['cases']), directory / file)
            drawn[title] = file
    return drawn


def _save(figure: Any, path: pathlib.Path) -> None:
    figure.tight_layout()
    drawn = io.BytesIO()
    # Without the version of matplotlib, which would change the bytes.
    figure.savefig(drawn, dpi=RESOLUTION, metadata={'Software': None})
    pyplot.close(figure)
    with Image.open(drawn) as image:
        image.convert('RGB').quantize(COLOURS).save(
            path, 'PNG', optimize=True)


def _overview(cases: list[dict[str, Any]]) -> Any:
    """Draw one group of bars for each case."""
    figure, axis = pyplot.subplots(figsize=(WIDTH, 0.42 * len(cases) + 0.9))
    for number, (name, label, colour) in enumerate((
            (contestants.BACKUP, 'nova-snapext, backup', OURS),
            (contestants.NOVA_LIVE, 'Nova, live', NOVA),
            (contestants.NOVA_COLD, 'Nova, cold', NOVA_COLD))):
        rows = [row + 0.26 * (number - 1) for row in range(len(cases))]
        values = [case['ratios'].get(name, {}).get(contestants.BEST_PUT) or 0
                  for case in cases]
        axis.barh(rows, values, height=0.24, color=colour, label=label)
        for row, value in zip(rows, values, strict=True):
            if value > OVERVIEW_LIMIT:
                axis.text(OVERVIEW_LIMIT, row, f'{value:.1f} ', ha='right',
                          va='center', fontsize=8)
    axis.axvline(1, color='k', linewidth=1, linestyle='--')
    axis.set_xlim(0, OVERVIEW_LIMIT)
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.set_yticks(range(len(cases)), [
        case['title'][0].upper() + case['title'][1:] for case in cases])
    axis.set_xlabel('multiple of the best PUT (dashed)')
    axis.legend(loc='best', frameon=False)
    return figure


def _rows(cases: list[dict[str, Any]], columns: int = 1
          ) -> tuple[Any, list[list[Any]]]:
    """Return a figure with one row for each case, and its axes.

    A row is as high as its case has contestants.
    """
    counts = [max(len(case['summaries']), 3) for case in cases]
    figure, axes = pyplot.subplots(
        len(cases), columns, squeeze=False,
        figsize=(WIDTH, sum(0.22 * count + 0.75 for count in counts)),
        height_ratios=counts)
    return figure, [list(row) for row in axes]


def _bars(axis: Any, case: dict[str, Any], names: list[str],
          values: list[float | None], colour: Any = None,
          **style: Any) -> None:
    axis.barh(range(len(names)), [value or 0 for value in values],
              color=colour or [_colour(name) for name in names],
              tick_label=names, **style)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_title(case['title'], loc='left', fontsize=9)


def _colour(name: str) -> str:
    if name.endswith('PUT'):
        return LIMIT
    ours = not name.startswith(('Nova', contestants.LIBVIRT_DRIVER))
    return OURS if ours else NOVA


def _measured(case: dict[str, Any], quantity: str) -> list[str]:
    """Return the contestants whose quantity was measured."""
    return [name for name, found in case['summaries'].items()
            if quantity in found]


def _wall(cases: list[dict[str, Any]]) -> Any:
    figure, axes = _rows(cases)
    for case, (axis,) in zip(cases, axes, strict=True):
        names = _measured(case, 'wall')
        found = [case['summaries'][name]['wall'] for name in names]
        medians = [one['median'] for one in found]
        _bars(axis, case, names, medians, xerr=[
            [one['median'] - one['min'] for one in found],
            [one['max'] - one['median'] for one in found]],
            error_kw={'elinewidth': 1, 'capsize': 2})
        best = bars.median(case, contestants.BEST_PUT, 'wall')
        if best:
            axis.axvline(best, color=LIMIT, linewidth=1, linestyle='--')
    axes[-1][0].set_xlabel('seconds; dashed: the best PUT')
    return figure


def _guest(cases: list[dict[str, Any]]) -> Any:
    figure, axes = _rows(cases, 2)
    for case, (stall, rate) in zip(cases, axes, strict=True):
        names = _measured(case, 'stall')
        _bars(stall, case, names, [
            bars.median(case, name, 'stall') for name in names])
        stall.plot([bars.median(case, name, 'stall_before')
                    for name in names], range(len(names)), 'k|')
        what = 'rewrites' if _measured(case, 'rewrites') else 'records'
        _bars(rate, case, names, [
            bars.throughput(case, name, what) for name in names])
        rate.set_yticks(range(len(names)), [])
        rate.axvline(1, color='k', linewidth=1)
        rate.set_title('')
    axes[-1][0].set_xlabel('longest stall, seconds; marks: before')
    axes[-1][1].set_xlabel('guest I/O, relative to that before')
    return figure


def _bytes(cases: list[dict[str, Any]]) -> Any:
    figure, axes = _rows(cases, 2)
    for case, row in zip(cases, axes, strict=True):
        names = list(case['summaries'])
        for axis, quantity in zip(row, ('read', 'sent'), strict=True):
            _bars(axis, case, names, [
                (bars.median(case, name, quantity) or 0) / case['data']
                for name in names])
            axis.axvline(1, color='k', linewidth=1)
        row[1].set_yticks(range(len(names)), [])
        row[1].set_title('')
    axes[-1][0].set_xlabel('read, per byte of data')
    axes[-1][1].set_xlabel('sent, per byte of data')
    return figure


def _space(cases: list[dict[str, Any]]) -> Any:
    figure, axes = _rows(cases)
    for case, (axis,) in zip(cases, axes, strict=True):
        names = [name for name in case['summaries']
                 if not name.endswith('PUT')]
        left = [0.0] * len(names)
        for kind, shade in (('staged', 1), ('disk', 0.6), ('scratch', 0.3)):
            widths = [(bars.median(case, name, f'space_{kind}') or 0) / MIB
                      for name in names]
            _bars(axis, case, names, widths, left=left, alpha=shade)
            left = [before + width for before, width
                    in zip(left, widths, strict=True)]
    axes[-1][0].set_xlabel(
        'MiB: staged (dark), growth of the disk, scratch (light)')
    return figure
