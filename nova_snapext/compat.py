# SPDX-License-Identifier: Apache-2.0
"""Private names of other packages that this package uses.

Nova has no stable interface for drivers outside its tree, and three client
libraries have none for connections that another thread can close. Each name
is listed here with the properties that this package relies on. If another
release changes one of them, the driver does not start, and
``nova-snapext check`` and a test report it.

This module does not import Nova: ``nova-snapext check`` has to run where Nova
can't be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import dis
import importlib
import importlib.metadata
import inspect
import types
import typing as ty

if ty.TYPE_CHECKING:
    import threading

MIN_NOVA = 34
SUPPORTED_NOVA = f'{MIN_NOVA} (2026.2) or newer'

DRIVER = 'nova.virt.libvirt.driver:LibvirtDriver'
HOST = 'nova.virt.libvirt.host:Host'
GLANCE_CLIENT = 'nova.image.glance:GlanceClientWrapper'


@dataclasses.dataclass(frozen=True)
class Name:
    """A name of another package.

    :ivar owner: its module, or ``module:class``
    :ivar name: name of the attribute of the module or class
    :ivar purpose: why this package needs it
    :ivar used_by: functions of the owner that use the name: they call our
        override, or use the object that we replace
    """

    owner: str
    name: str
    purpose: str
    used_by: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f'{self.owner}.{self.name}'

    def differences(self) -> Iterator[str]:
        """Return the differences from what we expect, as phrases.

        :raises ImportError: the owner's module can't be imported
        :raises AttributeError: the owner's module has no such class
        """
        owner = self._load_owner()
        yield from self._own_differences(owner)
        for user in self.used_by:
            if not _appears(self.name, owner, user, _all_names):
                yield f'{self.owner}.{user} does not use it'

    def _own_differences(self, owner: ty.Any) -> Iterator[str]:
        if not hasattr(owner, self.name):
            yield 'it does not exist'

    def _load_owner(self) -> ty.Any:
        module, _, name = self.owner.partition(':')
        owner = importlib.import_module(module)
        return getattr(owner, name) if name else owner


@dataclasses.dataclass(frozen=True)
class Function(Name):
    """A function that we call or override.

    :ivar parameters: its first parameters in order, without ``self``
    :ivar exact: whether it has no other parameters
    :ivar keywords: parameters that we pass by keyword
    """

    parameters: tuple[str, ...] = ()
    exact: bool = False
    keywords: tuple[str, ...] = ()

    def _own_differences(self, owner: ty.Any) -> Iterator[str]:
        function = getattr(owner, self.name, None)
        if function is None:
            yield 'it does not exist'
            return
        found = tuple(name for name in inspect.signature(function).parameters
                      if name != 'self')
        first = found if self.exact else found[:len(self.parameters)]
        if first != self.parameters:
            yield (f'its parameters are ({", ".join(found)}), not '
                   f'({", ".join(self.parameters)}'
                   f'{"" if self.exact else ", ..."})')
        missing = [name for name in self.keywords if name not in found]
        if missing:
            yield f'it has no parameter {", ".join(missing)}'


@dataclasses.dataclass(frozen=True)
class Attribute(Name):
    """An attribute of the objects of a class.

    :ivar set_by: the method that sets it
    """

    set_by: str = '__init__'

    def _own_differences(self, owner: ty.Any) -> Iterator[str]:
        if not _appears(self.name, owner, self.set_by, _stored_names):
            yield f'{self.owner}.{self.set_by} does not set it'


NAMES: tuple[Name, ...] = (
    # Methods of Nova's libvirt driver that our driver overrides.
    Function(
        DRIVER, '_handle_conn_event', 'to recover when libvirtd is back',
        parameters=('enabled', 'reason'), exact=True, used_by=('__init__',)),
    Function(
        DRIVER, '_live_snapshot',
        'to record the directory of Nova\'s own snapshot',
        # Our override passes on all other parameters.
        parameters=('context', 'instance', 'guest', 'disk_path', 'out_path'),
        used_by=('snapshot',)),
    Function(
        DRIVER, '_suspend_guest_for_snapshot',
        'to keep Nova\'s own snapshot from suspending the guest',
        parameters=('context', 'live_snapshot', 'current_power_state',
                    'instance'),
        exact=True, used_by=('snapshot',)),
    Function(
        DRIVER, '_cleanup_rbd', 'to delete disks that have our snapshots',
        parameters=('instance',), exact=True, used_by=('_cleanup',)),
    Function(
        DRIVER, 'process_instances_at_startup',
        'to initialize instances that are not recovered later',
        parameters=('context', 'instances'), exact=True),
    # Methods and attributes of it that we use.
    Function(
        DRIVER, '_needs_suspend_resume_for_snapshot',
        'to know whether Nova\'s own snapshot suspends the guest',
        parameters=('live_snapshot', 'current_power_state'), exact=True,
        used_by=('_suspend_guest_for_snapshot',)),
    Function(
        DRIVER, '_resume_guest_after_snapshot',
        'to recover a guest that Nova\'s own snapshot suspended',
        parameters=('context', 'live_snapshot', 'original_power_state',
                    'instance', 'guest'),
        exact=True, used_by=('snapshot',)),
    Function(
        DRIVER, '_create_snapshot_metadata',
        'to give an image the metadata of Nova\'s own snapshot',
        parameters=('image_meta', 'instance', 'img_fmt', 'snp_name'),
        exact=True, used_by=('snapshot',)),
    Function(
        DRIVER, '_create_guest', 'to resume a guest from its saved memory',
        parameters=('context', 'xml', 'instance')),
    Function(
        DRIVER, '_detach_from_live_with_retry',
        'to detach passthrough devices',
        parameters=('guest', 'instance_uuid', 'live_dev',
                    'get_device_conf_func', 'device_name'), exact=True),
    Attribute(DRIVER, '_host', 'to reach libvirt'),
    Attribute(DRIVER, '_image_api', 'to reach Glance'),
    # Nova's connection to libvirt.
    Attribute(
        HOST, '_wrapped_conn_lock',
        'to replace it with a lock that one thread can take twice',
        used_by=('_get_connection', '_connection_closed')),
    Function(
        HOST, '_get_connection', 'to have the replaced lock used',
        exact=True, used_by=('get_connection',)),
    Attribute(
        HOST, '_conn_event_handler', 'to be called when libvirtd is back',
        used_by=('_queue_conn_event_handler',)),
    Attribute(HOST, '_uri', 'to watch whether libvirtd hangs'),
    Attribute(HOST, '_event_handler', 'to report the end of jobs'),
    Function('nova.virt.libvirt.host:LibvirtEventHandler', '_queue_event',
             'to report the end of jobs', parameters=('event',), exact=True),
    Attribute('nova.virt.libvirt.guest:Guest', '_domain',
              'to call what Nova\'s Guest does not wrap'),
    Function('nova.virt.libvirt.config:LibvirtConfigObject', '_text_node',
             'to describe an internal snapshot',
             parameters=('node_name', 'value')),
    # nova-compute.
    Attribute('nova.compute.manager:ComputeVirtAPI', '_compute',
              'to know when nova-compute stops, and to initialize instances'),
    Attribute('nova.manager:Manager', '_shutdown_in_progress',
              'to know when nova-compute stops',
              used_by=('set_shutdown_in_progress',)),
    Function('nova.compute.manager:ComputeManager', '_init_instance',
             'to initialize an instance when it is recovered',
             parameters=('context', 'instance'), exact=True,
             used_by=('init_host',)),
    Function('nova.thread_pool_factory', 'spawn',
             'to attach devices in the background', parameters=('func',)),
    Function('nova.utils', 'get_eventlet',
             'to use native threads under eventlet', exact=True),
    Function('nova.utils', 'tpool_wrap',
             'to use native threads under eventlet',
             parameters=('target',)),
    Function('nova.utils', 'concurrency_mode_threading',
             'to know whether eventlet is in use', exact=True),
    Function('nova.context', 'get_nova_service_user_context',
             'to delete images as Nova\'s service user', exact=True),
    # Nova's Glance client.
    Function(
        GLANCE_CLIENT, '_create_onetime_client',
        'to use connections that can be closed by another thread',
        parameters=('context', 'version'), exact=True, used_by=('call',)),
    Function('nova.image.glance', '_translate_to_glance',
             'to set properties as Nova does',
             parameters=('image_meta',), exact=True),
    Function('nova.image.glance', '_translate_image_exception',
             'to raise Glance\'s errors as Nova does',
             parameters=('image_id', 'exc_value'), exact=True),
    # glanceclient.
    Function('glanceclient.v2.images:Controller', 'upload',
             # Its parameter image_size, new in 4.10, is optional for us.
             'to send an image', parameters=('image_id', 'image_data')),
    Attribute('glanceclient.v2.client:Client', 'http_client',
              'to replace the session of a client'),
    # keystoneauth1.
    Attribute('keystoneauth1.adapter:Adapter', 'session',
              'to replace the session of a client'),
    # The parameters for TLS options, new in 5.14, are optional for us.
    Function('keystoneauth1.session:TCPKeepAliveAdapter', 'init_poolmanager',
             'to replace the connections of a session'),
    Function('keystoneauth1.session:TCPKeepAliveAdapter',
             'proxy_manager_for',
             'to replace the connections to a proxy'),
    Function('keystoneauth1.service_token:ServiceTokenAuthWrapper',
             '__init__', 'to send a service token',
             keywords=('user_auth', 'service_auth')),
    # urllib3.
    Attribute('urllib3.poolmanager:PoolManager', 'pool_classes_by_scheme',
              'to replace the connections of a session',
              used_by=('_new_pool',)),
    Name('urllib3.connectionpool:HTTPConnectionPool', 'ConnectionCls',
         'to replace the connections of a session', used_by=('_new_conn',)),
    Name('urllib3.connectionpool:HTTPSConnectionPool', 'ConnectionCls',
         'to replace the connections of a session', used_by=('_new_conn',)),
    Function('urllib3.connection:HTTPConnection', '_new_conn',
             'to shut down a connection from another thread', exact=True,
             used_by=('connect',)),
    Function('urllib3.connection:HTTPSConnection', '_new_conn',
             'to shut down a connection from another thread', exact=True,
             used_by=('connect',)),
)


def check() -> list[str]:
    """Compare the installed packages with what this package expects.

    :returns: a text for each difference, with the reason why it matters
    """
    return [f'{name}: {difference} (needed {name.purpose})'
            for name in NAMES for difference in _differences(name)]


def require() -> None:
    """Check that the installed packages are as this package expects.

    :raises CompatibilityError: they differ
    """
    differences = check()
    if not differences:
        return
    # This module imports Nova.
    from nova_snapext import exception
    raise exception.CompatibilityError(
        reason=f'{"; ".join(differences)}. Installed: {versions()}. '
               f'Supported: Nova {SUPPORTED_NOVA}, where these names are as '
               f'nova-snapext expects them')


def versions() -> str:
    """Return the names and versions of the installed packages."""
    return ', '.join(
        f'{name} {importlib.metadata.version(name)}' for name in (
            'nova', 'python-glanceclient', 'keystoneauth1', 'urllib3'))


def shutdown_event(virtapi: ty.Any) -> threading.Event | None:
    """Return the event that Nova sets when nova-compute has to stop.

    :param virtapi: the driver's link to nova-compute
    :returns: None where there is no nova-compute, as in ``nova-snapext
        recover``
    """
    compute = compute_manager(virtapi)
    if compute is None:
        return None
    event: threading.Event = compute._shutdown_in_progress
    return event


def compute_manager(virtapi: ty.Any) -> ty.Any:
    """Return the ComputeManager of this nova-compute.

    :param virtapi: the driver's link to nova-compute
    :returns: None where there is no nova-compute, as in ``nova-snapext
        recover``
    """
    return getattr(virtapi, '_compute', None)


def _differences(name: Name) -> list[str]:
    try:
        return list(name.differences())
    except ImportError as error:
        return [f'its module can\'t be imported: {error}']
    except AttributeError as error:
        return [f'it has no such owner: {error}']


def _appears(name: str, owner: ty.Any, function: str,
             names_in: Callable[[types.CodeType], set[str]]) -> bool:
    """Return whether a name is in the code of a function of its owner.

    :param names_in: returns the names in one code object
    :returns: True if the function has no Python code to inspect
    """
    if not hasattr(owner, function):
        return False
    code = getattr(inspect.unwrap(getattr(owner, function)), '__code__', None)
    return code is None or any(
        name in names_in(part) for part in _with_inner(code))


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """Return a code object, and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)


def _all_names(code: types.CodeType) -> set[str]:
    return set(code.co_names)


def _stored_names(code: types.CodeType) -> set[str]:
    return {instruction.argval for instruction in dis.get_instructions(code)
            if instruction.opname == 'STORE_ATTR'}
