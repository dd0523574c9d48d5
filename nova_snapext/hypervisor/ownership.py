# SPDX-License-Identifier: Apache-2.0
"""Images that Nova's user may not open, lent to it.

libvirt changes the owner of a disk when its guest starts, and restores it when
the guest ends; where it can't, the disk belongs to root afterwards. QEMU's
programs never run as root: a privileged step changes the owner to Nova's user,
and back when the program has opened the image, or has ended.

A crash in between leaves the image to Nova's user. This does no harm: libvirt
changes the owner at the next start in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os

from oslo_log import log as logging

from nova_snapext.hypervisor import privsep

LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def lent(path: str, mode: int) -> Iterator[None]:
    """Lend an image to Nova's user, who may not open it, for a while.

    Does nothing if the user may open it.

    :param mode: os.R_OK, os.W_OK or both
    :raises OSError: it does not exist, or its owner can't be changed, as on
        NFS with root_squash
    """
    if os.access(path, mode):
        yield
        return
    # A logical volume is a link of udev's. privsep follows none.
    path = os.path.realpath(path)
    owner, user = os.stat(path), os.geteuid()
    LOG.debug('Lending %(path)s of user %(owner)d to user %(user)d',
              {'path': path, 'owner': owner.st_uid, 'user': user})
    privsep.chown(path, user)
    try:
        yield
    finally:
        # If somebody starts the guest now, libvirt has changed the owner.
        if os.stat(path).st_uid == user:
            privsep.chown(path, owner.st_uid, owner.st_gid)
