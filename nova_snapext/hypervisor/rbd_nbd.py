# SPDX-License-Identifier: Apache-2.0
"""qemu-nbd, which serves a snapshot of an RBD image."""

from __future__ import annotations

from oslo_concurrency import processutils
from oslo_log import log as logging

from nova_snapext import conf
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import image_opts
from nova_snapext.hypervisor import qemu_nbd

CONF = conf.CONF
LOG = logging.getLogger(__name__)


def serve(snapshot: ceph.SnapSpec, export: str, socket: str, pid_file: str,
          instance_uuid: str) -> qemu_nbd.Server:
    """Serve a snapshot read-only, as Nova's user.

    The snapshot has no header that a guest could have written, and nobody can
    write to it.

    :param export: name of the export
    :param socket: path of the Unix socket to create
    :param pid_file: path of the file to write qemu-nbd's process id to
    :raises ProcessExecutionError: qemu-nbd can't open the snapshot, or has no
        driver for RBD
    :raises OSError: qemu-nbd can't be run, or ended immediately
    :raises TimeoutExpired: Ceph does not respond. If it responds later,
        qemu-nbd ends, because its directory is gone
    """
    node = {'driver': 'raw', 'file': ceph.qemu_options(snapshot)}
    processutils.execute(
        'qemu-nbd', '--read-only', '--fork',
        '--shared', str(qemu_nbd.MAX_CLIENTS), '--pid-file', pid_file,
        '--socket', socket, '--export-name', export,
        image_opts.filename(node), timeout=CONF.snapext.operation_timeout)
    with open(pid_file) as file:
        server = qemu_nbd.Server(int(file.read()), instance_uuid)
    LOG.debug('qemu-nbd, process %(pid)s, serves %(snapshot)s on %(socket)s '
              'for instance %(instance)s',
              {'pid': server.pid, 'snapshot': snapshot, 'socket': socket,
               'instance': instance_uuid})
    return server
