# SPDX-License-Identifier: Apache-2.0
"""Results as plots, always the same bytes for the same results.

The only part that needs matplotlib.
"""

import pathlib
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

from devbench import bars
from devbench import contestants

MIB = 1 << 20

#: Plots are as wide as a page, in inches.
WIDTH = 8

STYLE = {
    'svg.hashsalt': 'nova-snapext', 'svg.fonttype': 'none',
    'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.grid': True, 'grid.alpha': 0.3, 'axes.axisbelow': True,
}

OURS, NOVA, LIMIT = '#2b6cb0', '#b7791f', '#718096'


def plots(results: dict[str, Any], place: pathlib.Path) -> dict[str, str]:
    """Write the plots.

    :param results: of a run on the cloud
    :param place: directory for them
    :returns: of each plot, its file name by its title
    """
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, title, draw in (
                ('wall', 'Wall time from the request until the image is '
                 'active: medians, least and most', _wall),
                ('guest', "The guest meanwhile: longest stall, and before; "
                 'throughput as a part of that before', _guest),
                ('bytes', 'Bytes read and sent for each byte of data',
                 _bytes),
                ('space', 'Host space at its peak: staged, and what the '
                 'guest writes meanwhile', _space)):
            file = f'performance-{name}.svg'
            _save(draw(results['cases']), place / file)
            drawn[title] = file
    return drawn


def _save(figure: Any, path: pathlib.Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None, 'Creator': None})
    pyplot.close(figure)
    # matplotlib ends some lines with blanks.
    path.write_text('\n'.join(
        line.rstrip() for line in path.read_text().splitlines()) + '\n')


def _rows(cases: list[dict[str, Any]], columns: int = 1
          ) -> tuple[Any, list[list[Any]]]:
    """A figure with a row for each case, as high as it has contestants."""
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


def _known(case: dict[str, Any], quantity: str) -> list[str]:
    return [name for name, found in case['summaries'].items()
            if quantity in found]


def _wall(cases: list[dict[str, Any]]) -> Any:
    figure, axes = _rows(cases)
    for case, (axis,) in zip(cases, axes, strict=True):
        names = _known(case, 'wall')
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
        names = _known(case, 'stall')
        _bars(stall, case, names, [
            bars.median(case, name, 'stall') for name in names])
        stall.plot([bars.median(case, name, 'stall_before')
                    for name in names], range(len(names)), 'k|')
        what = ('rewrites' if any(_known(case, 'rewrites')) else 'records')
        _bars(rate, case, names, [
            bars.throughput(case, name, what) for name in names])
        rate.set_yticks(range(len(names)), [])
        rate.axvline(1, color='k', linewidth=1)
        rate.set_title('')
    axes[-1][0].set_xlabel('longest stall, seconds; marks: before')
    axes[-1][1].set_xlabel('guest I/O, as a part of that before')
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
