# SPDX-License-Identifier: Apache-2.0
"""qemu-nbd, which serves a disk without a guest, or an internal snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import pathlib
import select
import signal

from oslo_concurrency import processutils
from oslo_log import log as logging
import psutil

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import image_header
from nova_snapext.hypervisor import image_opts
from nova_snapext.hypervisor import ownership
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Our own connection, and that of the qemu-img that writes a staged image.
MAX_CLIENTS = 2


class Server:
    """A running qemu-nbd.

    It also ends by itself when its last client disconnects, as when
    nova-compute dies.

    :ivar pid: id of the process
    """

    def __init__(self, pid: int, instance_uuid: str):
        self.pid = pid
        self._instance = instance_uuid
        # Unlike the id, the descriptor never refers to another process.
        self._pidfd = os.pidfd_open(pid)

    def stop(self) -> None:
        """Stop the process, and wait until it has ended.

        :raises ReleaseFailed: it does not end, even though it was killed
        """
        try:
            for signal_number in (signal.SIGTERM, signal.SIGKILL):
                if self._is_ended_by(signal_number):
                    LOG.debug('qemu-nbd, process %(pid)s, has ended for '
                              'instance %(instance)s',
                              {'pid': self.pid, 'instance': self._instance})
                    return
        finally:
            os.close(self._pidfd)
        raise exception.ReleaseFailed(
            instance=self._instance,
            reason=f'qemu-nbd, process {self.pid}, did not end within '
                   f'{CONF.snapext.operation_timeout} seconds of a SIGKILL. '
                   f'It probably waits for storage that does not respond')

    def _is_ended_by(self, signal_number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, signal_number)
        except ProcessLookupError:
            return True
        ended, _, _ = select.select(
            [self._pidfd], [], [], CONF.snapext.operation_timeout)
        return bool(ended)


def servers_on(socket: str, instance_uuid: str) -> Iterator[Server]:
    """Find the servers on a socket, of this process or another.

    :param socket: path of the Unix socket
    """
    for process in psutil.process_iter(['name', 'cmdline']):
        arguments = process.info['cmdline'] or ()
        if process.info['name'] == 'qemu-nbd' and socket in arguments:
            try:
                yield Server(process.pid, instance_uuid)
            except ProcessLookupError:
                continue  # it has just ended


def serve(disk: planning.RootDisk, base_chain: Sequence[str | None] | None,
          socket: str, pid_file: str, instance_uuid: str,
          snapshot: str | None = None) -> Server:
    """Serve a disk, or a snapshot inside it, read-only.

    qemu-nbd runs as Nova's user, opens exactly the disk's backing chain, and
    gets each image of it as an option. The headers are checked before.

    :param base_chain: the expected paths below the disk; None if unknown
    :param socket: path of the Unix socket to create
    :param pid_file: path of the file to write qemu-nbd's process id to
    :param snapshot: name of a snapshot inside the disk; a guest may use the
        disk while the snapshot is served. None serves the disk's own content
    :raises ProcessExecutionError: qemu-nbd can't open the disk; a running
        guest locks it
    :raises UnexpectedHeader: a header is not as expected; nothing is served
    :raises OSError: qemu-nbd can't be run, or ended immediately
    :raises TimeoutExpired: the disk's storage does not respond. If it responds
        later, qemu-nbd ends, because its directory is gone
    """
    options = ([] if snapshot is None else
               ['--load-snapshot', f'snapshot.name={snapshot}'])
    with _opened_by_nova(disk):
        images = image_header.checked_chain(disk, base_chain)
        _start(disk, _frozen_node(images, snapshot), socket, pid_file,
               *options)
    return _started(disk, images, socket, pid_file, instance_uuid)


def serve_unlocked(disk: planning.RootDisk,
                   base_chain: Sequence[str | None] | None,
                   socket: str, pid_file: str, instance_uuid: str) -> Server:
    """Serve the present content of a disk that a guest may write to.

    What is read is of no one point in time, and may even be of a cluster that
    the guest has just freed: it is good for a sample, and never for an image.
    No lock of QEMU is taken, so that nothing is kept from starting, and no
    owner is changed. Everything else is as in :func:`serve`.

    :raises ProcessExecutionError: qemu-nbd can't open the disk, because
        Nova's user may not read it, for example
    """
    images = image_header.checked_chain(disk, base_chain)
    _start(disk, image_opts.chain(images, locking='off'), socket, pid_file)
    return _started(disk, images, socket, pid_file, instance_uuid)


def _start(disk: planning.RootDisk, node: image_opts.Node, socket: str,
           pid_file: str, *options: str) -> None:
    processutils.execute(
        'qemu-nbd', '--read-only', '--fork', '--shared', str(MAX_CLIENTS),
        '--pid-file', pid_file, '--socket', socket,
        '--export-name', disk.target, *options, image_opts.filename(node),
        timeout=CONF.snapext.operation_timeout)


def _started(disk: planning.RootDisk, images: Sequence[image_header.Image],
             socket: str, pid_file: str, instance_uuid: str) -> Server:
    """Return the server that has just been started.

    :raises UnexpectedHeader: it has opened another file; it is stopped
    """
    with open(pid_file) as file:
        server = Server(int(file.read()), instance_uuid)
    try:
        _check_opened(server, [pid_file, *(image.path for image in images)])
    except BaseException:
        server.stop()
        raise
    LOG.debug('qemu-nbd, process %(pid)s, serves %(disk)s on %(socket)s for '
              'instance %(instance)s',
              {'pid': server.pid, 'disk': disk.path, 'socket': socket,
               'instance': instance_uuid})
    return server


def _opened_by_nova(
    disk: planning.RootDisk,
) -> contextlib.AbstractContextManager[None]:
    # Nova creates files that its user may read. A block device may belong to
    # a group that Nova's user is not in.
    return (ownership.lent(disk.path, os.R_OK) if disk.storage == 'block'
            else contextlib.nullcontext())


def _check_opened(server: Server, paths: Sequence[str]) -> None:
    """Check that a server has opened no other file.

    A QEMU of the same user could have written a header between its check and
    the moment when qemu-nbd read it.

    :raises UnexpectedHeader: it has opened another one
    """
    expected = {_identity(path) for path in paths}
    for descriptor in pathlib.Path(f'/proc/{server.pid}/fd').iterdir():
        try:
            is_disk = descriptor.is_file() or descriptor.is_block_device()
            if is_disk and _identity(descriptor) not in expected:
                raise exception.UnexpectedHeader(
                    path=paths[1],
                    reason=f'changed while it was opened, and has led to '
                           f'{descriptor.readlink()}')
        except FileNotFoundError:
            continue  # closed in this moment


def _identity(path: str | pathlib.Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _frozen_node(images: Sequence[image_header.Image],
                 snapshot: str | None) -> image_opts.Node:
    node = image_opts.chain(images)
    if snapshot is None:
        # By itself qemu-nbd reads a raw disk even while a guest writes to it.
        # The blkdebug driver injects no error here: it forbids other writers,
        # for a raw disk as the qcow2 driver does for a qcow2.
        return {'driver': 'blkdebug', 'unshare-child-perms': ['write'],
                'image': node}
    return {**node, 'force-share': True}
