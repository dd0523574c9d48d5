# SPDX-License-Identifier: Apache-2.0
"""qemu-img on overlays, their backing files and internal snapshots.

Each function needs privileges only where Nova's user may not open an image:
libvirt changes the owner of a disk when its guest starts and stops.
"""

from __future__ import annotations

import json
import os

from nova import exception as nova_exception
from nova.virt import images
from oslo_concurrency import processutils
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import image_opts
from nova_snapext.hypervisor import privsep
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)


def create_overlay(path: str, disk: planning.RootDisk, size: int) -> None:
    """Create an overlay over a disk, which a guest may be using.

    :param path: path of the new overlay
    :param size: virtual size of both, in bytes
    :raises FileExistsError: the path exists; it is left as it is
    :raises ProcessExecutionError: qemu-img failed; no overlay is left
    """
    # qemu-img would overwrite a file. The mode lets Nova's audit of resources
    # read the overlay, as it reads the disks that Nova creates.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    try:
        processutils.execute(
            'qemu-img', 'create', '-q', '-f', 'qcow2', '-u',
            '-b', disk.path, '-F', disk.format, path, str(size),
            timeout=CONF.snapext.operation_timeout)
    except BaseException:
        os.unlink(path)
        raise
    LOG.debug('Created the overlay %s over %s', path, disk.path)


def holds_data(overlay: str) -> bool:
    """Return whether anything was ever written to an overlay.

    :raises ProcessExecutionError: the overlay can't be read, perhaps because
        a QEMU has it open
    """
    node = {**image_opts.node(overlay, 'qcow2'), 'backing': None}
    extents, _stderr = processutils.execute(
        'qemu-img', 'map', '--output=json', f'json:{json.dumps(node)}',
        timeout=CONF.snapext.operation_timeout)
    return any(extent['present'] for extent in json.loads(extents))


def commit(overlay: str, disk: planning.RootDisk) -> None:
    """Commit an overlay that no guest uses into its disk, and empty it.

    An interrupted commit may be repeated: the result is the same.

    :raises ProcessExecutionError: the commit failed, at its start or later
    """
    is_ours = all(os.access(path, os.R_OK | os.W_OK)
                  for path in (overlay, disk.path))
    commit_overlay = (privsep.unprivileged_commit_overlay if is_ours
                      else privsep.commit_overlay)
    commit_overlay(overlay, disk.path, disk.storage, disk.format)


def backing_file(overlay: str) -> tuple[str, str]:
    """Return path and format of the backing file that an overlay names.

    :raises ProcessExecutionError: the overlay can't be read
    :raises UnexpectedState: the overlay has no backing file
    """
    info = json.loads(_info(overlay, 'qcow2'))
    if not info.get('full-backing-filename'):
        raise exception.UnexpectedState(
            reason=f'{overlay} has no backing file')
    return (info['full-backing-filename'],
            info.get('backing-filename-format', 'raw'))


def backing_chain(path: str, image_format: str) -> list[str]:
    """List the files of a backing chain, the topmost first.

    :raises ProcessExecutionError: an image of the chain can't be read
    """
    return [image['filename'] for image in json.loads(
        _info(path, image_format, '--backing-chain'))]


def _info(path: str, image_format: str, *options: str) -> str:
    info = (privsep.unprivileged_image_info if os.access(path, os.R_OK)
            else privsep.image_info)
    return str(info(path, image_format, *options,
                    timeout=CONF.snapext.operation_timeout))


def change_backing_file(path: str, image_format: str,
                        disk: planning.RootDisk) -> None:
    """Change the backing file of an image to one of the same content.

    :param path: path of the image, which no guest uses
    :raises ProcessExecutionError: the image is in use, or not writable
    """
    LOG.debug('Changing the backing file of %s to %s', path, disk.path)
    change = (privsep.unprivileged_change_backing_file
              if os.access(path, os.W_OK) else privsep.change_backing_file)
    change(path, image_format, disk.path, disk.format)


def create_snapshot(name: str, path: str) -> None:
    """Create a snapshot inside a qcow2 that no guest uses.

    :raises ProcessExecutionError: the qcow2 is in use, or its storage is full
    """
    _change_snapshots('-c', name, path)


def delete_snapshot(name: str, path: str) -> None:
    """Delete a snapshot from a qcow2 that no guest uses.

    :raises ProcessExecutionError: the qcow2 is in use, or has no such snapshot
    """
    _change_snapshots('-d', name, path)


def holds_snapshot(name: str, path: str) -> bool:
    """Return whether a qcow2, which a guest may be using, has a snapshot.

    A qcow2 that does not exist has none.

    :raises InvalidDiskInfo: the qcow2 can't be read
    """
    read_info = (images.qemu_img_info if os.access(path, os.R_OK)
                 else images.privileged_qemu_img_info)
    try:
        info = read_info(path, 'qcow2')
    except nova_exception.DiskNotFound:
        return False
    return any(snapshot['name'] == name for snapshot in info.snapshots)


def _change_snapshots(action: str, name: str, path: str) -> None:
    LOG.debug('Changing the snapshots inside %s: %s %s', path, action, name)
    change = (privsep.unprivileged_change_snapshots
              if os.access(path, os.W_OK) else privsep.change_snapshots)
    change(action, name, path)
