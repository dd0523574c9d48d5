# SPDX-License-Identifier: Apache-2.0
"""MariaDB, with a database for each service."""

import shutil

from devcloud import process
from devcloud import shell
from devcloud import state as cloud_state
from devcloud import wait

NAME = 'mariadb'
USER = 'mysql'

#: Databases; the user `openstack` owns all of them.
DATABASES = ('keystone', 'glance', 'placement', 'neutron', 'nova_api',
             'nova_cell0', 'nova')

START_TIMEOUT = 60

CONFIGURATION = """\
[mariadbd]
user = {user}
datadir = {datadir}
socket = {socket}
pid_file = {datadir}/mariadb.pid
bind_address = 127.0.0.1
port = {port}
skip_name_resolve
max_connections = 500
character_set_server = utf8mb4
innodb_buffer_pool_size = 256M
# This cloud is for tests: a crash of the machine may lose a transaction.
innodb_flush_log_at_trx_commit = 2
skip_log_bin
"""


def daemon(state: cloud_state.State) -> process.Daemon:
    return process.Daemon(NAME, state.run / f'{NAME}.json', state.log(NAME))


def connection(state: cloud_state.State, database: str) -> str:
    """Return the connection URL of a database."""
    password = state.passwords()['database']
    return (f'mysql+pymysql://openstack:{password}@{cloud_state.HOST}:'
            f'{cloud_state.PORTS[NAME]}/{database}?charset=utf8')


def start(state: cloud_state.State) -> None:
    """Start MariaDB, unless it runs, and create the databases."""
    server = daemon(state)
    home = state.root / NAME
    datadir = home / 'data'
    socket = home / 'mariadb.sock'
    configuration = home / 'mariadb.cnf'
    if not server.is_running():
        shell.write(configuration, CONFIGURATION.format(
            user=USER, datadir=datadir, socket=socket,
            port=cloud_state.PORTS[NAME]))
        shutil.chown(home, USER, USER)
        if not state.is_done('mariadb-datadir'):
            shutil.rmtree(datadir, ignore_errors=True)
            shell.run(['mariadb-install-db',
                       f'--defaults-file={configuration}', '--skip-test-db',
                       '--auth-root-authentication-method=socket'])
            state.mark_done('mariadb-datadir')
        server.start(['/usr/sbin/mariadbd',
                      f'--defaults-file={configuration}'], user=USER)
        server.await_ready(lambda: wait.unix_connectable(socket),
                           START_TIMEOUT)
    if not state.is_done('databases', repr(DATABASES)):
        password = state.passwords()['database']
        statements = [f'CREATE DATABASE IF NOT EXISTS {name};'
                      f"GRANT ALL ON {name}.* TO openstack@'127.0.0.1' "
                      f"IDENTIFIED BY '{password}';" for name in DATABASES]
        shell.run(['mariadb', '-u', 'root', '-S', socket],
                  stdin=''.join(statements))
        state.mark_done('databases', repr(DATABASES))
