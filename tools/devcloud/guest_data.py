# SPDX-License-Identifier: Apache-2.0
"""The data of the mixed guest: noise, text, written zeros, and holes.

The same seed always results in the same data.
"""

import pathlib
import random
import string

from devcloud import layout
from devcloud import shell

SEED = 2026

#: Length of one stretch of one kind of data, in bytes. Stretches of noise,
#: text, zeros and holes follow each other in random order.
STRETCH = 16 * layout.MIB

#: Number of stretches of each kind that is written.
NOISE, TEXT, ZEROS, DISCARDED = 56, 72, 16, 8
#: Nothing is written beyond this, in bytes from the partition's start.
USED = (NOISE + TEXT + ZEROS + DISCARDED) * 3 // 2 * STRETCH

#: Here the guest itself writes zeros and noise, in MiB from the partition's
#: start.
GUEST_ZEROS = USED // layout.MIB
GUEST_NOISE = GUEST_ZEROS + 64


def stretches() -> list[tuple[str, int]]:
    """Return kind and offset in the partition of each stretch."""
    kinds = (['noise'] * NOISE + ['text'] * TEXT + ['zeros'] * ZEROS
             + ['discarded'] * DISCARDED)
    kinds += [''] * (USED // STRETCH - len(kinds))
    random.Random(SEED).shuffle(kinds)
    return [(kind, index * STRETCH) for index, kind in enumerate(kinds)
            if kind]


def write_stored(disk: pathlib.Path) -> None:
    """Write noise and text to a raw disk; the rest stays a hole."""
    chance = random.Random(SEED)
    words = [''.join(chance.choices(string.ascii_lowercase,
                                    k=chance.randint(2, 10)))
             for _ in range(2000)]
    page = ' '.join(chance.choices(words, k=2 * STRETCH // 8)).encode()
    with open(disk, 'r+b') as target:
        for kind, offset in stretches():
            if kind in ('noise', 'discarded'):
                content = chance.randbytes(STRETCH)
            elif kind == 'text':
                start = chance.randrange(len(page) - STRETCH // 2)
                content = (page[start:] + page)[:STRETCH]
            else:
                continue
            target.seek(layout.DATA.offset + offset)
            target.write(content)


def write_zeros(qcow2: pathlib.Path) -> None:
    """Write zeros as data to a qcow2 image, and discard some stretches."""
    commands = []
    for kind, offset in stretches():
        extent = f'{layout.DATA.offset + offset} {STRETCH}'
        if kind == 'zeros':
            commands += ['-c', f'write -q -P 0 {extent}']
        elif kind == 'discarded':
            commands += ['-c', f'discard -q {extent}']
    shell.run(['qemu-io', '-f', 'qcow2', '-d', 'unmap', '-t', 'unsafe',
               *commands, qcow2])
