# SPDX-License-Identifier: Apache-2.0
"""What a compiled AppArmor profile allows, without a kernel that has AppArmor.

The parser compiles the rules for paths to a state machine. Here it is run over
a path as the kernel does: security/apparmor/match.c (aa_dfa_match) and
security/apparmor/file.c (the old mapping of the accept table).
"""

import array
import struct
import subprocess
import sys

#: The tag that begins a profile, and the one that begins a state machine: the
#: last one of a profile is that for paths.
PROFILE = b'\x04\x08\x00profile\x00'
MAGIC = b'\x1b\x5e\x78\x3d'     # YYTH_MAGIC
ACCEPT, BASE, CHECK, DEFAULT, CLASSES, NEXT = 1, 2, 3, 4, 5, 8
ALIGNMENT = 8
START = 1               # AA_DFA start state; 0 refuses everything
DIFFERENCE = 0x80000000     # MATCH_FLAG_DIFF_ENCODE
INDEX = 0xffffff

#: Bits of the accept table for files of other users than QEMU's.
OTHERS_SHIFT = 14
LETTERS = {'w': 2, 'r': 4, 'k': 0x20}


def run(command, text):
    """Return all that a program prints."""
    return subprocess.run(command, input=text, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True,
                          check=True).stdout


class Policy:
    """The compiled rules for paths of one profile."""

    def __init__(self, profile):
        """Compile the text of a profile, with the includes of this host."""
        binary = subprocess.run(
            ('apparmor_parser', '--skip-kernel-load', '--skip-cache',
             '--stdout', '--quiet', '--Include=/etc/apparmor.d'),
            input=profile.encode(), capture_output=True, check=True).stdout
        # A profile within the profile comes after it.
        _header, own, *_children = binary.split(PROFILE)
        self._tables = self._read(own, own.rindex(MAGIC))

    @staticmethod
    def _read(binary, start):
        """Return the tables of a state machine by their number."""
        header, size = struct.unpack_from('>4xII', binary, start)
        position, tables = start + header, {}
        while position < start + size:
            number, width, high, low = struct.unpack_from(
                '>HHII', binary, position)
            position += 12
            count = low * (high or 1)
            table = array.array({1: 'B', 2: 'H', 4: 'I'}[width])
            table.frombytes(binary[position:position + count * width])
            if sys.byteorder == 'little':
                table.byteswap()
            tables[number] = table
            position += count * width
            position += -(position - start) % ALIGNMENT
        return tables

    def allowed(self, path):
        """Return the permissions for a file, such as ``rwk``."""
        tables, state = self._tables, START
        classes = tables.get(CLASSES)
        for byte in path.encode():
            character = classes[byte] if classes else byte
            while True:
                base = tables[BASE][state]
                position = (base & INDEX) + character
                if tables[CHECK][position] == state:
                    state = tables[NEXT][position]
                    break
                state = tables[DEFAULT][state]
                if not base & DIFFERENCE:
                    break
        accept = tables[ACCEPT][state] >> OTHERS_SHIFT
        return ''.join(letter for letter in 'rwk'
                       if accept & LETTERS[letter])
