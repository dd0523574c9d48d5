# SPDX-License-Identifier: Apache-2.0
"""What came of faults, as the docs show it.

Each is written to the file that SNAPEXT_FAULTS_RESULTS names, as a line of
JSON. As a program this module renders such a file for the docs::

    python -m tests.faults.table RESULTS > doc/source/admin/faults.rst
"""

import json
import os
import sys


def record(result):
    """Write down what came of a fault.

    :param result: the `fault`, the `point` at which it came, the `strategy`
        and `guest` of the snapshot; and what the `failure` was, if it was one
    """
    path = os.environ.get('SNAPEXT_FAULTS_RESULTS')
    if path:
        with open(path, 'a') as results:
            results.write(f'{json.dumps(result)}\n')


HEADER = '''\
..
    Made from the results of `tools/test faults` by tests/faults/table.py.

======
Faults
======

What was done to snapshots on a real cloud, at which point of them, and what
came of it. ``healed`` means that all of this was found true afterwards, as
soon as nova-compute was running again:

* the guest runs, if it did before, and writes on; none of the records that it
  ever acknowledged is missing from its disk;
* what it runs by and what it is started by are as before: its definition,
  live and persistent, and its disk's backing chain;
* there is no job, no overlay, no snapshot in its disk, no file in its
  directory or among the snapshots, no process and no entry of the journal;
* its filesystems are not frozen, and the server has no task;
* the image is gone; or it is active, and holds the disk whole;
* the next snapshot by the same strategy succeeds, its image holds every
  record, and nothing is left of it either.

Where a series was run to its end, the guest was then stopped, started and
rebooted, and found all of its records each time. What is not in a column was
not run.
'''


def render(results):
    """Give the results as reStructuredText.

    :param results: as they were recorded, in order; the last one counts where
        there are several of one fault
    """
    faults = {}
    for one in results:
        cells = faults.setdefault(one['fault'], {})
        cells[one['strategy'], one['guest'], one['point']] = one.get('failure')
    outcomes = [failure for cells in faults.values()
                for failure in cells.values()]
    lines = [HEADER, f'{len(outcomes)} faults were tried, and '
             f'{outcomes.count(None)} of them healed.']
    for fault, cells in faults.items():
        lines += ['', fault, '=' * len(fault), '', *_table(cells)]
    return '\n'.join(lines) + '\n'


def _table(cells):
    """Give the table of one fault: points by strategies."""
    columns = list(dict.fromkeys(cell[:2] for cell in cells))
    notes = []
    lines = ['.. list-table::', '   :header-rows: 1', '', '   * - When']
    lines += [f'     - ``{strategy}``, {guest}' for strategy, guest in columns]
    for point in _points(cells, columns):
        lines.append(f'   * - {point}')
        lines += [f'     - {_entry(cells, (*column, point), notes)}'.rstrip()
                  for column in columns]
    if notes:
        lines += ['', *(f'{number}. {note}'
                        for number, note in enumerate(notes, start=1))]
    return lines


def _points(cells, columns):
    """List the points of all columns in one order that suits all."""
    merged = []
    for column in columns:
        place = 0
        for *others, point in cells:
            if tuple(others) != column:
                continue
            if point in merged:
                place = merged.index(point)
            else:
                merged.insert(place, point)
            place += 1
    return merged


def _entry(cells, key, notes):
    if key not in cells:
        return ''
    failure = cells[key]
    if failure is None:
        return 'healed'
    note = f'``{" ".join(failure.replace("`", "").split())}``'
    if note not in notes:
        notes.append(note)
    return f'**not healed** ({notes.index(note) + 1})'


if __name__ == '__main__':
    with open(sys.argv[1]) as lines:
        print(render(map(json.loads, lines)), end='')
