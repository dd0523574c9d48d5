# SPDX-License-Identifier: Apache-2.0
"""Changes of files that a loss of power does not undo.

A file that is created, renamed or removed comes back as it was, unless its
directory is synced: fsync(2), "Calling fsync() does not necessarily ensure
that the entry in the directory containing the file has also reached disk".
"""

from __future__ import annotations

import contextlib
import os
import pathlib

# Appended to the name of a file that is written before it replaces another.
NEW = '.new'


def boot_id() -> str:
    """Return a text that differs for each boot of this host.

    If it has changed, the host may have lost power: what was not synced may
    be undone. https://docs.kernel.org/admin-guide/sysctl/kernel.html
    """
    return pathlib.Path(
        '/proc/sys/kernel/random/boot_id').read_text().strip()


def sync(path: str) -> None:
    """Make the content of a file, or the entries of a directory, durable.

    :raises OSError: the path does not exist, or its storage has failed
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_parent(path: str) -> None:
    """Make the entry of a path in its directory durable.

    :raises OSError: there is no such directory, or its storage has failed
    """
    sync(os.path.dirname(path))


def unlink(path: str) -> None:
    """Remove a file, if it exists. It does not come back.

    :raises OSError: it can't be removed, or may come back
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sync_parent(path)


def write(path: str, text: str) -> None:
    """Create or replace a file. Afterwards it has either content as a whole.

    :raises OSError: it can't be written; the earlier one is unchanged
    """
    new = f'{path}{NEW}'
    try:
        with open(new, 'w') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    sync_parent(path)
