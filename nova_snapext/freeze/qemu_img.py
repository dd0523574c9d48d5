# SPDX-License-Identifier: Apache-2.0
"""qemu-img, on overlays, the disks below them, and snapshots inside them."""

from __future__ import annotations

import json
import os

from nova import exception as nova_exception
import nova.privsep
from nova.virt import images
from oslo_concurrency import processutils

from nova_snapext import conf
from nova_snapext import plan as planning

CONF = conf.CONF

# QEMU's block drivers for libvirt's types of storage.
PROTOCOL_DRIVERS = {'file': 'file', 'block': 'host_device'}


def create_overlay(path: str, disk: planning.RootDisk, size: int) -> None:
    """Make an overlay over a disk, which a guest may be using.

    :param path: where there is nothing yet
    :param size: the virtual size of both, in bytes
    :raises FileExistsError: there is something, which is not touched
    :raises ProcessExecutionError: qemu-img could not; nothing is left
    """
    # qemu-img would overwrite it. Whoever can read disks of Nova's can read
    # this one, Nova's own audit of resources among them.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    try:
        processutils.execute(
            'qemu-img', 'create', '-q', '-f', 'qcow2', '-u',
            '-b', disk.path, '-F', disk.format, path, str(size),
            timeout=CONF.snapext.job_timeout)
    except BaseException:
        os.unlink(path)
        raise


def holds_data(overlay: str) -> bool:
    """Tell whether anything was ever written to an overlay.

    :raises ProcessExecutionError: it can't be read; a QEMU may have it open
    """
    image = {'driver': 'qcow2', 'backing': None,
             'file': {'driver': 'file', 'filename': overlay}}
    extents, _ = processutils.execute(
        'qemu-img', 'map', '--output=json', f'json:{json.dumps(image)}',
        timeout=CONF.snapext.job_timeout)
    return any(extent['present'] for extent in json.loads(extents))


def commit(overlay: str, disk: planning.RootDisk) -> None:
    """Commit an overlay that no guest uses into its disk, and empty it.

    However often it was interrupted before, it ends in the same.

    :raises ProcessExecutionError: it is not done, or not to its end
    """
    # It takes as long as there is data: no timeout.
    if all(os.access(path, os.R_OK | os.W_OK)
           for path in (overlay, disk.path)):
        _commit(overlay, disk.path, disk.storage, disk.format)
    else:
        _privileged_commit(overlay, disk.path, disk.storage, disk.format)


@nova.privsep.sys_admin_pctxt.entrypoint
def _privileged_commit(overlay: str, disk: str, storage: str,
                       disk_format: str) -> None:
    _commit(overlay, disk, storage, disk_format)


def _commit(overlay: str, disk: str, storage: str, disk_format: str) -> None:
    # The backing file is named here, with its format: neither is left to what
    # the overlay says. Given as options, a path is never taken for a
    # protocol's URL; a comma in it is doubled, as QEMU's option syntax wants.
    source = (f'driver=qcow2,file.driver=file,'
              f'file.filename={_option(overlay)},'
              f'backing.driver={disk_format},'
              f'backing.file.driver={PROTOCOL_DRIVERS[storage]},'
              f'backing.file.filename={_option(disk)}')
    processutils.execute('qemu-img', 'commit', '-q', '--image-opts', source)


def backing_file(overlay: str) -> tuple[str, str]:
    """Give path and format of what an overlay says that it is over.

    :raises ProcessExecutionError: it can't be read
    :raises ValueError: it is over nothing
    """
    command = ('qemu-img', 'info', '--force-share', '--output=json',
               '-f', 'qcow2', overlay)
    info = json.loads(_info(overlay, command))
    if not info.get('full-backing-filename'):
        raise ValueError(f'{overlay} has no backing file')
    return (info['full-backing-filename'],
            info.get('backing-filename-format', 'raw'))


def backing_chain(path: str, disk_format: str) -> list[str]:
    """List the files of a backing chain, that on top first.

    :raises ProcessExecutionError: it can't be read
    """
    command = ('qemu-img', 'info', '--force-share', '--backing-chain',
               '--output=json', '-f', disk_format, path)
    return [image['filename'] for image in json.loads(_info(path, command))]


def _info(path: str, command: tuple[str, ...]) -> str:
    if not os.access(path, os.R_OK):
        return _privileged_info(command)
    found, _ = processutils.execute(
        *command, timeout=CONF.snapext.job_timeout)
    return found


@nova.privsep.sys_admin_pctxt.entrypoint
def _privileged_info(command: tuple[str, ...]) -> str:
    if tuple(command[:2]) != ('qemu-img', 'info'):
        raise ValueError(f'{command[:2]} is not qemu-img info')
    found, _ = processutils.execute(*command)
    return found


def put_below(path: str, disk_format: str, disk: planning.RootDisk) -> None:
    """Name another backing file in an image, of the same content.

    :param path: of the image, which no guest uses
    :raises ProcessExecutionError: it is in use, or can't be written
    """
    if os.access(path, os.W_OK):
        _put_below(path, disk_format, disk.path, disk.format)
    else:
        _privileged_put_below(path, disk_format, disk.path, disk.format)


@nova.privsep.sys_admin_pctxt.entrypoint
def _privileged_put_below(path: str, disk_format: str, backing: str,
                          backing_format: str) -> None:
    _put_below(path, disk_format, backing, backing_format)


def _put_below(path: str, disk_format: str, backing: str,
               backing_format: str) -> None:
    processutils.execute('qemu-img', 'rebase', '-q', '-u', '-f', disk_format,
                         '-b', backing, '-F', backing_format, path)


def create_snapshot(name: str, path: str) -> None:
    """Make a snapshot inside a qcow2 that no guest uses.

    :raises ProcessExecutionError: it is in use, or there is no room
    """
    _change_snapshots('-c', name, path)


def delete_snapshot(name: str, path: str) -> None:
    """Delete a snapshot from a qcow2 that no guest uses.

    :raises ProcessExecutionError: it is in use, or has no such snapshot
    """
    _change_snapshots('-d', name, path)


def holds_snapshot(name: str, path: str) -> bool:
    """Tell whether a snapshot is inside a qcow2, which a guest may be using.

    One that does not exist, any more, holds none.

    :raises InvalidDiskInfo: it can't be read
    """
    look = (images.qemu_img_info if os.access(path, os.R_OK)
            else images.privileged_qemu_img_info)
    try:
        info = look(path, 'qcow2')
    except nova_exception.DiskNotFound:
        return False
    return any(snapshot['name'] == name for snapshot in info.snapshots)


def _change_snapshots(action: str, name: str, path: str) -> None:
    # It takes as long as the disk is big: no timeout.
    if os.access(path, os.W_OK):
        _snapshot(action, name, path)
    else:
        _privileged_snapshot(action, name, path)


@nova.privsep.sys_admin_pctxt.entrypoint
def _privileged_snapshot(action: str, name: str, path: str) -> None:
    _snapshot(action, name, path)


def _snapshot(action: str, name: str, path: str) -> None:
    processutils.execute(
        'qemu-img', 'snapshot', action, name, '--image-opts',
        f'driver=qcow2,file.driver=file,file.filename={_option(path)}')


def _option(path: str) -> str:
    return path.replace(',', ',,')
