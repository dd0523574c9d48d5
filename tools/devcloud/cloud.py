# SPDX-License-Identifier: Apache-2.0
"""Start the whole cloud, and stop it."""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import fcntl
import pathlib
import pwd
import shutil
import subprocess
import time

from devcloud import catalogue
from devcloud import ceph
from devcloud import compute
from devcloud import config
from devcloud import databases
from devcloud import errors
from devcloud import horizon
from devcloud import images
from devcloud import libvirtd
from devcloud import lvm
from devcloud import mariadb
from devcloud import packages
from devcloud import process
from devcloud import rabbitmq
from devcloud import services
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import venv


def hypervisor(state: cloud_state.State) -> libvirtd.Libvirtd:
    return libvirtd.Libvirtd(state.libvirt)


def daemons(state: cloud_state.State) -> list[process.Daemon]:
    """Return all processes that `up` starts, in the order of their start."""
    return [
        mariadb.daemon(state),
        *rabbitmq.daemons(state),
        *(ceph.cluster(state).daemons if state.has_ceph else []),
        *hypervisor(state).daemons,
        *(service.daemon(state) for service in services.all_services(state)),
    ]


class Up:
    """One run of `up`.

    :param with_ceph: add Ceph, if the cloud does not have it
    :param with_horizon: add Horizon, if the cloud does not have it
    """

    def __init__(self, state: cloud_state.State, with_ceph: bool = False,
                 with_horizon: bool = False) -> None:
        self.state = state
        self.with_ceph = with_ceph
        self.with_horizon = with_horizon
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        print(f'[{time.monotonic() - self.began:6.1f} s] {text}', flush=True)

    def run(self) -> None:
        """Install and start everything missing."""
        state = self.state
        if self.with_ceph:
            state.ceph.mkdir(parents=True, exist_ok=True)
        if self.with_horizon:
            state.horizon.mkdir(parents=True, exist_ok=True)
        if missing := packages.install(
                packages.NEEDED
                + (packages.CEPH if state.has_ceph else ())
                + (packages.BROWSER if state.has_horizon else ())):
            self.say(f'Debian packages installed: {" ".join(missing)}')
        with concurrent.futures.ThreadPoolExecutor() as pool:
            built = pool.submit(images.build, state)
            self._run_services()
            if uploaded := images.register(state, built.result()):
                self.say(f'guest images uploaded: {", ".join(uploaded)}')

    def _run_services(self) -> None:
        """Install and start all services."""
        state = self.state
        _make_user(state)
        _make_directories(state)
        new_venv = venv.install(state)
        if new_venv:
            self.say(f'OpenStack installed in {state.venv}')
        new_wheel = venv.install_checkout(state)
        if new_wheel:
            self.say('wheel of this checkout installed')
        if state.has_horizon and horizon.install(state):
            self.say(f'Horizon installed in {state.horizon}')
            services.horizon(state).stop(state)
        lvm.start(state)
        host = hypervisor(state)
        changed = self._stop_changed(config.write_all(state, host))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            started = [pool.submit(mariadb.start, state),
                       pool.submit(rabbitmq.start, state),
                       pool.submit(host.start)]
            if state.has_ceph:
                started.append(pool.submit(ceph.cluster(state).start))
            for job in started:
                job.result()
        if state.has_ceph:
            ceph.set_secret(state, host)
            self.say('Ceph runs')
        self.say(f'MariaDB, RabbitMQ and libvirt run '
                 f'({"with" if host.has_kvm else "without"} KVM)')
        if databases.sync(state):
            self.say('databases synced')
        self._start_services()
        if new_venv or new_wheel or 'nova-compute' in changed:
            services.nova_compute(state).stop(state)
        compute.start(state)
        self.say('all services run')

    def _stop_changed(self, changed: set[str]) -> set[str]:
        """Stop the services whose configuration changed."""
        for service in services.all_services(self.state):
            if service.name in changed or (
                    'nova' in changed and service.name.startswith('nova')):
                service.stop(self.state)
        return changed

    def _start_services(self) -> None:
        """Start all services except nova-compute, which needs all others."""
        state = self.state
        known = services.all_services(state)
        started = [service for service in known
                   if not service.name.startswith('nova')
                   and service.start(state)]
        services.keystone(state).await_ready(state)
        if catalogue.fill(state):
            self.say('users, projects and endpoints created')
        # Nova requests a token from Keystone as soon as it starts.
        started += [service for service in known
                    if service.name != 'nova-compute'
                    and service.start(state)]
        for service in started:
            service.await_ready(state)
        catalogue.make_flavors(state)
        catalogue.make_network(state)


def down(state: cloud_state.State, purge: bool) -> None:
    """Stop all services and guests.

    :param purge: remove the state directory too
    """
    services.nova_compute(state).stop(state)
    hypervisor(state).stop()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # list() raises the exceptions of stop().
        list(pool.map(lambda service: service.stop(state),
                      services.all_services(state)))
    if state.has_ceph:
        ceph.cluster(state).stop()
    for daemon in (*rabbitmq.daemons(state)[::-1], mariadb.daemon(state)):
        daemon.stop()
    lvm.stop(state)
    config.SUDOERS.unlink(missing_ok=True)
    if purge:
        shutil.rmtree(state.root, ignore_errors=True)


@contextlib.contextmanager
def lock(state: cloud_state.State) -> Iterator[None]:
    """Prevent two commands from changing the cloud at the same time."""
    state.run.mkdir(parents=True, exist_ok=True)
    with open(state.run / 'lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.CloudError(
                'another command is changing the cloud: wait for its end'
            ) from None
        yield


def restart(state: cloud_state.State, name: str) -> None:
    """Stop one service and start it again."""
    if name == 'nova-compute':
        compute.restart(state)
    elif name == 'libvirtd':
        host = hypervisor(state)
        host.kill()
        host.start()
    else:
        known = {one.name: one for one in services.all_services(state)}
        if name not in known:
            raise errors.CloudError(
                f'there is no service {name!r}, only '
                f'{", ".join([*known, "libvirtd"])}')
        service = known[name]
        service.stop(state)
        service.start(state)
        service.await_ready(state)


def status(state: cloud_state.State) -> bool:
    """Print which services and guests run.

    :returns: whether everything runs
    """
    all_run = True
    for daemon in daemons(state):
        identity = daemon.identity()
        all_run = all_run and identity is not None
        word = f'runs (process {identity.pid})' if identity else 'stopped'
        print(f'{daemon.name:16} {word}')
    for name, identity in hypervisor(state).guests().items():
        print(f'{"guest " + name:16} runs (process {identity.pid})')
    return all_run


def show_log(state: cloud_state.State, name: str | None,
             follow: bool) -> int:
    """Print the log of a service, or the names of all logs."""
    logs = {daemon.name: daemon.log for daemon in daemons(state)}
    if name is None:
        for log in logs.values():
            print(log)
        return 0
    if name not in logs:
        raise errors.CloudError(f'there is no service {name!r}, only '
                                f'{", ".join(logs)}')
    words = ['tail', '-n', '200', *(['-f'] if follow else []),
             str(logs[name])]
    return subprocess.run(words).returncode


def environment(state: cloud_state.State, user: str) -> str:
    """Return shell commands that configure `openstack` for the cloud.

    :param user: `admin` or `demo`, each in the project of that name
    """
    variables = {
        'OS_AUTH_URL': cloud_state.url('keystone', '/v3'),
        'OS_IDENTITY_API_VERSION': '3',
        'OS_PASSWORD': state.passwords()[user],
        'OS_PROJECT_DOMAIN_NAME': 'Default',
        'OS_PROJECT_NAME': user,
        'OS_REGION_NAME': cloud_state.REGION,
        'OS_USERNAME': user,
        'OS_USER_DOMAIN_NAME': 'Default',
        'PATH': f'{state.venv / "bin"}:$PATH',
    }
    return ''.join(f'export {name}={value}\n'
                   for name, value in variables.items())


def _make_user(state: cloud_state.State) -> None:
    """Create Nova's user, unless a package has created it."""
    try:
        pwd.getpwnam(config.USER)
    except KeyError:
        shell.run(['useradd', '--system', '--user-group', '--no-create-home',
                   '--home-dir', state.nova, '--shell', '/usr/sbin/nologin',
                   config.USER])
    shell.run(['usermod', '--append', '--groups', libvirtd.GROUP,
               config.USER])


def _make_directories(state: cloud_state.State) -> None:
    for path in (state.root, state.etc, state.logs, state.run):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
    for path in (state.nova, state.instances, state.glance_store.parent,
                 state.glance_store, state.root / 'neutron'):
        _own(path)
    for keys in ('fernet-keys', 'credential-keys'):
        _own(state.root / 'keystone' / keys, 0o700)


def _own(path: pathlib.Path, mode: int = 0o755) -> None:
    """Create a directory for Nova's user, if it is missing."""
    if not path.exists():
        path.mkdir(parents=True)
        path.chmod(mode)
        shutil.chown(path, config.USER, config.USER)
