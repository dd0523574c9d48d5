# SPDX-License-Identifier: Apache-2.0
"""Record a run of tests in the table of the documentation.

    stestr last | python -m tests.runs functional
    stestr last | python -m tests.runs e2e --python CLOUD/venv/bin/python

The versions are those of this machine, and of the packages of an interpreter.
A later run of the same tests on the same versions replaces the earlier one.
"""

import argparse
import csv
import datetime
import pathlib
import re
import sys

from devbench import host
from devcloud import errors

TABLE = pathlib.Path(__file__).parents[1] / 'doc/source/admin/tested.csv'

HEADER = ('Tests', 'Nova', 'Python', 'libvirt', 'QEMU', 'Ceph', 'Passed',
          'Failed', 'Skipped', 'Date')

# Columns that tell one run from another.
KEY = slice(HEADER.index('Passed'))

COUNTS = ('Passed', 'Failed', 'Skipped')


def counts(text: str) -> list[str]:
    """Return the numbers in the summary of stestr, as COUNTS.

    :raises: CloudError if there is no summary
    """
    found = []
    for name in COUNTS:
        numbers = re.findall(rf'(?m)^ - {name}: (\d+)$', text)
        if not numbers:
            raise errors.CloudError(
                f'the summary of stestr has no line " - {name}: NUMBER"')
        found.append(str(sum(map(int, numbers))))
    return found


def versions(python: str) -> list[str]:
    """Return the versions, without the last parts that mean nothing here.

    :param python: path of the interpreter that has Nova
    """
    nova = host.packages(python, ('nova',))['nova']
    return [nova, _short(host.version(python, '--version')),
            _short(host.version('libvirtd', '--version')),
            _short(host.version('qemu-img', '--version')),
            _short(host.version('ceph', '--version'))]


def _short(version: str | None) -> str:
    """Return a version without its third part; nothing if there is none."""
    return '.'.join(version.split('.')[:2]) if version else ''


def merged(rows: list[list[str]], row: list[str]) -> list[list[str]]:
    """Return the rows with another one, which may replace one of them."""
    return sorted([*(one for one in rows if one[KEY] != row[KEY]), row])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m tests.runs', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tests', help='their name in tox')
    parser.add_argument('--python', default=sys.executable, metavar='PATH',
                        help='the interpreter that has Nova')
    parser.add_argument('--without-ceph', action='store_true',
                        help='Ceph is installed, and was not used')
    arguments = parser.parse_args()
    found = versions(arguments.python)
    if arguments.without_ceph:
        found[-1] = ''
    row = [arguments.tests, *found, *counts(sys.stdin.read()),
           datetime.datetime.now(datetime.UTC).date().isoformat()]
    write(merged(read(), row))


def read() -> list[list[str]]:
    """Return the rows of the table, without its header."""
    try:
        with open(TABLE, newline='') as file:
            return list(csv.reader(file))[1:]
    except FileNotFoundError:
        return []


def write(rows: list[list[str]]) -> None:
    with open(TABLE, 'w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([HEADER, *rows])


if __name__ == '__main__':
    main()
