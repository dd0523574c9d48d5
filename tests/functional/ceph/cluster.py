# SPDX-License-Identifier: Apache-2.0
"""A Ceph cluster of one monitor and one OSD, in a directory of its own.

There is no manager, which librbd does not need.
"""

import contextlib
import pathlib
import shutil
import signal
import socket

from devcloud import ceph
from devcloud import wait

PROGRAMS = ('ceph', 'ceph-authtool', 'ceph-mon', 'ceph-osd', 'monmaptool',
            'rbd')

#: Users, with their rights on OSDs: all that Nova may need, what clones of
#: Glance's images need, what flat images need, and what images of disks
#: outside Ceph need.
USERS = {
    'nova': 'profile rbd pool=vms, profile rbd pool=images',
    'reader': 'profile rbd pool=vms, profile rbd-read-only pool=images',
    'vms': 'profile rbd pool=vms',
    'images': 'profile rbd pool=images',
}

# Seconds after which an OSD forgets a client that was killed, and some more:
# osd_client_watch_timeout is 30.
FORGET_TIMEOUT = 60


def missing():
    """Return why there can be no cluster here; None if there can."""
    programs = [program for program in PROGRAMS if not shutil.which(program)]
    if programs:
        return (f'{", ".join(programs)} not installed: packages ceph-mon, '
                f'ceph-osd and ceph-common')
    try:
        import rados  # noqa: F401
        import rbd  # noqa: F401
    except ImportError as error:
        return f'{error}: packages python3-rbd and python3-rados'
    return None


class Cluster(ceph.Cluster):
    """The cluster, while the context is not left, and what is in it."""

    def __init__(self, directory):
        directory = pathlib.Path(directory)
        super().__init__(directory, directory, _free_ports(2), USERS,
                         has_manager=False)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_exc):
        self.stop()

    def suspend(self, daemon):
        """Make a daemon hang: its connections stay open."""
        if daemon is self.osd:
            self.suspend_osd()
        else:
            daemon.identity().signal(signal.SIGSTOP)

    def resume(self):
        """Let all daemons go on."""
        for daemon in self.daemons:
            daemon.identity().signal(signal.SIGCONT)
        self.resume_osd()

    @contextlib.contextmanager
    def pool(self, name):
        """Open a pool as the administrator, for librbd."""
        import rados
        with rados.Rados(conffile=str(self.configuration)) as client, \
                client.open_ioctx(name) as pool:
            yield pool

    @contextlib.contextmanager
    def image(self, spec, snapshot=None):
        """Open an image as the administrator.

        :param spec: pool and name, as ``vms/root``
        """
        import rbd
        pool, _, name = str(spec).partition('/')
        with self.pool(pool) as opened, \
                rbd.Image(opened, name, snapshot=snapshot) as image:
            yield image

    def images(self, pool):
        """List the names of the images in a pool."""
        import rbd
        with self.pool(pool) as opened:
            return rbd.RBD().list(opened)

    def create(self, spec, size, order=22, features=None):
        """Create an empty image.

        :param order: logarithm of the size of an object, in bytes
        :param features: of librbd, a number; None for its defaults
        """
        import rbd
        pool, _, name = str(spec).partition('/')
        with self.pool(pool) as opened:
            rbd.RBD().create(opened, name, size, order=order,
                             old_format=False, features=features)

    def clone(self, parent, spec, features=None):
        """Clone an image, at a new protected snapshot called ``snap``."""
        import rbd
        with self.image(parent) as image:
            image.create_snap('snap')
            image.protect_snap('snap')
        parent_pool, _, parent_name = str(parent).partition('/')
        pool, _, name = str(spec).partition('/')
        with self.pool(parent_pool) as source, self.pool(pool) as target:
            rbd.RBD().clone(source, parent_name, 'snap', target, name,
                            features=features)

    def remove(self, spec):
        """Remove an image that has no snapshot.

        As Nova does, it waits for Ceph to forget users that were killed.
        """
        import rbd
        pool, _, name = str(spec).partition('/')

        def is_removed():
            with contextlib.suppress(rbd.ImageBusy), \
                    self.pool(pool) as opened:
                rbd.RBD().remove(opened, name)
                return True

        wait.until(f'{spec} is removed', is_removed, FORGET_TIMEOUT)

    def purge(self):
        """Remove all images and snapshots, clones before their parents."""
        import rbd
        while left := [f'{pool}/{name}' for pool in ceph.POOLS
                       for name in self.images(pool)]:
            done = len(left)
            for spec in left:
                try:
                    self._remove_with_snapshots(spec)
                except rbd.ImageBusy:
                    done -= 1
            if not done:
                raise RuntimeError(f'{left} can not be removed')

    def _remove_with_snapshots(self, spec):
        with self.image(spec) as image:
            for snapshot in list(image.list_snaps()):
                if image.is_protected_snap(snapshot['name']):
                    image.unprotect_snap(snapshot['name'])
                image.remove_snap(snapshot['name'])
        self.remove(spec)


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket())
                   for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]
