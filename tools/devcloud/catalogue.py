# SPDX-License-Identifier: Apache-2.0
"""The users, projects, endpoints and flavors of a new cloud."""

from devcloud import api
from devcloud import config
from devcloud import state as cloud_state

#: Service type and path of each endpoint, except the identity service.
ENDPOINTS = {
    'glance': ('image', ''),
    'neutron': ('network', ''),
    'nova-api': ('compute', '/v2.1'),
    'placement': ('placement', ''),
}

#: Flavors, with Nova's names and units: MiB of memory and swap, GiB of disks.
FLAVORS = {
    'snap.tiny': {'ram': 192, 'disk': 1},
    'snap.mixed': {'ram': 192, 'disk': 8},
    'snap.disks': {'ram': 192, 'disk': 1, 'OS-FLV-EXT-DATA:ephemeral': 1,
                   'swap': 64},
}

NETWORK = 'private'


def fill(state: cloud_state.State) -> bool:
    """Create the missing users, projects and endpoints.

    Keystone must be ready.

    :returns: whether anything was missing
    """
    wanted = repr((ENDPOINTS, FLAVORS, config.SERVICE_USERS))
    if state.is_done('catalogue', wanted):
        return False
    admin = api.Client.admin(state)
    roles = {name: _ensure(admin, 'role', name)
             for name in ('admin', 'member', 'service')}
    project = _ensure(admin, 'project', 'service', domain_id='default')
    for name in config.SERVICE_USERS:
        user = _ensure_user(state, admin, name, 'service')
        for role in ('admin', 'service'):
            _grant(admin, project, user, roles[role])
    project = _ensure(admin, 'project', 'demo', domain_id='default')
    _grant(admin, project, _ensure_user(state, admin, 'demo', 'demo'),
           roles['member'])
    _ensure_endpoints(admin)
    state.mark_done('catalogue', wanted)
    return True


def make_flavors(state: cloud_state.State) -> None:
    """Create the missing flavors. nova-api must be ready."""
    if state.is_done('flavors', repr(FLAVORS)):
        return
    admin = api.Client.admin(state)
    for name, sizes in FLAVORS.items():
        admin.delete('nova-api', f'/flavors/{name}', missing_ok=True)
        admin.post('nova-api', '/flavors', {'flavor': {
            'id': name, 'name': name, 'vcpus': 1, **sizes}})
    state.mark_done('flavors', repr(FLAVORS))


def make_network(state: cloud_state.State) -> None:
    """Create the network of project `demo`, if it is missing.

    Nothing is connected to it. Neutron must be ready.
    """
    demo = api.Client.demo(state)
    if demo.get('neutron', f'/networks?name={NETWORK}')['networks']:
        return
    network = demo.post('neutron', '/networks', {
        'network': {'name': NETWORK}})['network']['id']
    demo.post('neutron', '/subnets', {'subnet': {
        'name': NETWORK, 'network_id': network, 'ip_version': 4,
        'cidr': '192.0.2.0/24', 'enable_dhcp': False}})


def _ensure(admin: api.Client, kind: str, name: str, **fields: str) -> str:
    """Return the id of a role, project or user; create it if missing."""
    found = admin.get('keystone', f'/{kind}s?name={name}')[f'{kind}s']
    if not found:
        found = [admin.post('keystone', f'/{kind}s', {
            kind: {'name': name, **fields}})[kind]]
    return found[0]['id']


def _ensure_user(state: cloud_state.State, admin: api.Client, name: str,
                 secret: str) -> str:
    return _ensure(admin, 'user', name, domain_id='default',
                   password=state.passwords()[secret])


def _grant(admin: api.Client, project: str, user: str, role: str) -> None:
    admin.put('keystone', f'/projects/{project}/users/{user}/roles/{role}')


def _ensure_endpoints(admin: api.Client) -> None:
    for name, (kind, path) in ENDPOINTS.items():
        services = admin.get('keystone', f'/services?type={kind}')
        if services['services']:
            service = services['services'][0]['id']
        else:
            service = admin.post('keystone', '/services', {'service': {
                'name': name, 'type': kind}})['service']['id']
        known = admin.get('keystone', f'/endpoints?service_id={service}')
        interfaces = {one['interface'] for one in known['endpoints']}
        for interface in {'public', 'internal'} - interfaces:
            admin.post('keystone', '/endpoints', {'endpoint': {
                'service_id': service, 'interface': interface,
                'region_id': cloud_state.REGION,
                'url': cloud_state.url(name, path)}})
