# SPDX-License-Identifier: Apache-2.0
"""The commit of an overlay that no guest uses, by qemu-img."""

from __future__ import annotations

from collections.abc import Sequence
import os

from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import privsep
from nova_snapext.hypervisor import qemu_img
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)


def run(path: str, target: planning.Target,
        base_chain: Sequence[str | None] = (),
        owner: tuple[int, int] | None = None) -> None:
    """Commit an overlay into its disk, and empty it.

    :param path: the overlay's file
    :param base_chain: the paths below the overlay when the snapshot began, the
        disk first; empty if they are unknown
    :param owner: user and group that the disk belongs to while no guest uses
        it; None: those of the overlay
    :raises UnexpectedHeader: a header in the chain is not as expected; nothing
        is changed
    :raises ProcessExecutionError: it is in use, or the commit is not complete
    :raises FileNotFoundError: the overlay or the disk does not exist
    """
    # libvirt remembers the owner of a guest's disk, to restore it when the
    # guest ends. The snapshot moves this memory from the disk to the overlay:
    # the overlay gets the owner back, and the disk does not.
    disk = target.disk
    # Before the owner of the disk is changed.
    qemu_img.check_overlay(path, disk, base_chain)
    overlay_stat, disk_stat = os.stat(path), os.stat(disk.path)
    owner = owner or (overlay_stat.st_uid, overlay_stat.st_gid)
    if (disk_stat.st_uid, disk_stat.st_gid) != owner:
        privsep.chown(os.path.realpath(disk.path), *owner)
    LOG.debug('qemu-img commits the overlay %(path)s into %(disk)s',
              {'path': path, 'disk': disk.path}, instance=target.instance)
    qemu_img.commit(path, disk, base_chain)
    LOG.debug('qemu-img has committed the overlay %s', path,
              instance=target.instance)


def remove_from_chain(top: str, top_format: str, path: str,
                      target: planning.Target,
                      base_chain: Sequence[str | None] = (),
                      owner: tuple[int, int] | None = None) -> None:
    """Commit an overlay, and replace it by its disk in a backing chain.

    Again is no error: it is done if the overlay's file is removed.

    :param top: the image on top of the chain, which stays
    :param top_format: libvirt's format of that image
    :param path: the overlay's file
    :param base_chain: the paths below the overlay when the snapshot began, the
        disk first; empty if they are unknown
    :param owner: see :func:`run`
    :raises UnexpectedHeader: a header in the chain is not as expected
    :raises UnexpectedState: the overlay is not in the chain
    :raises ProcessExecutionError: an image is in use, or can't be changed
    """
    paths = qemu_img.backing_chain(top, top_format)
    if path not in paths:
        if target.disk.path in paths and not os.path.exists(path):
            return
        raise exception.UnexpectedState(
            reason=f'the guest is defined on {chain.text(paths)}, and the '
                   f'overlay is not part of that chain')
    run(path, target, base_chain, owner)
    # The commit has emptied the overlay: it reads as the disk does.
    qemu_img.change_backing_file(
        paths[paths.index(path) - 1], target.disk)
