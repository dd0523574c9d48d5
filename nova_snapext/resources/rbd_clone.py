# SPDX-License-Identifier: Apache-2.0
"""A clone of a disk's snapshot that becomes an image in Glance."""

from __future__ import annotations

from collections.abc import Callable

from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import plan as planning
from nova_snapext.resources import rbd_image

LOG = logging.getLogger(__name__)


class RbdClone(rbd_image.RbdImage):
    """A clone of an RBD snapshot that becomes an image in Glance.

    The snapshot can't be removed as long as the clone needs its data.
    """

    kind = 'RBD clone'
    consequence = (' Until it is removed, the disk\'s snapshot and the disk '
                   'can\'t be removed either.')

    def __init__(self, target: planning.Target, spec: ceph.ImageSpec,
                 seen_by_nova: bool):
        super().__init__(target, spec, seen_by_nova)
        self._flatten: ceph.Flatten | None = None

    def create(self, snapshot: ceph.SnapSpec) -> None:
        """Clone a snapshot, which becomes protected.

        :raises CephError: it can't be cloned
        """
        ceph.protect(snapshot)
        try:
            ceph.clone(snapshot, self.spec)
        except exception.CephError as error:
            self.not_created(error)
            raise
        LOG.debug('%(snapshot)s is cloned to %(image)s',
                  {'snapshot': snapshot, 'image': self.spec},
                  instance=self._target.instance)

    def flatten(self, token: cancel.CancelToken,
                on_progress: Callable[[int, int], None]) -> None:
        """Copy all data into the clone, which then needs the snapshot no more.

        :param token: its cancellation ends the copy, with the cause
        :param on_progress: called with the number of objects that are done,
            and of all, in a thread of librbd
        :raises CephError: it can't be copied
        """
        self._flatten = ceph.Flatten(self.spec, on_progress)
        self._flatten.run(token)
        LOG.debug('%s is flattened', self.spec,
                  instance=self._target.instance)

    def abort(self) -> None:
        if self._flatten is not None:
            self._flatten.cancel()
