# SPDX-License-Identifier: Apache-2.0
"""Record the results of faults, and write them for the docs.

Each result is a line of JSON in the file that SNAPEXT_FAULTS_RESULTS names.
As a program this module writes a page with counts, and a table of all faults
for Sphinx to include, from such a file::

    python -m tests.faults.table RESULTS doc/source/admin
"""

import collections
import csv
import json
import os
import pathlib
import sys

PAGE, TABLE = 'faults.rst', 'faults.csv'


def record(result):
    """Add the result of a fault to the file.

    :param result: the `fault`, the `point` at which it came, the `strategy`
        and `guest` of the snapshot; and the `failure`, if there was one
    """
    path = os.environ.get('SNAPEXT_FAULTS_RESULTS')
    if path:
        with open(path, 'a') as results:
            results.write(f'{json.dumps(result)}\n')


HEADER = '''\
..
    Generated from the results of ``tools/test faults`` by
    tests/faults/table.py.

======
Faults
======

Snapshots were interrupted on a real cloud, at every point where something can
be left behind:

* nova-compute was killed (SIGKILL), also a second time during recovery
* the host lost power: nova-compute, libvirtd and QEMU were killed at once
* a function raised an error, during the snapshot or during the release
* libvirtd stopped answering

A fault counts as recovered only if all of this is true, as soon as
nova-compute runs again:

* The guest runs, if it ran before, and continues to write. Its disk has every
  record that it has ever acknowledged.
* Its live and its persistent definition are as before, and so is the backing
  chain of its disk.
* No job, no overlay, no snapshot in its disk, no file in its directory or in
  the work directory, no process and no entry in the journal is left.
* Its filesystems are not frozen, and the server has no task.
* The image is deleted; or it is active and has the whole disk.
* The next snapshot with the same strategy succeeds, its image has every
  record, and nothing is left of it either.

If a series of faults ran to its end, its guest was then stopped, started and
rebooted, and found all of its records each time.

'''

ALL = f'''
Every fault
===========

An empty cell was not tried.

.. csv-table::
   :file: {TABLE}
   :header-rows: 1
'''


class Results:
    """Results of faults, without repetitions.

    :ivar kinds: of each kind of fault, its failures (None: recovered) by
        column and point, in order
    :ivar columns: strategies and guests, as in the header of a table
    """

    def __init__(self, results):
        """Sort results.

        :param results: in the order of the record; the last one counts if
            there are several of one fault
        """
        self.kinds = {}
        for one in results:
            column = f'{one["strategy"]}, {one["guest"]}'
            cells = self.kinds.setdefault(one['fault'], {})
            cells[column, one['point']] = one.get('failure')
        self.columns = list(dict.fromkeys(
            column for cells in self.kinds.values() for column, _ in cells))

    def render(self):
        """Return the page with the counts, as reStructuredText."""
        outcomes = [failure for cells in self.kinds.values()
                    for failure in cells.values()]
        lines = [
            f'{len(outcomes)} faults were tried, and '
            f'{outcomes.count(None)} were recovered:', '',
            '.. csv-table::', '   :header-rows: 1', '',
            f'   Fault,{",".join(map(_quoted, self.columns))},Total']
        for kind, cells in self.kinds.items():
            row = [_quoted(kind), *(
                _count(cells, lambda one, column=column: one == column)
                for column in self.columns), _count(cells)]
            lines.append(f'   {",".join(row)}')
        return HEADER + '\n'.join(lines) + '\n' + ALL

    def rows(self):
        """Yield the rows of the table of all faults, its header first."""
        yield ['Fault', 'When', *self.columns]
        for kind, cells in self.kinds.items():
            for point in self._points(cells):
                yield [kind, point, *(
                    _entry(cells, (column, point))
                    for column in self.columns)]

    def _points(self, cells):
        """Return the points of all columns in one order that fits all."""
        merged = []
        for column in self.columns:
            place = 0
            for other, point in cells:
                if other != column:
                    continue
                if point in merged:
                    place = merged.index(point)
                else:
                    merged.insert(place, point)
                place += 1
        return merged


def _quoted(cell):
    return f'"{cell}"'


def _count(cells, chosen=lambda column: True):
    """Return how many faults were recovered, and of how many if not all."""
    counts = collections.Counter(
        failure is None for (column, _), failure in cells.items()
        if chosen(column))
    if not counts:
        return ''
    return (f'{counts[True]} of {counts.total()}' if counts[False]
            else str(counts[True]))


def _entry(cells, key):
    if key not in cells:
        return ''
    failure = cells[key]
    if failure is None:
        return 'recovered'
    text = ' '.join(failure.replace('`', '').split())
    return f'**not recovered**: ``{text}``'


def main(source, directory):
    """Write the page and the table.

    :param source: file of results
    :param directory: directory of the docs
    """
    with open(source) as lines:
        results = Results(map(json.loads, lines))
    directory = pathlib.Path(directory)
    (directory / PAGE).write_text(results.render())
    with open(directory / TABLE, 'w', newline='') as table:
        csv.writer(table, lineterminator='\n').writerows(results.rows())


if __name__ == '__main__':
    main(*sys.argv[1:])
