# SPDX-License-Identifier: Apache-2.0
"""qemu-img on overlays, their backing files and internal snapshots.

qemu-img always runs as Nova's user; an image of somebody else is lent to this
user. It is told what to open down the whole backing chain, and each header is
checked before (:mod:`nova_snapext.hypervisor.image_header`).
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import os

from oslo_concurrency import processutils
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import image_opts
from nova_snapext.hypervisor import ownership
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Exit code of qemu-img compare.
COMPARE_DIFFERS = 1


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


def create_scratch(path: str, size: int) -> None:
    """Create the scratch file of a backup job, which only Nova can open.

    It has no backing file in its header: libvirt tells QEMU that the guest's
    disk is below it (qemuBackupDiskPrepareDataOne in its
    src/qemu/qemu_backup.c).

    :param path: path of the new file, in a directory of Nova's
    :param size: virtual size of the disk, in bytes. QEMU refuses any other
    :raises FileExistsError: the path exists; it is left as it is
    :raises ProcessExecutionError: qemu-img failed
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    processutils.execute('qemu-img', 'create', '-q', '-f', 'qcow2', path,
                         str(size), timeout=CONF.snapext.operation_timeout)
    LOG.debug('Created the scratch file %s', path)


def holds_data(overlay: str) -> bool:
    """Return whether anything was ever written to an overlay.

    :raises ProcessExecutionError: the overlay can't be read, perhaps because
        a QEMU has it open
    :raises UnexpectedHeader: its header is not as expected
    """
    with ownership.lent(overlay, os.R_OK):
        image_header.checked_header(overlay)
        extents, _stderr = processutils.execute(
            'qemu-img', 'map', '--output=json',
            image_opts.filename(image_opts.alone(overlay)),
            timeout=CONF.snapext.operation_timeout)
    return any(extent['present'] for extent in json.loads(extents))


def holds_same_data(overlay: str, disk: planning.RootDisk) -> bool:
    """Return whether a commit of an overlay into its disk changes nothing.

    No guest may use either. Both are read as a whole.

    :returns: False also if the sizes differ: the guest was resized
    :raises ProcessExecutionError: one of them can't be read, perhaps because
        a QEMU has it open
    :raises UnexpectedHeader: a header is not as expected
    """
    with ownership.lent(overlay, os.R_OK), \
            ownership.lent(disk.path, os.R_OK):
        images = check_overlay(overlay, disk, ())
        if _virtual_size(images[0]) != _virtual_size(images[1]):
            return False
        try:
            # Duration depends on the size of the disk: no timeout.
            processutils.execute(
                'qemu-img', 'compare', '-q',
                image_opts.filename(image_opts.chain(images)),
                image_opts.filename(image_opts.chain(images[1:])))
        except processutils.ProcessExecutionError as error:
            # qemu-img(1), "compare": all others are errors.
            if error.exit_code != COMPARE_DIFFERS:
                raise
            return False
    return True


def commit(overlay: str, disk: planning.RootDisk,
           base_chain: Sequence[str | None] = ()) -> None:
    """Commit an overlay that no guest uses into its disk, and empty it.

    An interrupted commit may be repeated: the result is the same.

    :param base_chain: the expected paths below the overlay, the disk first;
        empty if they are unknown
    :raises ProcessExecutionError: the commit failed, at its start or later
    :raises UnexpectedHeader: a header is not as expected; nothing is changed
    """
    # Before their owner is changed, and again when QEMU's user has lost them.
    check_overlay(overlay, disk, base_chain)
    with ownership.lent(overlay, os.R_OK | os.W_OK), \
            ownership.lent(disk.path, os.R_OK | os.W_OK):
        images = check_overlay(overlay, disk, base_chain)
        # Duration depends on the amount of data: no timeout.
        processutils.execute('qemu-img', 'commit', '-q',
                             image_opts.filename(image_opts.chain(images)))


def check_overlay(
    overlay: str, disk: planning.RootDisk,
    base_chain: Sequence[str | None],
) -> list[image_header.Image]:
    """Check the headers of an overlay and of all that is below it.

    :param base_chain: the expected paths below the overlay, the disk first;
        empty if they are unknown
    :returns: the whole chain, the overlay first
    :raises OSError: an image can't be opened or read
    :raises UnexpectedHeader: a header is not as expected
    """
    return [_checked_overlay(overlay, disk),
            *image_header.checked_chain(
                disk, base_chain[1:] if base_chain else None)]


def _checked_overlay(overlay: str,
                     disk: planning.RootDisk) -> image_header.Image:
    found = backing_file(overlay)
    if found != (disk.path, disk.format):
        raise exception.UnexpectedHeader(
            path=overlay,
            reason=f'names the backing file {found[0]} of the format '
                   f'{found[1]}, and the disk below it is {disk.path} of the '
                   f'format {disk.format}')
    return image_header.Image(overlay, 'qcow2', 'file')


def _virtual_size(image: image_header.Image) -> int:
    info, _stderr = processutils.execute(
        'qemu-img', 'info', '--output=json',
        image_opts.filename(image_opts.chain([image])),
        timeout=CONF.snapext.operation_timeout)
    return int(json.loads(info)['virtual-size'])


def backing_file(overlay: str) -> tuple[str, str]:
    """Return path and format of the backing file that an overlay names.

    :raises OSError: the overlay can't be read
    :raises UnexpectedHeader: its header is not as expected
    :raises UnexpectedState: the overlay has no backing file
    """
    header = image_header.checked_header(overlay)
    path = header.backing_path(overlay)
    if path is None:
        raise exception.UnexpectedState(
            reason=f'{overlay} has no backing file')
    return path, header.backing_format or 'raw'


def backing_chain(path: str, image_format: str) -> list[str]:
    """List the files of a backing chain, the topmost first.

    :raises OSError: an image of the chain can't be read
    :raises UnexpectedHeader: a header is not as expected
    """
    return [image.path for image in image_header.chain(path, image_format)]


def change_backing_file(path: str, disk: planning.RootDisk) -> None:
    """Change the backing file of a qcow2 to one of the same content.

    :param path: path of the qcow2, which no guest uses
    :raises ProcessExecutionError: the image is in use, or not writable
    :raises UnexpectedHeader: its header is not as expected
    """
    LOG.debug('Changing the backing file of %s to %s', path, disk.path)
    # Neither the old nor the new backing file is opened ("-u").
    _change(path, 'rebase', '-q', '-u', '-b', disk.path, '-F', disk.format)


def create_snapshot(name: str, path: str) -> None:
    """Create a snapshot inside a qcow2 that no guest uses.

    :raises ProcessExecutionError: the qcow2 is in use, or its storage is full
    :raises UnexpectedHeader: its header is not as expected
    """
    LOG.debug('Creating the snapshot %s inside %s', name, path)
    _change(path, 'snapshot', '-c', name)


def delete_snapshot(name: str, path: str) -> None:
    """Delete a snapshot from a qcow2 that no guest uses.

    :raises ProcessExecutionError: the qcow2 is in use, or has no such snapshot
    :raises UnexpectedHeader: its header is not as expected
    """
    LOG.debug('Deleting the snapshot %s inside %s', name, path)
    _change(path, 'snapshot', '-d', name)


def holds_snapshot(name: str, path: str) -> bool:
    """Return whether a qcow2, which a guest may be using, has a snapshot.

    A qcow2 that does not exist has none.

    :raises OSError: the qcow2 can't be read
    :raises UnexpectedHeader: it is not a qcow2 that QEMU would write
    """
    try:
        return name in image_header.snapshot_names(path)
    except FileNotFoundError:
        return False


def _change(path: str, *command: str) -> None:
    """Run qemu-img on one qcow2, which no guest uses."""
    # Before its owner is changed, and again when QEMU's user has lost it.
    image_header.checked_header(path)
    with ownership.lent(path, os.R_OK | os.W_OK):
        image_header.checked_header(path)
        # Duration depends on the size of the disk: no timeout.
        processutils.execute(
            'qemu-img', *command, image_opts.filename(
                image_opts.alone(path, image_header.storage_of(path))))
