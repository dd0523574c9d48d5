# SPDX-License-Identifier: Apache-2.0
"""The configuration files of the OpenStack services."""

from collections.abc import Mapping, Sequence
import pathlib
import re
import shutil

from devcloud import ceph
from devcloud import errors
from devcloud import libvirtd
from devcloud import lvm
from devcloud import mariadb
from devcloud import rabbitmq
from devcloud import shell
from devcloud import state as cloud_state

USER = cloud_state.USER

#: The driver of this project.
DRIVER = 'snapext.SnapextDriver'

#: The Keystone users of the services.
SERVICE_USERS = ('nova', 'glance', 'neutron', 'placement')

#: Name of network_driver.py among Neutron's drivers.
MECHANISM_DRIVER = 'tap'

#: Services whose options `configure` can change.
CONFIGURABLE = ('nova-compute', 'glance')

Sections = Mapping[str, Mapping[str, object]]

SUDOERS = pathlib.Path('/etc/sudoers.d/snapext-cloud')


def render(sections: Sections) -> str:
    """Return the text of an INI file for oslo.config."""
    lines = []
    for section, options in sections.items():
        lines.append(f'[{section}]')
        lines += [f'{name} = {value}' for name, value in options.items()]
        lines.append('')
    return '\n'.join(lines)


def parse(text: str) -> dict[str, dict[str, object]]:
    """Return what render() has made a text of."""
    found: dict[str, dict[str, object]] = {}
    section = ''
    for line in text.splitlines():
        name, equals, value = line.partition(' = ')
        if line.startswith('['):
            section = line.strip('[]')
            found[section] = {}
        elif equals:
            found[section][name] = value
    return found


def overrides(state: cloud_state.State,
              service: str) -> dict[str, dict[str, object]]:
    """Return the settings of `configure`, by section and option."""
    file = state.overrides(service)
    return parse(file.read_text()) if file.exists() else {}


def override(state: cloud_state.State, settings: Sequence[str],
             reset: bool) -> set[str]:
    """Change options of services.

    :param settings: each [SERVICE:]SECTION.OPTION=VALUE, as in the help of
        `configure`; added to earlier settings
    :param reset: remove the earlier settings first
    :returns: names of the services whose files changed
    :raises: CloudError if a setting has a wrong form
    """
    merged = {service: {} if reset else overrides(state, service)
              for service in CONFIGURABLE}
    for setting in settings:
        service, section, option, value = _parsed(setting)
        merged[service].setdefault(section, {})[option] = value
    changed = set()
    for service, sections in merged.items():
        file = state.overrides(service)
        if sections and shell.write(file, render(sections), mode=0o640,
                                    group=USER):
            changed.add(service)
        elif not sections and file.exists():
            file.unlink()
            changed.add(service)
    if 'glance' in changed:
        _write_glance(state)
    return changed


def _parsed(setting: str) -> tuple[str, str, str, str]:
    """Return service, section, option and value of a setting."""
    name, equals, value = setting.partition('=')
    service, colon, name = name.rpartition(':')
    section, dot, option = name.partition('.')
    service = service if colon else 'nova-compute'
    if not (equals and dot and section and option
            and service in CONFIGURABLE):
        raise errors.CloudError(
            f'{setting!r} must have the form [SERVICE:]SECTION.OPTION=VALUE, '
            f'where SERVICE is one of {", ".join(CONFIGURABLE)}')
    return service, section, option, value


def write_all(state: cloud_state.State,
              hypervisor: libvirtd.Libvirtd) -> set[str]:
    """Write every configuration file.

    :returns: names of the services whose files changed
    """
    changed = set()
    for service, name, sections in (
            ('keystone', 'keystone.conf', _keystone(state)),
            ('placement', 'placement.conf', _placement(state)),
            ('neutron', 'neutron.conf', _neutron(state)),
            ('nova', 'nova.conf', _nova(state)),
            ('nova', 'nova-controller.conf', _nova_controller(state)),
            ('nova-compute', 'nova-compute.d/10-compute.conf',
             _nova_compute(state, hypervisor))):
        directory = 'nova' if service == 'nova-compute' else service
        if shell.write(state.etc / directory / name, render(sections),
                       mode=0o640, group=USER):
            changed.add(service)
    if _write_glance(state):
        changed.add('glance')
    shutil.copy2(state.venv / 'etc/nova/api-paste.ini',
                 state.etc / 'nova/api-paste.ini')
    _write_modules(state)
    if _write_privileges(state):
        changed.add('nova-compute')
    return changed


def _write_modules(state: cloud_state.State) -> None:
    """Write the modules that the API services load, and their metadata."""
    for name in ('gunicorn_settings.py', 'network_driver.py',
                 'wsgi_entry.py'):
        shell.write(state.etc / name,
                    pathlib.Path(__file__).with_name(name).read_text())
    metadata = state.etc / 'devcloud-0.dist-info'
    shell.write(metadata / 'METADATA',
                'Metadata-Version: 2.1\nName: devcloud\nVersion: 0\n')
    shell.write(metadata / 'entry_points.txt',
                '[neutron.ml2.mechanism_drivers]\n'
                f'{MECHANISM_DRIVER} = network_driver:TapMechanismDriver\n')


def _auth(state: cloud_state.State, user: str) -> dict[str, object]:
    """Return options: the credentials of a service."""
    return {
        'auth_type': 'password',
        'auth_url': cloud_state.url('keystone', '/v3'),
        'username': user,
        'password': state.passwords()['service'],
        'user_domain_name': 'Default',
        'project_name': 'service',
        'project_domain_name': 'Default',
        'region_name': cloud_state.REGION,
    }


def _authtoken(state: cloud_state.State, user: str) -> dict[str, object]:
    """Return options: how a service checks the tokens of its callers."""
    return {
        **_auth(state, user),
        'www_authenticate_uri': cloud_state.url('keystone', '/v3'),
        'service_token_roles': 'service',
        'service_token_roles_required': True,
    }


def _keystone(state: cloud_state.State) -> Sections:
    home = state.root / 'keystone'
    return {
        'database': {'connection': mariadb.connection(state, 'keystone')},
        'fernet_tokens': {'key_repository': home / 'fernet-keys'},
        'fernet_receipts': {'key_repository': home / 'fernet-keys'},
        'credential': {'key_repository': home / 'credential-keys'},
        # Passwords are random, so few rounds are secure; and each command
        # requests a token, so many rounds are slow.
        'identity': {'password_hash_rounds': 4},
        # Deployments use memcached. Without a cache, validating a token takes
        # 0.3 s. There is one process, so its memory is enough.
        'cache': {'enabled': True, 'backend': 'dogpile.cache.memory'},
    }


def _write_glance(state: cloud_state.State) -> bool:
    """Write Glance's file, with the settings of `configure`."""
    sections = {name: dict(options)
                for name, options in _glance(state).items()}
    for name, options in overrides(state, 'glance').items():
        sections.setdefault(name, {}).update(options)
    return shell.write(state.etc / 'glance' / 'glance-api.conf',
                       render(sections), mode=0o640, group=USER)


def _glance(state: cloud_state.State) -> Sections:
    home = state.root / 'glance'
    return {
        'DEFAULT': {
            'enabled_backends': 'local:file,ceph:rbd' if state.has_ceph
                                else 'local:file',
            # Nova clones only an image whose place in Ceph it is told.
            'show_image_direct_url': state.has_ceph,
            'worker_self_reference_url': cloud_state.url('glance'),
        },
        'database': {'connection': mariadb.connection(state, 'glance')},
        'glance_store': {'default_backend': 'local'},
        'local': {'filesystem_store_datadir': state.glance_store},
        **(_glance_ceph_store(state) if state.has_ceph else {}),
        'os_glance_staging_store': {
            'filesystem_store_datadir': home / 'staging'},
        'os_glance_tasks_store': {
            'filesystem_store_datadir': home / 'tasks'},
        # Refuse a revoked token at once.
        'keystone_authtoken': {**_authtoken(state, 'glance'),
                               'token_cache_time': -1},
        'oslo_concurrency': {'lock_path': home / 'lock'},
        'paste_deploy': {
            'flavor': 'keystone',
            'config_file': state.venv / 'etc/glance/glance-api-paste.ini',
        },
    }


def _glance_ceph_store(state: cloud_state.State) -> Sections:
    return {'ceph': {
        'rbd_store_ceph_conf': ceph.cluster(state).configuration,
        'rbd_store_user': 'glance',
        'rbd_store_pool': 'images',
        # Zeros take no space, so that a clone has extents without data.
        'rbd_thin_provisioning': True,
    }}


def _placement(state: cloud_state.State) -> Sections:
    return {
        'placement_database': {
            'connection': mariadb.connection(state, 'placement')},
        'keystone_authtoken': _authtoken(state, 'placement'),
    }


def _neutron(state: cloud_state.State) -> Sections:
    home = state.root / 'neutron'
    return {
        'DEFAULT': {
            'core_plugin': 'ml2',
            'service_plugins': '',
            'transport_url': 'fake://',
            'state_path': home,
            'api_paste_config': state.venv / 'etc/neutron/api-paste.ini',
            'notify_nova_on_port_status_changes': False,
            'notify_nova_on_port_data_changes': False,
        },
        'database': {'connection': mariadb.connection(state, 'neutron')},
        'keystone_authtoken': _authtoken(state, 'neutron'),
        'oslo_concurrency': {'lock_path': home / 'lock'},
        # There are no agents, because there is no network traffic.
        'ml2': {
            'type_drivers': 'flat,vlan,local',
            'tenant_network_types': 'local',
            'mechanism_drivers': MECHANISM_DRIVER,
        },
    }


def _nova(state: cloud_state.State) -> Sections:
    auth = _auth(state, 'nova')
    return {
        'DEFAULT': {
            'my_ip': cloud_state.HOST,
            'state_path': state.nova,
            'instances_path': state.instances,
            'transport_url': rabbitmq.transport_url(state),
            'rootwrap_config': state.etc / 'nova/rootwrap.conf',
            # There is one host only.
            'allow_resize_to_same_host': True,
            # Guests are small and overcommitted.
            'initial_cpu_allocation_ratio': 16,
            'initial_disk_allocation_ratio': 16,
        },
        'keystone_authtoken': _authtoken(state, 'nova'),
        'service_user': {**auth, 'send_service_user_token': True},
        'placement': auth,
        'neutron': auth,
        'glance': {'region_name': cloud_state.REGION},
        'oslo_concurrency': {'lock_path': state.nova / 'lock'},
        'vnc': {'enabled': False},
    }


def _nova_controller(state: cloud_state.State) -> Sections:
    return {
        'database': {'connection': mariadb.connection(state, 'nova')},
        'api_database': {'connection': mariadb.connection(state, 'nova_api')},
        'scheduler': {'workers': 1},
        'conductor': {'workers': 1},
        # watch.TaskStates reads the notifications from the log.
        'notifications': {'notify_on_state_change': 'vm_and_task_state'},
        'oslo_messaging_notifications': {'driver': 'log'},
    }


def _nova_compute(state: cloud_state.State,
                  hypervisor: libvirtd.Libvirtd) -> Sections:
    kvm = hypervisor.has_kvm
    return {
        'DEFAULT': {
            'compute_driver': DRIVER,
            'shutdown_timeout': 20,
            'reserved_host_memory_mb': 2048,
        },
        'libvirt': {
            'connection_uri': hypervisor.uri,
            'virt_type': 'kvm' if kvm else 'qemu',
            'cpu_mode': 'host-passthrough' if kvm else 'none',
            'images_type': 'qcow2',
            'snapshots_directory': state.snapshots,
            'images_volume_group': lvm.VOLUME_GROUP,
            # Clearing deleted volumes would fill their sparse files.
            'volume_clear': 'none',
            **(_ceph_disks(state) if state.has_ceph else {}),
        },
        'snapext': {
            'libvirt_config_directory': hypervisor.state_dir / 'etc/qemu',
            'libvirt_save_directory': hypervisor.state_dir / 'lib/qemu/save',
        },
    }


def _ceph_disks(state: cloud_state.State) -> dict[str, object]:
    """Return options: disks in Ceph. `images_type = rbd` uses them."""
    return {
        'images_rbd_pool': 'vms',
        'images_rbd_ceph_conf': ceph.cluster(state).configuration,
        'rbd_user': 'nova',
        'rbd_secret_uuid': ceph.SECRET,
    }


def _write_privileges(state: cloud_state.State) -> bool:
    """Allow user nova to start privsep daemons through sudo and rootwrap.

    Nova's packages do the same, but here all files except the one for sudo are
    in the state directory.
    """
    etc = state.etc / 'nova'
    home = state.venv / 'bin'
    rootwrap = (state.venv / 'etc/nova/rootwrap.conf').read_text()
    rootwrap = re.sub(r'(?m)^filters_path=.*',
                      f'filters_path={etc / "rootwrap.d"}', rootwrap)
    rootwrap = re.sub(r'(?m)^exec_dirs=', f'exec_dirs={home},', rootwrap)
    # Nova's own filters allow only /etc, and a single file.
    filters = '[Filters]\n' + ''.join(
        f'privsep-{context}: RegExpFilter, privsep-helper, root, '
        f'privsep-helper, --config-file, {re.escape(str(etc))}/nova.conf, '
        f'--config-dir, {re.escape(str(etc))}/nova-compute.d, '
        f'--privsep_context, {pattern}, '
        f'--privsep_sock_path, /tmp/(?!.*\\.\\.).*\n'
        for context, pattern in (
            ('nova', r'nova\.privsep\.sys_admin_pctxt'),
            ('snapext', r'nova_snapext\.[a-z_.]+'),
            ('os-brick', r'os_brick\.privileged\.default'),
            ('os-vif', r'vif_plug_[a-z_.]+')))
    path = ':'.join([*_command_directories(state), str(home),
                     '/usr/sbin:/usr/bin:/sbin:/bin'])
    sudoers = (f'Defaults:{USER} !requiretty, secure_path="{path}"\n'
               f'{USER} ALL = (root) NOPASSWD: {home}/nova-rootwrap '
               f'{etc}/rootwrap.conf *\n')
    changed = [
        shell.write(etc / 'rootwrap.conf', rootwrap),
        shell.write(etc / 'rootwrap.d' / 'compute.filters', filters),
        shell.write(SUDOERS, sudoers, mode=0o440),
    ]
    return any(changed)


def _command_directories(state: cloud_state.State) -> list[str]:
    """Return directories of commands that replace those of the system."""
    stand_ins = state.lvm / 'bin'
    return [str(stand_ins)] if stand_ins.is_dir() else []
