# SPDX-License-Identifier: Apache-2.0
"""The data of the mixed guest: noise, text, written zeros, and holes.

Always the same for the same seed.
"""

import pathlib
import random
import string

from devcloud import layout
from devcloud import shell

SEED = 2026

#: Length of one stretch of one kind of data, in bytes. Stretches of noise,
#: text, zeros and nothing at all follow each other in an order of chance.
STRETCH = 16 * layout.MIB

#: How many stretches there are of each kind that is stored.
NOISE, TEXT, ZEROS, DISCARDED = 56, 72, 16, 8
#: From here on, in bytes from the partition's start, nothing is stored.
USED = (NOISE + TEXT + ZEROS + DISCARDED) * 3 // 2 * STRETCH

#: Where the first guest writes zeros and noise of its own, in MiB from the
#: partition's start.
GUEST_ZEROS = USED // layout.MIB
GUEST_NOISE = GUEST_ZEROS + 64


def stretches() -> list[tuple[str, int]]:
    """Kind and offset, from the partition's start, of every stretch."""
    kinds = (['noise'] * NOISE + ['text'] * TEXT + ['zeros'] * ZEROS
             + ['discarded'] * DISCARDED)
    kinds += [''] * (USED // STRETCH - len(kinds))
    random.Random(SEED).shuffle(kinds)
    return [(kind, index * STRETCH) for index, kind in enumerate(kinds)
            if kind]


def write_stored(disk: pathlib.Path) -> None:
    """Write noise and text into a raw disk; the rest stays a hole."""
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
    """Store zeros as data in a qcow2 image, and discard some stretches."""
    commands = []
    for kind, offset in stretches():
        place = f'{layout.DATA.offset + offset} {STRETCH}'
        if kind == 'zeros':
            commands += ['-c', f'write -q -P 0 {place}']
        elif kind == 'discarded':
            commands += ['-c', f'discard -q {place}']
    shell.run(['qemu-io', '-f', 'qcow2', '-d', 'unmap', '-t', 'unsafe',
               *commands, qcow2])
