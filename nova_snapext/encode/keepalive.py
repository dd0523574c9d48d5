# SPDX-License-Identifier: Apache-2.0
"""A stream that is never silent for long."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator

from nova_snapext.encode import base

# Seconds without a byte. A proxy ends an upload after some time without one:
# nginx after 60 seconds (client_body_timeout), HAProxy as Debian configures it
# after 50 (timeout client).
MAX_SILENCE = 5


def keep_alive(chunks: Iterable[base.Chunk | None],
               clock: Callable[[], float]) -> Iterator[base.Chunk]:
    """Return the bytes of all chunks, and some of them every few seconds.

    The latest chunk is kept back until the next one is there. If that takes
    long, it is sent byte by byte: 64 KiB last for days. So the time that the
    work takes changes no byte of the image.

    :param chunks: not empty; None each time that work gave no chunk
    :param clock: returns seconds; it must not jump
    """
    kept = memoryview(b'')
    sent = clock()
    for chunk in chunks:
        if chunk is not None:
            if kept:
                yield kept
            kept = memoryview(chunk)
            sent = clock()
        elif len(kept) > 1 and clock() - sent >= MAX_SILENCE:
            yield kept[:1]
            kept = kept[1:]
            sent = clock()
    if kept:
        yield kept
