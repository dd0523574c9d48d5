# SPDX-License-Identifier: Apache-2.0
"""The OpenStack services: start and stop them, and wait until ready."""

from collections.abc import Mapping
import dataclasses
import os

from devcloud import config
from devcloud import process
from devcloud import state as cloud_state
from devcloud import wait

#: Seconds until a service must respond, on a busy machine.
START_TIMEOUT = 120

#: Seconds from SIGTERM to SIGKILL.
STOP_TIMEOUT = 20
#: With native threads, nova-compute 34 hangs while it ends its thread pool,
#: long after it has logged that no task is in progress.
COMPUTE_STOP_TIMEOUT = 4


@dataclasses.dataclass(frozen=True)
class Service:
    """One service.

    :param name: its name in commands, logs and records
    :param argv: program and arguments
    :param env: its environment variables
    :param port: its port, if it is an API
    :param groups: further groups of its user
    :param stop_timeout: seconds from SIGTERM to SIGKILL
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    port: int | None = None
    groups: tuple[str, ...] = ()
    stop_timeout: float = STOP_TIMEOUT

    def daemon(self, state: cloud_state.State) -> process.Daemon:
        return process.Daemon(self.name, state.run / f'{self.name}.json',
                              state.log(self.name))

    def start(self, state: cloud_state.State) -> bool:
        """Start the service, unless it runs.

        :returns: whether it was started; await_ready() waits for it
        """
        daemon = self.daemon(state)
        if daemon.is_running():
            return False
        daemon.start(self.argv, user=config.USER, groups=self.groups,
                     cwd=str(state.nova), env={
                         'HOME': str(state.nova),
                         'PATH': f'{state.venv / "bin"}:{os.defpath}:'
                                 '/usr/sbin:/sbin',
                         'PYTHONWARNINGS': 'ignore',
                         **self.env})
        return True

    def stop(self, state: cloud_state.State) -> None:
        self.daemon(state).stop(self.stop_timeout)

    def await_ready(self, state: cloud_state.State) -> None:
        """Wait until the service responds; without an API, until it runs.

        :raises: CloudError with the end of its log
        """
        port = self.port
        self.daemon(state).await_ready(
            lambda: port is None or wait.http_responds(
                f'http://{cloud_state.HOST}:{port}/'), START_TIMEOUT)


def _api(state: cloud_state.State, name: str, module: str,
         env: Mapping[str, str], workers: int = 1,
         gunicorn: str | None = None) -> Service:
    """Return an API service that gunicorn runs."""
    port = cloud_state.PORTS[name]
    argv = (gunicorn or state.bin('gunicorn'),
            '--config', f'{state.etc}/gunicorn_settings.py',
            '--bind', f'{cloud_state.HOST}:{port}',
            '--workers', str(workers), '--pythonpath', str(state.etc),
            'wsgi_entry:application')
    return Service(name, argv, {'SNAPEXT_WSGI_MODULE': module, **env}, port)


def keystone(state: cloud_state.State) -> Service:
    return _api(state, 'keystone', 'keystone.wsgi.api', {
        'OS_KEYSTONE_CONFIG_DIR': str(state.etc / 'keystone')})


def glance(state: cloud_state.State) -> Service:
    # NOTE: two workers, so that one responds to other requests while the
    # other one computes the digest of an upload.
    return _api(state, 'glance', 'glance.wsgi.api', {
        'OS_GLANCE_CONFIG_DIR': str(state.etc / 'glance')}, workers=2)


def placement(state: cloud_state.State) -> Service:
    return _api(state, 'placement', 'placement.wsgi.api', {
        'OS_PLACEMENT_CONFIG_DIR': str(state.etc / 'placement')})


def neutron(state: cloud_state.State) -> Service:
    return _api(state, 'neutron', 'neutron.wsgi.api', {
        'OS_NEUTRON_CONFIG_DIR': str(state.etc / 'neutron'),
        'OS_NEUTRON_CONFIG_FILES': 'neutron.conf'})


def nova_api(state: cloud_state.State) -> Service:
    return _api(state, 'nova-api', 'nova.wsgi.osapi_compute', {
        'OS_NOVA_CONFIG_DIR': str(state.etc / 'nova'),
        'OS_NOVA_CONFIG_FILES':
            'api-paste.ini;nova.conf;nova-controller.conf',
        # Nova before 33 would use green threads inside gunicorn's own.
        'OS_NOVA_DISABLE_EVENTLET_PATCHING': '1'})


def horizon(state: cloud_state.State) -> Service:
    return _api(state, 'horizon', 'openstack_dashboard.wsgi', {},
                gunicorn=str(state.horizon / 'venv/bin/gunicorn'))


def nova_controller(state: cloud_state.State, name: str) -> Service:
    etc = state.etc / 'nova'
    return Service(name, (
        state.bin(name), '--config-file', f'{etc}/nova.conf',
        '--config-file', f'{etc}/nova-controller.conf'))


def nova_compute(state: cloud_state.State) -> Service:
    etc = state.etc / 'nova'
    return Service('nova-compute', (
        state.bin('nova-compute'), '--config-file', f'{etc}/nova.conf',
        '--config-dir', f'{etc}/nova-compute.d'), groups=('libvirt',),
        stop_timeout=COMPUTE_STOP_TIMEOUT)


def all_services(state: cloud_state.State) -> list[Service]:
    """Return all services, in the order of their start."""
    return [
        keystone(state),
        glance(state),
        placement(state),
        neutron(state),
        *([horizon(state)] if state.has_horizon else []),
        nova_controller(state, 'nova-conductor'),
        nova_controller(state, 'nova-scheduler'),
        nova_api(state),
        nova_compute(state),
    ]
