# SPDX-License-Identifier: Apache-2.0
"""A Ceph cluster of one host, without systemd and ceph-volume.

The OSD keeps its objects in a sparse file, so neither a device nor
device-mapper is needed. All files are in one directory, none in /etc/ceph.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import time
from typing import Any
import uuid

from devcloud import errors
from devcloud import libvirtd
from devcloud import process
from devcloud import shell
from devcloud import state as cloud_state

#: The daemons run as this user of Debian's packages.
USER = 'ceph'

#: Disks of guests, and images of Glance.
POOLS = ('vms', 'images')

#: The rights of the cloud's users on OSDs: no more than they need. Nova writes
#: to Glance's pool when it makes an image inside Ceph.
USERS = {
    'nova': 'profile rbd pool=vms, profile rbd pool=images',
    'glance': 'profile rbd pool=images',
}

#: libvirt's secret with the key of Nova's user. The libvirtd is the cloud's
#: own, so its id can be the same in all clouds.
SECRET = '6d5e7f6c-1c2b-4f0e-9d52-5ce1c0de1b0d'

SECRET_XML = f"""\
<secret ephemeral='no' private='yes'>
  <uuid>{SECRET}</uuid>
  <usage type='ceph'><name>client.nova secret</name></usage>
</secret>
"""

#: Size of the OSD in bytes. Its file is sparse, but does not shrink.
OSD_SIZE = 16 * 1024 ** 3

#: Seconds for each step of the start, on a busy machine.
START_TIMEOUT = 120

#: Seconds until a command must have found the monitor.
CONNECT_TIMEOUT = 10

# NOTE: the section of clients overrides only what must not hold for daemons: a
# client runs as a user that may not write to the daemons' directories.
CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]
public addr = 127.0.0.1
ms bind ipv6 = false
auth allow insecure global id reclaim = false
keyring = {directory}/$name.keyring
run dir = {directory}/run
log to file = false
log to stderr = false
err to stderr = true
# There is one copy of each object, because there is one OSD.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
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

[mgr]
mgr data = {directory}/mgr
keyring = {directory}/mgr/keyring
# All modules that can be turned off are.
mgr initial modules =

[osd]
osd data = {directory}/osd
keyring = {directory}/osd/keyring
osd objectstore = bluestore
osd class update on start = false
# Without it, the monitor would wait for reports of other OSDs.
osd fast shutdown notify mon = true
osd memory target autotune = false
osd memory target = 939524096
bluestore cache autotune = false
bluestore cache size = 67108864
bluestore block size = {osd_size}
bluestore fsck on mount = false
osd max scrubs = 0
# It ends after five times otherwise, see resume_osd().
osd max markdown count = 1000
"""

# Seconds that the OSD may be suspended without losing its read leases. They
# last 16 seconds (osd_heartbeat_grace * osd_pool_default_read_lease_ratio) and
# are renewed every 8.
SHORT_SUSPENSION = 8


class Cluster:
    """The daemons of a cluster: a monitor, an OSD and, if wanted, a manager.

    :param directory: for all their files; the users of its clients must
        be able to enter it
    :param logs: directory for their logs
    :param ports: ports of the monitor, for Ceph's protocols 2 and 1
    :param users: the rights on OSDs of each user
    :param group: group that may read the keyrings of these users; None:
        everyone may read all keyrings
    :param has_manager: whether to start a manager: Nova needs it, librbd does
        not
    """

    def __init__(self, directory: pathlib.Path, logs: pathlib.Path,
                 ports: tuple[int, int], users: Mapping[str, str], *,
                 group: str | None = None, has_manager: bool = True) -> None:
        self.directory = directory
        self.ports = ports
        self.users = users
        self.group = group
        self.configuration = directory / 'ceph.conf'
        self.monitor, self.manager, self.osd = (
            process.Daemon(name, directory / f'{name}.json',
                           logs / f'{name}.log')
            for name in ('ceph-mon', 'ceph-mgr', 'ceph-osd'))
        self._suspended: float | None = None
        self.daemons = [self.monitor, self.osd]
        if has_manager:
            self.daemons.insert(1, self.manager)

    @property
    def fsid(self) -> str:
        """Return the id of the cluster."""
        return self._identifier('fsid')

    def keyring(self, user: str) -> pathlib.Path:
        """Return the path of a user's keyring."""
        return self.directory / f'client.{user}.keyring'

    def start(self) -> None:
        """Start the daemons, unless they run, and create what is missing.

        :raises: CloudError with the end of a daemon's log
        """
        self._own(self.directory / 'run')
        if shell.write(self.configuration, CONFIGURATION.format(
                fsid=self.fsid, directory=self.directory, ports=self.ports,
                osd_size=OSD_SIZE)):
            self.stop()
        # A test that was killed may have left it suspended.
        self.resume_osd()
        self._start_monitor()
        if self.manager in self.daemons:
            self._start_manager()
        self.start_osd()
        known = self.ceph('osd', 'pool', 'ls')
        for pool in POOLS:
            if pool not in known:
                self.ceph('osd', 'pool', 'create', pool, '8')
            # It waits until the pool can be written.
            self.rbd('pool', 'init', pool)
        for user, rights in self.users.items():
            self.allow(user, rights)
        if self.manager in self.daemons:
            self._await(self.manager, self._is_counted)

    def stop(self) -> None:
        """Stop the daemons. Clients must have ended."""
        self.resume_osd()
        for daemon in reversed(self.daemons):
            daemon.stop()

    def ceph(self, *words: str | os.PathLike, user: str = 'admin') -> Any:
        """Run a command, as administrator or as another user.

        :returns: the JSON of its output, or None if it has none
        """
        output = self._run('ceph', *self._as_client(user),
                           '--connect-timeout', str(CONNECT_TIMEOUT),
                           '--format', 'json', *words)
        return json.loads(output) if output.strip() else None

    def rbd(self, *words: str | os.PathLike, user: str = 'admin') -> str:
        """Run rbd, as administrator or as another user.

        :returns: its output
        """
        return self._run('rbd', *self._as_client(user), *words)

    def allow(self, user: str, rights: str) -> None:
        """Create a user, unless it exists, and replace its rights.

        :param user: its name, without `client.`
        :param rights: its rights on OSDs
        """
        name = f'client.{user}'
        if not self.keyring(user).exists():
            self._write_keyring(user, self._run(
                'ceph', *self._as_client('admin'), 'auth', 'get-or-create',
                name))
        self.ceph('auth', 'caps', name, 'mon', 'profile rbd', 'osd', rights)

    def key(self, user: str) -> str:
        """Return the key of a user, in base64."""
        found = re.search(r'key = (\S+)', self.keyring(user).read_text())
        if not found:
            raise errors.CloudError(f'{self.keyring(user)} has no key')
        return found[1]

    def start_osd(self) -> None:
        """Start the OSD, unless it runs; create it first if it is missing."""
        home = self.directory / 'osd'
        if not (home / 'made').exists():
            self._make_osd(home)
        if not self.osd.is_running():
            self._start(self.osd, '0')
        self._await(self.osd, lambda: self.ceph('osd', 'stat')['num_up_osds'])

    def stop_osd(self) -> None:
        """Stop the OSD. Reads and writes wait until it is started again."""
        self.osd.stop()

    def suspend_osd(self) -> None:
        """Make the OSD hang: its connections stay open."""
        self._suspended = time.monotonic()
        self._signal_osd(signal.SIGSTOP)

    def resume_osd(self) -> None:
        """Let the OSD continue after suspend_osd()."""
        self._signal_osd(signal.SIGCONT)
        suspended, self._suspended = self._suspended, None
        if (suspended is not None and
                time.monotonic() - suspended > SHORT_SUSPENSION):
            # Its read leases have run out. An OSD without others does not get
            # them again (seen with Ceph 16: all requests are "waiting for
            # readable") before it joins the cluster again.
            self.ceph('osd', 'down', '0')

    def _signal_osd(self, number: int) -> None:
        identity = self.osd.identity()
        if identity is not None:
            identity.signal(number)

    def _start_monitor(self) -> None:
        home = self.directory / 'mon'
        if not (home / 'made').exists():
            self._make_monitor(home)
        if not self.monitor.is_running():
            self._start(self.monitor, 'a')
        self._await(self.monitor, lambda: self.ceph('mon', 'stat')['quorum'])

    def _make_monitor(self, home: pathlib.Path) -> None:
        self._own(home, is_new=True)
        for stale in self.directory.glob('*.keyring'):
            stale.unlink()
        # Not in its own directory, which must be empty.
        scratch = self.directory / 'scratch'
        self._own(scratch, is_new=True)
        keyring, monmap = scratch / 'keyring', scratch / 'monmap'
        ports = self.ports
        self._run(
            'ceph-authtool', '--create-keyring', keyring, '--gen-key', '-n',
            'client.admin', '--cap', 'mon', 'allow *', '--cap', 'osd',
            'allow *', '--cap', 'mgr', 'allow *')
        self._write_keyring('admin', keyring.read_text())
        self._run('ceph-authtool', keyring, '--gen-key', '-n', 'mon.',
                  '--cap', 'mon', 'allow *')
        self._run('monmaptool', '--create', '--fsid', self.fsid, '--addv',
                  'a', f'[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]',
                  monmap)
        shutil.chown(keyring, USER, USER)
        self._run('ceph-mon', *self._options('a'), '--mkfs', '--monmap',
                  monmap, '--keyring', keyring, user=USER)
        shutil.rmtree(scratch)
        (home / 'made').touch()

    def _start_manager(self) -> None:
        keyring = self.directory / 'mgr' / 'keyring'
        if not keyring.exists():
            self._own(keyring.parent)
            shell.write(keyring, self._run(
                'ceph', *self._as_client('admin'), 'auth', 'get-or-create',
                'mgr.x', 'mon', 'allow profile mgr', 'osd', 'allow *'),
                mode=0o640, group=USER)
        if not self.manager.is_running():
            self._start(self.manager, 'x')

    def _is_counted(self) -> bool:
        """Return whether the manager has reported the sizes of the pools."""
        counted = {pool['name'] for pool in self.ceph('df')['pools']}
        return (self.ceph('mgr', 'stat')['available']
                and counted.issuperset(POOLS))

    def _make_osd(self, home: pathlib.Path) -> None:
        self._own(home, is_new=True)
        identifier = self._identifier('osd-id')
        self.ceph('osd', 'new', identifier)
        self._run('ceph-osd', *self._options('0'), '--mkfs', '--mkkey',
                  '--no-mon-config', '--osd-uuid', identifier, user=USER)
        # An interrupted run may have added another key.
        self.ceph('auth', 'rm', 'osd.0')
        self.ceph('auth', 'add', 'osd.0', 'osd', 'allow *', 'mon',
                  'allow profile osd', '-i', home / 'keyring')
        (home / 'made').touch()

    def _start(self, daemon: process.Daemon, name: str) -> None:
        daemon.start([daemon.name, *map(str, self._options(name)), '-f'],
                     user=USER, env={'CEPH_ARGS': ''})

    def _await(self, daemon: process.Daemon, ready: Any) -> None:
        """Wait until a daemon is ready; commands may fail until then."""
        def is_ready() -> object:
            with contextlib.suppress(errors.CommandFailed):
                return ready()
            return False

        daemon.await_ready(is_ready, START_TIMEOUT)

    def _options(self, name: str) -> list[str | os.PathLike]:
        return ['--conf', self.configuration, '-i', name]

    def _as_client(self, user: str) -> list[str | os.PathLike]:
        return ['--conf', self.configuration, '--id', user]

    def _run(self, *argv: str | os.PathLike, user: str | None = None) -> str:
        return shell.run(argv, timeout=START_TIMEOUT, env={'CEPH_ARGS': ''},
                         user=user, group=user)

    def _identifier(self, name: str) -> str:
        """Return a UUID, created at the first call."""
        file = self.directory / name
        if not file.exists():
            shell.write(file, str(uuid.uuid4()))
        return file.read_text()

    def _own(self, directory: pathlib.Path, is_new: bool = False) -> None:
        """Create a directory for Ceph's user.

        :param is_new: remove what an interrupted run has left
        """
        if is_new:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        shutil.chown(directory, USER, USER)

    def _write_keyring(self, user: str, text: str) -> None:
        if self.group is None:
            shell.write(self.keyring(user), text)
        elif user == 'admin':
            shell.write(self.keyring(user), text, mode=0o600)
        else:
            shell.write(self.keyring(user), text, mode=0o640,
                        group=self.group)


def cluster(state: cloud_state.State) -> Cluster:
    """Return the cluster of the cloud."""
    ports = cloud_state.PORTS
    return Cluster(state.ceph, state.logs,
                   (ports['ceph-mon'], ports['ceph-mon-v1']), USERS,
                   group=cloud_state.USER)


def set_secret(state: cloud_state.State, host: libvirtd.Libvirtd) -> None:
    """Store the key of Nova's user in libvirt, for the guests' disks."""
    definition = state.ceph / 'secret.xml'
    shell.write(definition, SECRET_XML)
    key = state.ceph / 'client.nova.key'
    shell.write(key, cluster(state).key('nova'), mode=0o600)
    host.virsh('secret-define', str(definition))
    # The file already has the key in base64, as `secret-set-value` expects.
    host.virsh('secret-set-value', SECRET, '--file', str(key))
