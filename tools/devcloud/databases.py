# SPDX-License-Identifier: Apache-2.0
"""Create the schemas in the databases of the services."""

import concurrent.futures

from devcloud import config
from devcloud import mariadb
from devcloud import shell
from devcloud import state as cloud_state

#: Number of syncs that run at the same time: each keeps one thread of Python
#: and one of MariaDB busy.
PARALLEL = 3


def sync(state: cloud_state.State) -> bool:
    """Sync all schemas, unless this was done before.

    :returns: whether they were synced
    """
    if state.is_done('databases-synced'):
        return False
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        # The longest first.
        jobs = [pool.submit(job, state) for job in
                (_nova, _neutron, _glance, _keystone, _placement)]
        for job in jobs:
            job.result()
    state.mark_done('databases-synced')
    return True


def discover_host(state: cloud_state.State) -> None:
    """Map the compute host to its cell, after it has registered."""
    _nova_manage(state, 'cell_v2', 'discover_hosts')


def _manage(state: cloud_state.State, program: str, *words: str) -> str:
    return shell.run([state.bin(program), *words], user=config.USER,
                     group=config.USER, cwd=state.nova,
                     env={'PYTHONWARNINGS': 'ignore'})


def _nova_manage(state: cloud_state.State, *words: str) -> str:
    etc = state.etc / 'nova'
    return _manage(state, 'nova-manage', '--config-file', f'{etc}/nova.conf',
                   '--config-file', f'{etc}/nova-controller.conf', *words)


def _nova(state: cloud_state.State) -> None:
    _nova_manage(state, 'api_db', 'sync')
    _nova_manage(state, 'cell_v2', 'map_cell0', '--database_connection',
                 mariadb.connection(state, 'nova_cell0'))
    if 'cell1' not in _nova_manage(state, 'cell_v2', 'list_cells'):
        _nova_manage(state, 'cell_v2', 'create_cell', '--name', 'cell1')
    _nova_manage(state, 'db', 'sync')


def _neutron(state: cloud_state.State) -> None:
    _manage(state, 'neutron-db-manage', '--config-file',
            f'{state.etc}/neutron/neutron.conf', 'upgrade', 'heads')


def _glance(state: cloud_state.State) -> None:
    _manage(state, 'glance-manage', '--config-file',
            f'{state.etc}/glance/glance-api.conf', 'db_sync')


def _keystone(state: cloud_state.State) -> None:
    words = ('--config-file', f'{state.etc}/keystone/keystone.conf')
    _manage(state, 'keystone-manage', *words, 'db_sync')
    for setup in ('fernet_setup', 'credential_setup'):
        _manage(state, 'keystone-manage', *words, setup,
                '--keystone-user', config.USER,
                '--keystone-group', config.USER)
    address = cloud_state.url('keystone', '/v3')
    _manage(state, 'keystone-manage', *words, 'bootstrap',
            '--bootstrap-password', state.passwords()['admin'],
            '--bootstrap-region-id', cloud_state.REGION,
            '--bootstrap-public-url', address,
            '--bootstrap-internal-url', address,
            '--bootstrap-admin-url', address)


def _placement(state: cloud_state.State) -> None:
    _manage(state, 'placement-manage', '--config-file',
            f'{state.etc}/placement/placement.conf', 'db', 'sync')
