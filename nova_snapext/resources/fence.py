# SPDX-License-Identifier: Apache-2.0
"""A fence that keeps other drivers from starting a guest without its overlay.

While a guest has an overlay, its disk alone is an older state. Nova's own
driver, after a change of compute_driver or on another host with the same
storage, would define the guest on the disk alone.

Whenever Nova builds the definition of a guest, its image backends for files
read ``disk.info``, the formats of the disks, as JSON
(nova.virt.libvirt.imagebackend.Image.resolve_driver_format). A file that is
not JSON makes Nova refuse with InvalidDiskInfo, and the error shows the file's
first line. The fence is such a file: its line says what to do.

An LVM volume has no such file: there the fence has an effect only if the
instance has a disk that is a file, such as a config drive.
"""

from __future__ import annotations

import contextlib
import os
import pathlib

from nova_snapext import durable

NAME = 'disk.info'
#: Appended to the name of Nova's own file while the fence takes its place.
KEPT = '.snapext'
START = 'nova-snapext:'
# Users see it in the fault of the instance: no path of the host is in it.
TEXT = (f'{START} the overlay beside this file contains data of the instance '
        f'that its disk lacks. Do not start it without nova-snapext: set '
        f'compute_driver back to snapext.SnapextDriver, or stop nova-compute '
        f'on this host and run "nova-snapext drain".\n')


class Fence:
    """The fence of one instance.

    :param overlay: path of the overlay, in the directory of the instance
    """

    def __init__(self, overlay: str):
        self.path = os.path.join(os.path.dirname(overlay), NAME)
        self._kept = f'{self.path}{KEPT}'

    def create(self) -> None:
        """Create it, unless it is there. It survives a loss of power.

        :raises OSError: it can't be created
        """
        if self.exists():
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._kept)
        with contextlib.suppress(FileNotFoundError):
            os.link(self.path, self._kept)
        durable.write(self.path, TEXT)

    def remove(self) -> None:
        """Put Nova's own file back, if there was one.

        :raises OSError: the fence can't be removed
        """
        if not os.path.isdir(os.path.dirname(self.path)):
            return  # Nova has deleted the instance.
        if not self.exists():
            durable.unlink(self._kept)
        elif os.path.exists(self._kept):
            os.replace(self._kept, self.path)
            durable.sync_parent(self.path)
        else:
            durable.unlink(self.path)

    def exists(self) -> bool:
        """Return whether the fence is in the place of Nova's file."""
        try:
            return pathlib.Path(self.path).read_text().startswith(START)
        except (FileNotFoundError, NotADirectoryError):
            return False
