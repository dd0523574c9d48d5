# SPDX-License-Identifier: Apache-2.0
"""What other packages do not promise, and what differs between their releases.

Nova has no stable interface for drivers outside its tree, and three client
libraries have none for connections that another thread can close. Each name
is listed here with the properties that this package relies on. If another
release changes one of them, the driver does not start, and
``nova-snapext check`` and a test report it.

Functions that not every supported Nova has are here too, with the names that
the newest Nova gives them.

This module imports Nova only inside of functions: ``nova-snapext check`` has
to run where Nova can't be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import dataclasses
import dis
import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
import sys
import threading
import types
import typing as ty

# The oldest and the newest Nova that the tests run with: 2025.1 and 2026.2.
MIN_NOVA = 31
MAX_NOVA = 34
SUPPORTED_NOVA = f'{MIN_NOVA} (2025.1) to {MAX_NOVA} (2026.2)'

# The first Nova whose nova-compute has native threads by default. Those before
# have eventlet's.
NATIVE_THREADS_NOVA = 34

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
    :ivar first_nova: the first Nova with which we use it
    :ivar last_nova: the last one
    """

    owner: str
    name: str
    purpose: str
    used_by: tuple[str, ...] = ()
    first_nova: int = MIN_NOVA
    last_nova: float = float('inf')

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
    *(Function(
        DRIVER, name, 'to thaw after an error of Nova\'s own snapshot',
        parameters=('context', 'instance', 'image_meta'), exact=True,
        used_by=('_live_snapshot',)) for name in ('quiesce', 'unquiesce')),
    Function(
        DRIVER, 'pause', 'to pause no guest that a merge will resume',
        parameters=('instance',), exact=True),
    Function(
        DRIVER, 'cleanup_host', 'to leave no guest paused at the end',
        parameters=('host',), exact=True),
    Function(
        DRIVER, '_cleanup_lvm', 'to delete disks that nobody has opened',
        parameters=('instance',), used_by=('_cleanup',)),
    Function(
        DRIVER, '_cleanup_rbd', 'to delete disks that have our snapshots',
        parameters=('instance',), exact=True, used_by=('_cleanup',)),
    Function(
        DRIVER, 'process_instances_at_startup',
        'to initialize instances that are not recovered later',
        parameters=('context', 'instances'), exact=True, first_nova=34),
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
    Attribute(DRIVER, 'image_backend',
              'to record Nova\'s own snapshot inside Ceph',
              used_by=('snapshot',)),
    Function('nova.virt.libvirt.imagebackend:Backend', 'by_libvirt_path',
             'to record Nova\'s own snapshot inside Ceph',
             parameters=('instance', 'path', 'image_type'), exact=True),
    Function('nova.virt.libvirt.imagebackend:Rbd', 'direct_snapshot',
             'to record Nova\'s own snapshot inside Ceph',
             parameters=('context', 'snapshot_name', 'image_format',
                         'image_id', 'base_image_id'), exact=True),
    Function('nova.virt.libvirt.imagebackend:Rbd', 'cleanup_direct_snapshot',
             'to know that Nova\'s own snapshot leaves Ceph',
             parameters=('location', 'also_destroy_volume',
                         'ignore_errors'), exact=True,
             used_by=('direct_snapshot',)),
    Attribute(DRIVER, '_image_api', 'to reach Glance'),
    # Nova's connection to libvirt.
    Attribute(
        HOST, '_wrapped_conn_lock',
        'to replace it with a lock that one thread can take twice',
        used_by=('_get_connection', '_connection_closed'), first_nova=33),
    Attribute(
        HOST, '_wrapped_conn_lock',
        'to replace it with a lock that one thread can take twice',
        used_by=('_get_connection', '_dispatch_events'), last_nova=32),
    Function(
        HOST, '_get_connection', 'to have the replaced lock used',
        exact=True, used_by=('get_connection',)),
    Attribute(
        HOST, '_conn_event_handler', 'to be called when libvirtd is back',
        used_by=('_queue_conn_event_handler',)),
    Attribute(HOST, '_uri', 'to watch whether libvirtd hangs'),
    Attribute(HOST, '_event_handler', 'to report the end of jobs',
              first_nova=33),
    Function('nova.virt.libvirt.host:LibvirtEventHandler', '_queue_event',
             'to report the end of jobs', parameters=('event',), exact=True,
             first_nova=33),
    Function(HOST, '_queue_event', 'to report the end of jobs',
             parameters=('event',), exact=True, last_nova=32),
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
              used_by=('set_shutdown_in_progress',), first_nova=34),
    Function('nova.service:Service', 'stop',
             'to know when nova-compute stops', exact=True, last_nova=33),
    Function('nova.compute.manager:ComputeManager', '_init_instance',
             'to initialize an instance when it is recovered',
             parameters=('context', 'instance'), exact=True,
             used_by=('init_host',)),
    Function('nova.thread_pool_factory', 'spawn',
             'to attach devices in the background', parameters=('func',),
             first_nova=34),
    # Nova's own fixture has other parameters.
    Name('nova.utils', 'spawn', 'to attach devices in the background',
         last_nova=33),
    Function('nova.monkey_patch', 'patch',
             'to choose the threads of the commands',
             keywords=('backend',), first_nova=NATIVE_THREADS_NOVA),
    Function('nova.monkey_patch', 'patch',
             'to choose the threads of the commands',
             first_nova=32, last_nova=NATIVE_THREADS_NOVA - 1),
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
    Attribute('glanceclient.v2.client:Client', 'http_client',
              'to replace the session of a client'),
    # keystoneauth1.
    Function('keystoneauth1.session:Session', 'request',
             'to send an image once',
             keywords=('allow_reauth', 'redirect')),
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


def nova_release() -> int:
    """Return the major version of the installed Nova: 34 is 2026.2.

    :raises importlib.metadata.PackageNotFoundError: there is none
    """
    return int(importlib.metadata.version('nova').partition('.')[0])


def names() -> tuple[Name, ...]:
    """Return the names that this package uses of the installed packages."""
    nova = nova_release()
    return tuple(name for name in NAMES
                 if name.first_nova <= nova <= name.last_nova)


def check() -> list[str]:
    """Compare the installed packages with what this package expects.

    :returns: a text for each difference, with the reason why it matters
    """
    return [f'{name}: {difference} (needed {name.purpose})'
            for name in names() for difference in _differences(name)]


def too_old() -> str | None:
    """Return a sentence if this Nova is too old, otherwise None."""
    if nova_release() >= MIN_NOVA:
        return None
    return (f'Nova {importlib.metadata.version("nova")} is too old: '
            f'nova-snapext needs Nova {MIN_NOVA} (2025.1) or newer')


def untested() -> str | None:
    """Return a sentence if this Nova is newer than the tests', or None."""
    if nova_release() <= MAX_NOVA:
        return None
    return (f'Nova {importlib.metadata.version("nova")} is newer than those '
            f'that this nova-snapext was tested with, {SUPPORTED_NOVA}. All '
            f'that it is known to depend on is as expected. Look for a newer '
            f'nova-snapext; until there is one, check with an instance that '
            f'can be spared that a snapshot succeeds and boots')


def require() -> None:
    """Check that the installed packages are as this package expects.

    A Nova that is newer than the tests' is a warning in the log.

    :raises CompatibilityError: they differ, or Nova is too old
    """
    # An older Nova differs in more than is listed here.
    old = too_old()
    differences = [old] if old else check()
    if differences:
        # This module imports Nova.
        from nova_snapext import exception
        raise exception.CompatibilityError(
            reason=f'{"; ".join(differences)}. Installed: {versions()}. '
                   f'Supported: Nova {SUPPORTED_NOVA}, where these names are '
                   f'as nova-snapext expects them')
    warning = untested()
    if warning:
        # Not before nova-compute has chosen its kind of threads.
        from oslo_log import log as oslo_logging
        oslo_logging.getLogger(__name__).warning('%s', warning)


def versions() -> str:
    """Return the names and versions of the installed packages."""
    return ', '.join(
        f'{name} {importlib.metadata.version(name)}' for name in (
            'nova', 'python-glanceclient', 'keystoneauth1', 'urllib3'))


def patch_threads() -> None:
    """Choose the threads of this process, as this Nova's nova-compute does.

    Call it before any other module of Nova is imported. Native threads are
    used if they are nova-compute's default, whatever its configuration says.
    """
    if nova_release() >= NATIVE_THREADS_NOVA:
        use_native_threads()
        return
    os.environ.pop('OS_NOVA_DISABLE_EVENTLET_PATCHING', None)
    # The import alone does it in Nova 31.
    from nova import monkey_patch
    if nova_release() > 31:
        monkey_patch.patch()


def use_native_threads() -> None:
    """Choose native threads for this process, which is no nova-compute.

    A green thread that hangs in a call in C, such as libvirt's, would stop
    all others. Call it before any other module of Nova is imported. It does
    nothing if this process has green threads already.
    """
    if get_eventlet() is not None:
        return
    os.environ['OS_NOVA_DISABLE_EVENTLET_PATCHING'] = 'true'
    if nova_release() < NATIVE_THREADS_NOVA:
        # Nova's driver calls libvirt by eventlet's pool of native threads,
        # which serves only one thread. Without a pool it calls at once: see
        # execute() in eventlet/tpool.py.
        os.environ['EVENTLET_THREADPOOL_SIZE'] = '0'
    # Nova 32 and 33 warn services of native threads. No log is set up yet.
    logging.getLogger('nova.monkey_patch').setLevel(logging.ERROR)
    # The import alone would choose in Nova 31.
    from nova import monkey_patch
    if nova_release() >= NATIVE_THREADS_NOVA:
        monkey_patch.patch(backend='threading')
    elif nova_release() > 31:
        monkey_patch.patch()
    if nova_release() < 33:
        # Nova would wait for libvirt's events in a green thread, which never
        # yields to the others here: its queue is for native threads.
        from nova import utils
        utils.spawn = utils.spawn_n = _start_thread


def _start_thread(function: Callable[..., object], *args: ty.Any,
                  **kwargs: ty.Any) -> None:
    threading.Thread(target=function, args=args, kwargs=kwargs,
                     daemon=True).start()


def get_eventlet() -> ty.Any:
    """Return eventlet if this process has its threads, otherwise None.

    With native threads, Nova does not allow to import it.
    """
    eventlet = sys.modules.get('eventlet')
    if eventlet is None or not eventlet.patcher.is_monkey_patched('thread'):
        return None
    return eventlet


def concurrency_mode_threading() -> bool:
    """Return whether this process has native threads, not eventlet's."""
    return get_eventlet() is None


def tpool_wrap(target: ty.Any) -> ty.Any:
    """Return a function, or an object, whose calls may block.

    Under eventlet they run in a native thread, and the others go on.
    """
    if concurrency_mode_threading():
        return target
    return importlib.import_module('eventlet.tpool').Proxy(target)


def thread_pool(workers: int, name: str) -> futures.Executor:
    """Return an executor for a thread that :func:`tpool_wrap` has begun.

    Under eventlet it has no threads, and calls each function at once. The
    pools of concurrent.futures share one lock in the whole process. eventlet
    makes it one for green threads: a native thread that has to wait for it
    is never woken up.

    :param workers: number of threads
    :param name: beginning of the threads' names
    """
    return (futures.ThreadPoolExecutor(workers, name)
            if concurrency_mode_threading() else _CallingThread())


class _CallingThread(futures.Executor):

    def submit(self, function: Callable[..., ty.Any], /, *args: ty.Any,
               **kwargs: ty.Any) -> futures.Future[ty.Any]:
        future: futures.Future[ty.Any] = futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def spawn(function: Callable[[], object]) -> None:
    """Run a function in the background, with the context of its caller."""
    if nova_release() >= 34:
        from nova import thread_pool_factory
        thread_pool_factory.spawn(function)
    else:
        from nova import utils
        utils.spawn(function)


def shutdown_event(virtapi: ty.Any) -> threading.Event | None:
    """Return the event that is set when nova-compute has to stop.

    It is Nova's own, or that of :func:`observe_stop`.

    :param virtapi: the driver's link to nova-compute
    :returns: None where there is no nova-compute, as in ``nova-snapext
        recover``
    """
    compute = compute_manager(virtapi)
    if compute is None:
        return None
    event: threading.Event = (
        compute._shutdown_in_progress if nova_release() >= 34
        else observe_stop())
    return event


@functools.cache
def observe_stop() -> threading.Event:
    """Return an event that is set when the service of this process stops.

    Nova 33 and older have none. Their Service.stop() is the first to know of
    a SIGTERM. It waits for all requests that are being served, snapshots
    among them in Nova 31 and 32, before it tells the ComputeManager.
    """
    import threading

    from nova import service
    event = threading.Event()
    stop = service.Service.stop

    @functools.wraps(stop)
    def announced_stop(self: ty.Any) -> None:
        event.set()
        stop(self)

    service.Service.stop = announced_stop
    return event


def event_queue(host: ty.Any) -> Callable[[ty.Any], None]:
    """Return the function that hands an event of libvirt to the driver.

    It can be called in libvirt's thread, also under eventlet.

    :param host: Nova's connection to libvirt
    """
    queue: Callable[[ty.Any], None] = (
        host._event_handler._queue_event if nova_release() >= 33
        else host._queue_event)
    return queue


@dataclasses.dataclass(frozen=True)
class _InitializeUnlessHeld:
    """ComputeManager._init_instance() for instances that are not held."""

    initialize: Callable[[ty.Any, ty.Any], None]
    is_held: Callable[[ty.Any, ty.Any], bool]

    def __call__(self, context: ty.Any, instance: ty.Any) -> None:
        if not self.is_held(context, instance):
            self.initialize(context, instance)


def hold_instances(virtapi: ty.Any,
                   is_held: Callable[[ty.Any, ty.Any], bool]) -> None:
    """Have a function decide which instances Nova initializes at its start.

    Nova 34 asks the driver, by its process_instances_at_startup(). This is
    for those that do not, and does nothing with the others.

    :param virtapi: the driver's link to nova-compute
    :param is_held: is given a RequestContext and an Instance
    """
    compute = compute_manager(virtapi)
    if compute is not None and nova_release() < 34:
        compute._init_instance = _InitializeUnlessHeld(
            compute._init_instance, is_held)


def init_instance(virtapi: ty.Any, context: ty.Any, instance: ty.Any) -> None:
    """Initialize an instance as Nova does at its start, held back or not.

    :param virtapi: the driver's link to nova-compute
    """
    initialize = compute_manager(virtapi)._init_instance
    if isinstance(initialize, _InitializeUnlessHeld):
        initialize = initialize.initialize
    initialize(context, instance)


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
