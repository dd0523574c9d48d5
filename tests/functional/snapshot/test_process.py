# SPDX-License-Identifier: Apache-2.0
"""What snapshots leave in the process that takes them: nothing."""

import contextlib
import gc
import logging
import os
import pathlib
import re
import threading
import tracemalloc
from unittest import mock

from devcloud import errors
from devcloud import wait
import fixtures
import libvirt
from nova.compute import utils as compute_utils
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.tests.unit import fake_instance
from oslo_config import fixture as config_fixture
from oslo_utils import units
import psutil

from nova_snapext import checks
from nova_snapext import conf
from nova_snapext.encode import reservation
from nova_snapext import exception
from nova_snapext.snapshot import action_event
from nova_snapext.snapshot import job
from tests.functional import base
from tests.functional.snapshot import glance

# Seconds, to fail instead of waiting indefinitely.
LIMIT = 60

# Seconds that the kernel may take to remove a thread that has been joined.
END_OF_THREAD = 2

# Bytes of Python's memory that all snapshots together may keep: the buffers of
# one reader (4 of 512 KiB) do not fit.
KEPT_MEMORY = 2 * units.Mi

# Maximum growth of the process with its C libraries, in bytes: less than half
# of what is read. The allocator keeps some of what was freed, and tracemalloc
# has memory of its own.
GROWTH = 64 * units.Mi


class FakeImageApi:
    """As much of Nova's image API as snapshots use.

    Nova's own snapshot uploads through it.
    """

    def __init__(self):
        self.strategy = None

    def get(self, _context, image_id, **_kwargs):
        return {'id': image_id, 'name': 'snap', 'status': 'queued',
                'properties': {'snapext_strategy': self.strategy}}

    def update(self, _context, _image_id, _metadata, data=None, **_kwargs):
        while data is not None and data.read(units.Mi):
            pass


class FakeComputeManager:

    def __init__(self):
        self._shutdown_in_progress = threading.Event()


class Remains:
    """What belongs to this process, except the workers of Nova's pools.

    Nova keeps these for all that it does in the background, and limits their
    number. A pool has one more after it was given two things at once.
    """

    def __init__(self):
        threads = threading.enumerate()
        workers = {thread for thread in threads
                   if type(thread).__module__.startswith('futurist.')}
        self.threads = {thread.name for thread in {*threads} - workers}
        self.tasks = (set(os.listdir('/proc/self/task')) -
                      {str(thread.native_id) for thread in workers})
        self.descriptors = set()
        for descriptor in pathlib.Path('/proc/self/fd').iterdir():
            # The one that lists the others is closed by now.
            with contextlib.suppress(FileNotFoundError):
                self.descriptors.add(
                    (descriptor.name, os.readlink(descriptor)))
        self.children = {(child.pid, child.name()) for child
                         in psutil.Process().children(recursive=True)}

    def since(self, before):
        """Return what has come since, by kind."""
        found = {kind: getattr(self, kind) - getattr(before, kind)
                 for kind in vars(self)}
        return {kind: new for kind, new in found.items() if new}


def left_since(before):
    """Return what has come since and stays, by kind."""
    with contextlib.suppress(errors.TimedOut):
        wait.until('the end of the threads', lambda: not Remains().since(
            before), END_OF_THREAD, interval=0.05)
    return Remains().since(before)


def rss():
    """Return the memory of the process, in bytes."""
    return psutil.Process().memory_info().rss


class ProcessTest(base.GuestTestCase):

    def setUp(self):
        super().setUp()
        self.glance = self.enterContext(glance.GlanceProcess())
        self.config = self.useFixture(config_fixture.Config(conf.CONF))
        self.staging = self.images / 'staging'
        self.set('glance', api_servers=[self.glance.url], num_retries=1)
        self.set('snapext', allowed_image_strategies=list(
            self.driver.strategies), read_timeout=LIMIT, min_free_disk_mb=1,
            operation_timeout=LIMIT, compression_min_saving_percent=0)
        self.set('libvirt', snapshots_directory=str(self.staging))
        self.set('DEFAULT', reserved_host_disk_mb=0)
        # Each check is to run, and to be interrupted, in each snapshot.
        self.patch(checks, 'FAST_INTERVAL', 0.02)
        self.patch(checks, 'SLOW_INTERVAL', 0.02)
        self.image_api = FakeImageApi()
        self.patch(self.driver, '_image_api', self.image_api)
        self.patch(self.driver.virtapi, '_compute', FakeComputeManager())
        # No conductor is there.
        self.patch(action_event, '_event',
                   lambda *_args: contextlib.nullcontext())
        self.patch(objects.Instance, 'save', lambda instance, **_kwargs:
                   instance.obj_reset_changes())
        self.is_deleted = False
        self.patch(objects.Instance, 'get_by_uuid', self.get_instance)
        self.act = None
        self.stream = job.stream
        self.patch(job, 'stream', self.stream_and_act)
        self.context = nova_context.RequestContext(
            'user', 'project', is_admin=False, auth_token='token')
        # One disk: an internal snapshot would have to be inside all.
        self.patch(base, 'DOMAIN', re.sub(
            r"<disk type='file'.*</disk>", '', base.DOMAIN, flags=re.DOTALL))
        disk = self.qcow2()
        self.fill(disk, 0x22)
        self.running = self.server(self.guest(disk))
        self.stopped = self.server(self.guest(self.raw(), running=False))

    def set(self, group, **options):
        self.config.config(group=None if group == 'DEFAULT' else group,
                           **options)

    def patch(self, target, name, value):
        # Not a mock, which would keep the arguments of all calls.
        self.useFixture(fixtures.MockPatchObject(
            target, name, value, create=True))

    def server(self, plan):
        """Return an instance of Nova that has the guest of a plan."""
        instance = fake_instance.fake_instance_obj(
            self.context, uuid=plan.instance.uuid, vm_state='active',
            system_metadata={}, expected_attrs=['system_metadata'],
            root_device_name='/dev/vda')
        instance.numa_topology = None
        return instance

    def get_instance(self, _context, uuid, **_kwargs):
        if self.is_deleted:
            raise nova_exception.InstanceNotFound(instance_id=uuid)
        return self.running

    def stream_and_act(self, plan, strategy, frozen, token, on_progress):
        act, self.act = self.act, None

        def act_once(sent, size):
            nonlocal act
            on_progress(sent, size)
            if act is not None and sent:
                now, act = act, None
                if now():
                    # Unless a check cancels the snapshot, the test fails.
                    token.wait(LIMIT)
                    raise AssertionError('it is not cancelled')

        return self.stream(plan, strategy, frozen, token, act_once)

    def snapshot(self, strategy='backup', server=None, way='stored',
                 error=None, act=None):
        """Take a snapshot.

        :param way: how its upload ends
        :param error: the error that it has to fail with
        :param act: called when the first bytes are sent; returns whether a
            check has to cancel the snapshot then
        """
        self.image_api.strategy, self.act = strategy, act
        raised = None
        try:
            self.driver.snapshot(
                self.context, server or self.running, glance.image_id(way),
                lambda *_args, **_kwargs: None)
        except Exception as failure:
            if error is None or not isinstance(failure, error):
                raise
            raised = type(failure)
        self.assertEqual(error is None, raised is None)

    @contextlib.contextmanager
    def options(self, group, **options):
        before = {name: getattr(
            conf.CONF if group == 'DEFAULT' else conf.CONF[group], name)
            for name in options}
        self.set(group, **options)
        try:
            yield
        finally:
            self.set(group, **before)

    # The kinds of snapshots: first those that succeed.

    def backup(self):
        self.snapshot()

    def external(self):
        self.snapshot('external')

    def internal(self):
        self.snapshot('internal')

    def cold_of_running_guest(self):
        self.snapshot('cold')

    def cold_of_stopped_guest(self):
        self.snapshot('cold', self.stopped)

    def native(self):
        self.snapshot('native')

    def raw_image(self):
        with self.options('libvirt', snapshot_image_format='raw'):
            self.snapshot()

    def vmdk_image(self):
        with self.options('libvirt', snapshot_image_format='vmdk'):
            self.snapshot()

    def vdi_image(self):
        with self.options('libvirt', snapshot_image_format='vdi'):
            self.snapshot('external')

    def zlib_image(self):
        with self.options('libvirt', snapshot_compression=True), \
                self.options('snapext', compression_type='zlib',
                             compression_threads=3):
            self.snapshot()

    def zstd_image(self):
        with self.options('libvirt', snapshot_compression=True), \
                self.options('snapext', compression_type='zstd',
                             compression_threads=3):
            self.snapshot('external')

    def retried_upload(self):
        self.snapshot(way='cut')

    # Those that fail, by the stage in which they do.

    def refused_strategy(self):
        self.snapshot('backup', self.stopped,
                      error=exception.StrategyRefused)

    def failed_freeze(self):
        def refuse(*_args):
            raise libvirt.libvirtError('refused by the test')

        with mock.patch.object(libvirt.virDomain, 'backupBegin', refuse):
            self.snapshot(error=exception.FreezeFailed)

    def failed_staging(self):
        with self.options('libvirt', snapshots_directory='/dev/null',
                          snapshot_image_format='vmdk'):
            self.snapshot(error=exception.SnapextError)

    def cancelled_staging(self):
        # It would take eight seconds.
        with self.options('libvirt', snapshot_image_format='vmdk'), \
                self.options('snapext', read_rate_limit_mbps=1), \
                self.stopping():
            self.snapshot('external', error=exception.ServiceStopping)

    def refused_upload(self):
        self.snapshot(way='refused', error=exception.GlanceRefused)

    def corrupted_upload(self):
        self.snapshot(way='corrupted', error=exception.ImageMismatch)

    def deleted_image(self):
        self.snapshot(way='deleted', error=nova_exception.ImageNotFound)

    def deleted_image_while_compressed(self):
        with self.options('libvirt', snapshot_compression=True):
            self.snapshot('external', way='deleted',
                          error=nova_exception.ImageNotFound,
                          act=lambda: True)

    def stopping_service(self):
        with contextlib.ExitStack() as stack:
            self.snapshot(
                'external', error=exception.ServiceStopping,
                act=lambda: stack.enter_context(self.stopping()) or True)

    def deleted_instance(self):
        def delete():
            self.is_deleted = True
            return True

        try:
            self.snapshot(error=nova_exception.InstanceNotFound, act=delete)
        finally:
            self.is_deleted = False

    def full_file_system(self):
        with contextlib.ExitStack() as stack:
            self.snapshot(
                error=exception.InsufficientSpace,
                act=lambda: stack.enter_context(self.options(
                    'snapext', min_free_disk_mb=units.Gi)) or True)

    def stopped_guest(self):
        domain = self.host.get_guest(self.running)._domain
        # So that not all of the disk is read by then.
        with self.options('snapext', read_rate_limit_mbps=1):
            self.snapshot(error=exception.GuestStopped, act=domain.destroy)
        domain.create()

    @contextlib.contextmanager
    def stopping(self):
        stopping = self.driver.virtapi._compute._shutdown_in_progress
        stopping.set()
        try:
            yield
        finally:
            stopping.clear()

    KINDS = (
        backup, external, internal, cold_of_running_guest,
        cold_of_stopped_guest, native, raw_image, vmdk_image, vdi_image,
        zlib_image, zstd_image, retried_upload, refused_strategy,
        failed_freeze, failed_staging, cancelled_staging, refused_upload,
        corrupted_upload, deleted_image, deleted_image_while_compressed,
        stopping_service, deleted_instance, full_file_system, stopped_guest)

    def test_process_is_as_before_after_twenty_snapshots(self):
        self.assertGreaterEqual(len(self.KINDS), 20)
        for kind in self.KINDS:
            kind(self)
        gc.collect()
        # The collector would hide what it frees some time later.
        gc.disable()
        self.addCleanup(gc.enable)
        # The tests keep the log in memory.
        logging.disable()
        self.addCleanup(logging.disable, logging.NOTSET)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        callbacks, size = self.callbacks(), rss()
        kept, growth = {}, {}
        for kind in self.KINDS:
            before, memory = Remains(), tracemalloc.get_traced_memory()[0]
            kind(self)
            growth[kind.__name__] = (
                tracemalloc.get_traced_memory()[0] - memory)
            found = left_since(before)
            if found:
                kept[kind.__name__] = found
        self.assertEqual({}, kept)
        self.assertEqual(callbacks, self.callbacks())
        self.assertLess(sum(growth.values()), KEPT_MEMORY, growth)
        self.assertLess(rss() - size, GROWTH)
        self.assert_driver_is_idle()

    def test_libvirtd_may_restart_while_a_snapshot_waits_for_others(self):
        @contextlib.contextmanager
        def restart():
            self.libvirtd.kill()
            self.libvirtd.start()
            yield

        # There is no receiver for Nova's notifications of that.
        self.useFixture(fixtures.MockPatch('nova.rpc.get_notifier'))
        self.useFixture(fixtures.MockPatch(
            'nova.compute.utils.notify_about_libvirt_connect_error'))
        self.patch(job, 'MAX_WAIT', 0)
        self.patch(compute_utils, 'disk_ops_semaphore', restart())
        self.snapshot('backup')

    def callbacks(self):
        """Return the ids of the callbacks that libvirt has for events."""
        return set(self.host.get_connection().domainEventCallbackID)

    def assert_driver_is_idle(self):
        gate = self.driver.gate
        for held in (self.driver.native_jobs, gate._snapshots,
                     gate._recoveries, gate._queued, gate._recover_later,
                     self.driver.pending_unplugs._expected,
                     reservation._reservations):
            self.assertFalse(held)
        self.assertEqual([], list(self.staging.iterdir()))
