# SPDX-License-Identifier: Apache-2.0
"""libvirt's files of a guest, and how their changes become durable.

libvirt writes a definition to a new file, syncs that file and renames it, but
does not sync the directory (virFileRewrite in its src/util/virfile.c). It
removes saved memory, and changes the definition in it, without a sync. A loss
of power can undo all of this.
"""

from __future__ import annotations

import os

from oslo_log import log as logging

from nova_snapext import compat
from nova_snapext import conf
from nova_snapext import durable
from nova_snapext.hypervisor import privsep

CONF = conf.CONF
LOG = logging.getLogger(__name__)


def sync_definition(name: str) -> None:
    """Make the latest change of a guest's persistent definition durable.

    :param name: name of the guest's domain
    :raises OSError: a loss of power may undo it
    """
    directory = CONF.snapext.libvirt_config_directory
    _sync(directory, os.path.join(directory, f'{name}.xml'))


def sync_saved_memory() -> None:
    """Make it durable that the memory of a guest was saved, or is removed.

    :raises OSError: a loss of power may undo it
    """
    directory = CONF.snapext.libvirt_save_directory
    _sync(directory, directory)


def sync_saved_definition(name: str) -> None:
    """Make it durable that the definition in saved memory was changed.

    :param name: name of the guest's domain
    :raises OSError: a loss of power may undo it
    """
    path = os.path.join(CONF.snapext.libvirt_save_directory, f'{name}.save')
    _sync(path, path)


def _sync(path: str, known: str) -> None:
    """Sync a file or a directory of libvirt.

    A sync of all file systems waits for each of them, and never ends if one
    is on a server that is away.

    :param known: a path that exists if it is the right one
    """
    try:
        try:
            os.stat(known)
            durable.sync(path)
        except PermissionError:
            privsep.sync(path)
    except FileNotFoundError:
        # The files of this libvirtd are elsewhere, perhaps in a container.
        LOG.debug('There is no %s: syncing all file systems', known)
        compat.tpool_wrap(os.sync)()
