# SPDX-License-Identifier: Apache-2.0
"""A Ceph cluster of one monitor and one OSD, in a directory of its own.

Without systemd and ceph-volume: the OSD keeps its objects in a sparse file.
There is no manager, which librbd does not need. The daemons are children of
this process, and are ended by their process ids.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import uuid

from devcloud import wait

PROGRAMS = ('ceph', 'ceph-authtool', 'ceph-mon', 'ceph-osd', 'monmaptool',
            'rbd')

#: Users, with their rights on OSDs: all that Nova may need, what clones of
#: Glance's images need, and what flat images need.
USERS = {
    'nova': 'profile rbd pool=vms, profile rbd pool=images',
    'reader': 'profile rbd pool=vms, profile rbd-read-only pool=images',
    'vms': 'profile rbd pool=vms',
}
POOLS = ('vms', 'images')

OSD_SIZE = 8 * 1024 ** 3

# Seconds after which an OSD forgets a client that was killed, and some more:
# osd_client_watch_timeout is 30.
FORGET_TIMEOUT = 60

# Seconds for each step of the start, on a busy machine.
TIMEOUT = 120

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
public addr = 127.0.0.1
ms bind ipv6 = false
auth allow insecure global id reclaim = false
keyring = {directory}/$name.keyring
run dir = {directory}/run
log to file = false
log to stderr = false
err to stderr = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
# The file system of the directory may be nearly full.
mon data avail warn = 2
mon data avail crit = 1

[client]
admin socket =

[mon]
mon data = {directory}/mon
keyring = {directory}/mon/keyring
mon cluster log to file = false

[osd]
osd data = {directory}/osd
keyring = {directory}/osd/keyring
osd objectstore = bluestore
osd class update on start = false
osd memory target autotune = false
osd memory target = 939524096
bluestore cache autotune = false
bluestore cache size = 67108864
bluestore block size = {osd_size}
bluestore fsck on mount = false
osd max scrubs = 0
"""


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


class Cluster:
    """The cluster, while the context is not left.

    :ivar configuration: path of ceph.conf
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.configuration = self.directory / 'ceph.conf'
        self._daemons = {}

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            self._start()
            stack.pop_all()
        return self

    def __exit__(self, *_exc):
        self.stop()

    def ceph(self, *words):
        """Run an administrator's command, and return its JSON output."""
        output = self._run('ceph', '--conf', str(self.configuration),
                           '--format', 'json', *words)
        return json.loads(output) if output.strip() else None

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

    def create(self, spec, size, order=22):
        """Create an empty image.

        :param order: logarithm of the size of an object, in bytes
        """
        import rbd
        pool, _, name = str(spec).partition('/')
        with self.pool(pool) as opened:
            rbd.RBD().create(opened, name, size, order=order,
                             old_format=False)

    def clone(self, parent, spec):
        """Clone an image, at a new protected snapshot called ``snap``."""
        import rbd
        with self.image(parent) as image:
            image.create_snap('snap')
            image.protect_snap('snap')
        parent_pool, _, parent_name = str(parent).partition('/')
        pool, _, name = str(spec).partition('/')
        with self.pool(parent_pool) as source, self.pool(pool) as target:
            rbd.RBD().clone(source, parent_name, 'snap', target, name)

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
        while left := [f'{pool}/{name}' for pool in POOLS
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

    def hang(self):
        """Stop the OSD, without an end of its connections."""
        self._daemons['osd'].send_signal(signal.SIGSTOP)

    def respond(self):
        """Let the OSD go on."""
        self._daemons['osd'].send_signal(signal.SIGCONT)

    def stop(self):
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGCONT)
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def _start(self):
        self.fsid = str(uuid.uuid4())
        v1, v2 = _free_ports(2)
        for name in ('mon', 'osd', 'run'):
            (self.directory / name).mkdir()
        self.configuration.write_text(CONFIGURATION.format(
            directory=self.directory, fsid=self.fsid, v1=v1, v2=v2,
            osd_size=OSD_SIZE))
        self._start_monitor(v1, v2)
        self._start_osd()
        for pool in POOLS:
            self.ceph('osd', 'pool', 'create', pool, '8')
            # It waits for the pool to be active.
            self._run('rbd', '--conf', self.configuration, 'pool', 'init',
                      pool)
        for user, rights in USERS.items():
            self._keyring(f'client.{user}', 'mon', 'profile rbd',
                          'osd', rights)

    def _start_monitor(self, v1, v2):
        admin = self.directory / 'client.admin.keyring'
        monitor = self.directory / 'mon.keyring'
        self._run('ceph-authtool', '--create-keyring', admin, '--gen-key',
                  '-n', 'client.admin', '--cap', 'mon', 'allow *',
                  '--cap', 'osd', 'allow *', '--cap', 'mgr', 'allow *')
        self._run('ceph-authtool', '--create-keyring', monitor, '--gen-key',
                  '-n', 'mon.', '--cap', 'mon', 'allow *',
                  '--import-keyring', admin)
        # QEMU's user reads it.
        admin.chmod(0o644)
        monmap = self.directory / 'monmap'
        self._run('monmaptool', '--create', '--fsid', self.fsid, '--addv',
                  'a', f'[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]', monmap)
        self._run('ceph-mon', *self._options('a'), '--mkfs',
                  '--monmap', monmap, '--keyring', monitor)
        self._daemon('mon', 'ceph-mon', 'a')
        self._await('monitor', lambda: self.ceph('mon', 'stat'))

    def _start_osd(self):
        identity = str(uuid.uuid4())
        self.ceph('osd', 'new', identity)
        self._run('ceph-osd', *self._options('0'), '--mkfs', '--mkkey',
                  '--no-mon-config',
                  '--osd-uuid', identity)
        self.ceph('auth', 'add', 'osd.0', 'osd', 'allow *',
                  'mon', 'allow profile osd', '-i',
                  self.directory / 'osd' / 'keyring')
        self._daemon('osd', 'ceph-osd', '0')
        self._await('OSD', lambda: self.ceph('osd', 'stat')['num_up_osds'])

    def _options(self, name):
        return ['--conf', self.configuration, '-i', name]

    def _daemon(self, kind, program, name):
        log = (self.directory / f'{kind}.log').open('ab')
        with log:
            self._daemons[kind] = subprocess.Popen(
                [program, *self._options(name), '-f'],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _keyring(self, user, *rights):
        path = self.directory / f'{user}.keyring'
        self._run('ceph', '--conf', self.configuration, 'auth',
                  'get-or-create', user, *rights, '-o', path)
        path.chmod(0o644)

    def _await(self, what, is_ready):
        def is_ready_now():
            for kind, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    raise RuntimeError(
                        f'{kind} has ended: '
                        f'{wait.tail(self.directory / f"{kind}.log")}')
            with contextlib.suppress(subprocess.SubprocessError):
                return is_ready()

        wait.until(what, is_ready_now, TIMEOUT)

    @staticmethod
    def _run(*command):
        done = subprocess.run(
            [str(word) for word in command], timeout=TIMEOUT,
            capture_output=True, text=True,
            env=os.environ | {'CEPH_ARGS': ''})
        if done.returncode:
            raise subprocess.CalledProcessError(
                done.returncode, command, done.stdout, done.stderr)
        return done.stdout


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket())
                   for _ in range(count)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]
