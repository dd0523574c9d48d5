# SPDX-License-Identifier: Apache-2.0
"""The steps that Nova's user may not do, as entry points of privsep.

A function without ``unprivileged_`` in its name runs as root, in a daemon that
oslo.privsep starts. The daemon imports this module in a new process: import
neither Nova nor libvirt here, and pass options as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
import os

from oslo_concurrency import processutils
from oslo_privsep import capabilities
from oslo_privsep import priv_context

from nova_snapext.hypervisor import image_opts

# The daemon itself calls chown(2), and finds paths in directories that only
# QEMU's user may enter. The programs that it runs need more: qemu-img opens
# disks of QEMU's user, setpriv becomes Nova's user. They get it from the
# kernel, which gives a program that root runs all capabilities of the
# bounding set; see "Capabilities and execution of programs by root" in
# capabilities(7).
context = priv_context.PrivContext(
    'nova_snapext',
    cfg_section='nova_snapext_privileged',
    pypath=__name__ + '.context',
    capabilities=[capabilities.CAP_CHOWN,
                  capabilities.CAP_DAC_READ_SEARCH],
)


@context.entrypoint
def chown(path: str, uid: int, gid: int | None = None) -> None:
    """Change the owner of a file or directory.

    :param gid: the new group; None keeps the group
    :raises OSError: the path does not exist, or its file system refuses
    """
    os.chown(path, uid, -1 if gid is None else gid)


@context.entrypoint
def commit_overlay(overlay: str, disk: str, storage: str,
                   disk_format: str) -> None:
    unprivileged_commit_overlay(overlay, disk, storage, disk_format)


def unprivileged_commit_overlay(overlay: str, disk: str, storage: str,
                                disk_format: str) -> None:
    """Commit an overlay into a disk, and empty the overlay.

    :param storage: libvirt's type of the disk's storage
    :raises ProcessExecutionError: qemu-img did not finish the commit
    """
    # This names the backing file and its format, so that qemu-img does not
    # take them from the overlay.
    node = {**image_opts.node(overlay, 'qcow2'),
            'backing': image_opts.node(disk, disk_format, storage)}
    # Duration depends on the amount of data: no timeout.
    processutils.execute(
        'qemu-img', 'commit', '-q', '--image-opts', image_opts.join(node))


@context.entrypoint
def image_info(path: str, image_format: str, *options: str,
               timeout: int) -> str:
    return unprivileged_image_info(
        path, image_format, *options, timeout=timeout)


def unprivileged_image_info(path: str, image_format: str, *options: str,
                            timeout: int) -> str:
    """Return what qemu-img reports of an image, as JSON.

    :param options: further options of qemu-img info
    :param timeout: in seconds
    :raises ProcessExecutionError: qemu-img can't read the image
    :raises TimeoutExpired: the image's storage does not respond
    """
    output, _stderr = processutils.execute(
        'qemu-img', 'info', '--force-share', '--output=json', *options,
        '-f', image_format, path, timeout=timeout)
    return str(output)


@context.entrypoint
def change_backing_file(path: str, image_format: str, backing: str,
                        backing_format: str) -> None:
    unprivileged_change_backing_file(
        path, image_format, backing, backing_format)


def unprivileged_change_backing_file(path: str, image_format: str,
                                     backing: str,
                                     backing_format: str) -> None:
    """Change the name of the backing file in an image, and nothing else.

    :raises ProcessExecutionError: the image is in use, or not writable
    """
    processutils.execute('qemu-img', 'rebase', '-q', '-u', '-f', image_format,
                         '-b', backing, '-F', backing_format, path)


@context.entrypoint
def change_snapshots(action: str, name: str, path: str) -> None:
    unprivileged_change_snapshots(action, name, path)


def unprivileged_change_snapshots(action: str, name: str, path: str) -> None:
    """Create or delete a snapshot inside a qcow2.

    :param action: option of qemu-img snapshot: ``-c`` or ``-d``
    :raises ProcessExecutionError: the image is in use or full, or has no such
        snapshot
    """
    # Duration depends on the size of the disk: no timeout.
    processutils.execute(
        'qemu-img', 'snapshot', action, name,
        '--image-opts', image_opts.join(image_opts.node(path, 'qcow2')))


@context.entrypoint
def serve_block_device(device: str, arguments: Sequence[str], uid: int,
                       gid: int, timeout: int) -> None:
    """Run qemu-nbd as Nova's user, in the group that may read a device.

    Not as root: qemu-nbd only has to open the device, and its socket must
    belong to Nova.

    :param arguments: arguments of qemu-nbd
    :param uid: of Nova's user
    :param timeout: in seconds
    :raises ProcessExecutionError: qemu-nbd can't open the device
    :raises TimeoutExpired: the device does not respond
    """
    processutils.execute(
        'setpriv', f'--reuid={uid}', f'--regid={gid}',
        f'--groups={os.stat(device).st_gid}', '--inh-caps=-all',
        'qemu-nbd', *arguments, timeout=timeout)
