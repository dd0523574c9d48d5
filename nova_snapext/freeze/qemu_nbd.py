# SPDX-License-Identifier: Apache-2.0
"""qemu-nbd, serving a disk that no guest uses, or a snapshot within it."""

from __future__ import annotations

from collections.abc import Iterator
import os
import select
import signal
import typing as ty

import nova.privsep
from nova.virt.libvirt import driver as libvirt_driver
from oslo_concurrency import processutils
import psutil

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext import journal
from nova_snapext import plan as planning

CONF = conf.CONF

PROTOCOL_DRIVERS = {'file': 'file', 'block': 'host_device'}


class Server:
    """A running qemu-nbd.

    It also ends by itself when its clients leave, as when nova-compute dies.
    """

    def __init__(self, pid: int, instance_uuid: str):
        self._pid = pid
        self._instance = instance_uuid
        # Unlike the number, the descriptor never comes to mean another one.
        self._pidfd = os.pidfd_open(pid)

    def end(self) -> None:
        """End it, and wait until it has ended.

        :raises ReleaseFailed: it has not, not even when killed
        """
        try:
            for signal_number in (signal.SIGTERM, signal.SIGKILL):
                if self._ended_by(signal_number):
                    return
        finally:
            os.close(self._pidfd)
        raise exception.ReleaseFailed(
            instance=self._instance,
            reason=f'qemu-nbd, process {self._pid}, does not end')

    def _ended_by(self, signal_number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, signal_number)
        except ProcessLookupError:
            return True
        ended, _, _ = select.select(
            [self._pidfd], [], [], CONF.snapext.job_timeout)
        return bool(ended)


class Export(journal.Resource):
    """A disk that is served on a socket, for the time of one snapshot."""

    kind = 'qemu-nbd'

    def __init__(self, instance_uuid: str, socket: str):
        self._instance = instance_uuid
        self._socket = socket
        self._server: Server | None = None

    def record(self) -> dict[str, ty.Any]:
        return {'socket': self._socket}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any]) -> Export:
        return cls(plan.instance.uuid, **record)

    def serve(self, disk: planning.RootDisk,
              directory: snapshot_directory.Directory,
              snapshot: str | None = None) -> None:
        """Begin, as :func:`serve` does."""
        self._server = serve(disk, directory, self._instance, snapshot)

    def release(self) -> None:
        servers = ([self._server] if self._server is not None
                   else _servers_on(self._socket, self._instance))
        for server in servers:
            server.end()


def _servers_on(socket: str, instance_uuid: str) -> Iterator[Server]:
    """Find servers, whoever has started them."""
    for process in psutil.process_iter(['name', 'cmdline']):
        words = process.info['cmdline'] or ()
        if process.info['name'] == 'qemu-nbd' and socket in words:
            try:
                yield Server(process.pid, instance_uuid)
            except ProcessLookupError:
                continue  # it has just ended


def serve(disk: planning.RootDisk, directory: snapshot_directory.Directory,
          instance_uuid: str, snapshot: str | None = None) -> Server:
    """Serve a disk read-only on the socket of a directory.

    :param snapshot: name of the one within the disk to serve instead of what
        the disk holds now; then a guest may use the disk meanwhile
    :raises ProcessExecutionError: qemu-nbd could not open the disk; a guest
        that is running has it locked
    :raises OSError: qemu-nbd can't be run, or ended at once
    :raises TimeoutExpired: the disk's storage does not answer. Should it do
        so later, qemu-nbd ends, as it finds its directory gone.
    """
    command = _command(disk, directory, snapshot)
    if disk.storage == 'block' and not os.access(disk.path, os.R_OK):
        _serve_block_device(disk.path, command, os.geteuid(), os.getegid())
    else:
        processutils.execute(*command, timeout=CONF.snapext.job_timeout)
    with open(directory.pid_file) as pid_file:
        return Server(int(pid_file.read()), instance_uuid)


def _command(disk: planning.RootDisk,
             directory: snapshot_directory.Directory,
             snapshot: str | None) -> list[str]:
    # Given as options, a path is never taken for a protocol's URL; a comma in
    # it is doubled, as QEMU's option syntax wants.
    path = disk.path.replace(',', ',,')
    nodes = {'driver': disk.format,
             'file.driver': PROTOCOL_DRIVERS[disk.storage],
             'file.filename': path}
    if snapshot is None:
        # By itself qemu-nbd reads a raw disk even while a guest writes to it.
        # The blkdebug driver injects no error here: it is what can claim that
        # nobody else writes, for a raw disk as qcow2's own driver does for a
        # qcow2.
        nodes = {'driver': 'blkdebug', 'unshare-child-perms.0': 'write',
                 **{f'image.{key}': value for key, value in nodes.items()}}
        options = []
    else:
        nodes['force-share'] = 'on'
        options = ['--load-snapshot', f'snapshot.name={snapshot}']
    # Two clients: beside our own, the qemu-img of a format that needs one.
    return ['qemu-nbd', '--read-only', '--fork', '--shared', '2',
            '--pid-file', directory.pid_file,
            '--socket', directory.socket,
            '--export-name', disk.target,
            *options,
            '--image-opts', ','.join(f'{key}={value}'
                                     for key, value in nodes.items())]


@nova.privsep.sys_admin_pctxt.entrypoint
def _serve_block_device(device: str, command: list[str], uid: int,
                        gid: int) -> None:
    """Run qemu-nbd as Nova's user, in the group that may read a device.

    Not as root: nothing here needs more than to open the device, and the
    socket has to be Nova's.
    """
    if command[0] != 'qemu-nbd':
        raise ValueError(f'{command[0]} is not qemu-nbd')
    processutils.execute(
        'setpriv', f'--reuid={uid}', f'--regid={gid}',
        f'--groups={os.stat(device).st_gid}', '--inh-caps=-all',
        *command, timeout=CONF.snapext.job_timeout)
