# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ, with its own node name, directories and epmd."""

import os
import shutil

from devcloud import process
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import wait

NAME = 'rabbitmq'
USER = 'rabbitmq'
LOGIN = 'openstack'

START_TIMEOUT = 90

CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
default_user = {login}
default_pass = {password}
loopback_users = none
# Keep the machine's disk for the guests.
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = info
log.file = false
"""


def daemons(state: cloud_state.State) -> tuple[process.Daemon,
                                               process.Daemon]:
    """Return epmd, and RabbitMQ, which needs epmd."""
    epmd, server = (process.Daemon(name, state.run / f'{name}.json',
                                   state.log(name))
                    for name in ('epmd', NAME))
    return epmd, server


def transport_url(state: cloud_state.State) -> str:
    """Return the URL of RabbitMQ for oslo.messaging."""
    password = state.passwords()['rabbitmq']
    return (f'rabbit://{LOGIN}:{password}@{cloud_state.HOST}:'
            f'{cloud_state.PORTS[NAME]}/')


def start(state: cloud_state.State) -> None:
    """Start epmd and RabbitMQ, unless they run."""
    ports = cloud_state.PORTS
    epmd, server = daemons(state)
    if not epmd.is_running():
        epmd.start(['/usr/bin/epmd', '-address', cloud_state.HOST, '-port',
                    str(ports['epmd'])], user=USER)
        epmd.await_ready(lambda: wait.connectable(ports['epmd']),
                         START_TIMEOUT)
    if server.is_running():
        return
    home = state.root / NAME
    passwords = state.passwords()
    shell.write(home / 'rabbitmq.conf', CONFIGURATION.format(
        port=ports[NAME], login=LOGIN, password=passwords['rabbitmq']),
        mode=0o600)
    shell.write(home / 'enabled_plugins', '[].\n')
    shell.write(home / '.erlang.cookie', passwords['erlang_cookie'],
                mode=0o400)
    for path in (home, *home.iterdir()):
        shutil.chown(path, USER, USER)
    server.start(
        ['/usr/lib/rabbitmq/bin/rabbitmq-server'], user=USER, cwd=str(home),
        env={
            'HOME': str(home),
            'ERL_EPMD_ADDRESS': cloud_state.HOST,
            'ERL_EPMD_PORT': str(ports['epmd']),
            'RABBITMQ_CONFIG_FILE': str(home / 'rabbitmq.conf'),
            'RABBITMQ_CONF_ENV_FILE': os.devnull,
            'RABBITMQ_DIST_PORT': str(ports['erlang']),
            'RABBITMQ_ENABLED_PLUGINS_FILE': str(home / 'enabled_plugins'),
            'RABBITMQ_LOG_BASE': str(home / 'log'),
            'RABBITMQ_MNESIA_BASE': str(home / 'mnesia'),
            'RABBITMQ_NODENAME': 'snapext@localhost',
            'RABBITMQ_PID_FILE': str(home / 'pid'),
            # Idle schedulers sleep at once, without busy waiting.
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS':
                '-kernel inet_dist_use_interface {127,0,0,1} +sbwt none '
                '+sbwtdcpu none +sbwtdio none',
        })
    server.await_ready(lambda: wait.connectable(ports[NAME]), START_TIMEOUT)
