# SPDX-License-Identifier: Apache-2.0
"""Make the list of known defects in the documentation from the table.

Run it after a change of the table::

    python -m tests.known_defects
"""

import pathlib
import textwrap

from nova_snapext.hypervisor import known_defects

PAGE = (pathlib.Path(__file__).parents[1] /
        'doc/source/admin/known-defects.inc')


def paragraph(text, first='', following=''):
    return textwrap.fill(
        text, width=79, initial_indent=first, subsequent_indent=following,
        break_long_words=False, break_on_hyphens=False)


def literal(text):
    """Return a text of Python in which reStructuredText sees no markup."""
    return text.replace('_', r'\_').replace('*', r'\*')


def section(defect):
    yield defect.name
    yield '-' * len(defect.name)
    yield ''
    fields = {
        'Guests': defect.guests,
        'Happens': 'every time' if defect.certain else 'sometimes (a race)',
        'Consequence': defect.consequence,
        'QEMU': str(defect.qemu),
        'libvirt': str(defect.libvirt),
        'Refused': defect.refused_strategies(),
        'Sources': '; '.join(defect.sources),
    }
    for name, text in fields.items():
        yield paragraph(literal(text), f':{name}: ', '    ')
    yield ''


def text():
    """Return the documentation of all known defects."""
    lines = ['.. Made by "python -m tests.known_defects".', '']
    for defect in known_defects.DEFECTS:
        lines += section(defect)
    return '\n'.join(lines)


if __name__ == '__main__':
    PAGE.write_text(text())
