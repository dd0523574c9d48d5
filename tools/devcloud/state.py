# SPDX-License-Identifier: Apache-2.0
"""The paths, ports and secrets of the cloud."""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import secrets

from devcloud import errors
from devcloud import shell

HOST = '127.0.0.1'
REGION = 'RegionOne'

#: All OpenStack services run as this user.
USER = 'nova'

#: Ports. They differ from the usual ones, to avoid conflicts.
PORTS = {
    'epmd': 18369,
    'erlang': 18671,
    'rabbitmq': 18672,
    'mariadb': 18306,
    'keystone': 18500,
    'glance': 18292,
    'placement': 18778,
    'neutron': 18696,
    'nova-api': 18774,
    'horizon': 18080,
    'ceph-mon': 18300,
    'ceph-mon-v1': 18789,
}

#: Names of the cloud's secrets: for database, message queue, users, and the
#: sessions of Horizon.
SECRETS = ('database', 'rabbitmq', 'erlang_cookie', 'service', 'admin',
           'demo', 'horizon')

#: The checkout of this file.
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


def url(service: str, path: str = '') -> str:
    """Return the address of an HTTP service."""
    return f'http://{HOST}:{PORTS[service]}{path}'


@dataclasses.dataclass(frozen=True)
class State:
    """The state directory."""

    root: pathlib.Path

    @classmethod
    def default(cls) -> 'State':
        """Return the directory in SNAPEXT_CLOUD_DIR, or the usual one."""
        path = os.environ.get('SNAPEXT_CLOUD_DIR') or '/var/lib/snapext-cloud'
        return cls(pathlib.Path(path).absolute())

    @property
    def venv(self) -> pathlib.Path:
        return self.root / 'venv'

    @property
    def etc(self) -> pathlib.Path:
        return self.root / 'etc'

    @property
    def logs(self) -> pathlib.Path:
        return self.root / 'log'

    @property
    def run(self) -> pathlib.Path:
        return self.root / 'run'

    @property
    def nova(self) -> pathlib.Path:
        """Return Nova's state directory: instances, image cache, snapshots."""
        return self.root / 'nova'

    @property
    def instances(self) -> pathlib.Path:
        return self.nova / 'instances'

    @property
    def snapshots(self) -> pathlib.Path:
        # With Nova's default, inside of instances, the path of a Unix socket
        # would be too long.
        return self.nova / 'snapshots'

    @property
    def glance_store(self) -> pathlib.Path:
        return self.root / 'glance' / 'images'

    @property
    def libvirt(self) -> pathlib.Path:
        return self.root / 'libvirt'

    @property
    def lvm(self) -> pathlib.Path:
        return self.root / 'lvm'

    @property
    def ceph(self) -> pathlib.Path:
        return self.root / 'ceph'

    @property
    def has_ceph(self) -> bool:
        """Return whether `up --ceph` has run: Ceph then stays."""
        return self.ceph.is_dir()

    @property
    def horizon(self) -> pathlib.Path:
        return self.root / 'horizon'

    @property
    def has_horizon(self) -> bool:
        """Return whether `up --horizon` has run: Horizon then stays."""
        return self.horizon.is_dir()

    def overrides(self, service: str) -> pathlib.Path:
        """Return the file with the settings of `configure`.

        :param service: `nova-compute`, which reads the file, or `glance`,
            into whose file they are merged, because it reads no other
        """
        if service == 'nova-compute':
            return self.etc / 'nova' / 'nova-compute.d' / '90-configure.conf'
        return self.etc / service / 'configure.conf'

    @property
    def nova_release(self) -> int | None:
        """Return the major version of Nova that `up --nova` has asked for.

        :returns: None if the cloud has the newest one
        """
        return (int(self._nova_release.read_text())
                if self._nova_release.exists() else None)

    def record_nova_release(self, nova: int) -> None:
        shell.write(self._nova_release, f'{nova}\n')

    @property
    def _nova_release(self) -> pathlib.Path:
        return self.root / 'nova-release'

    def bin(self, program: str) -> str:
        """Return the path of a program in the virtual environment."""
        return str(self.venv / 'bin' / program)

    def log(self, service: str) -> pathlib.Path:
        return self.logs / f'{service}.log'

    def passwords(self) -> dict[str, str]:
        """Return the secrets of this cloud, created at the first call."""
        path = self.root / 'passwords.json'
        known = json.loads(path.read_text()) if path.exists() else {}
        found = {name: known.get(name) or secrets.token_hex(16)
                 for name in SECRETS}
        shell.write(path, json.dumps(found, indent=2) + '\n', mode=0o600)
        return found

    def is_done(self, step: str, inputs: str = '') -> bool:
        """Return whether a step was done with the same inputs."""
        mark = self.root / 'done' / step
        return mark.exists() and mark.read_text() == _digest(inputs)

    def mark_done(self, step: str, inputs: str = '') -> None:
        """Record that a step was done with these inputs."""
        shell.write(self.root / 'done' / step, _digest(inputs))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Prevent two runs from using the directory at the same time."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / 'lock', 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise errors.CloudError(
                    f'another run uses {self.root}: wait for its end'
                ) from None
            yield


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
