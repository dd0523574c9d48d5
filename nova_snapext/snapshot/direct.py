# SPDX-License-Identifier: Apache-2.0
"""An image in Glance's pool in Ceph, past Glance's API.

A snapshot in Ceph becomes an image as in Nova's own direct snapshot
(Rbd.direct_snapshot in nova/virt/libvirt/imagebackend.py): it is cloned into
Glance's pool, the clone flattened, and Glance told where it is. Unlike Nova's,
the guest's filesystems can be frozen for the point in time, the copy shows its
progress and can be cancelled, nothing is left of it after any failure, and the
disk is streamed from the same snapshot if Glance refuses.

Another disk is written into Glance's pool by this host, if an option allows
it: only what is not zero, and without Glance's API in between.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
import dataclasses
import math
import typing as ty

from nova.compute import task_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova.storage import rbd_utils
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import rbd_clone
from nova_snapext.resources import rbd_copy
from nova_snapext.resources import rbd_image
from nova_snapext import strategies
from nova_snapext.strategies import rbd
from nova_snapext import upload
from nova_snapext.upload import location
from nova_snapext.upload import service_user

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Seconds until Glance has made an image active, or never does: it takes less
# than one.
SETTLE_TIMEOUT = 10

# Tasks whose image no task of Nova deletes next. Others: the rotation of a
# backup, an unshelve, the end of a resize to another cell.
KEEPING_TASKS = (task_states.IMAGE_SNAPSHOT,
                 task_states.IMAGE_SNAPSHOT_PENDING)


_Data = ty.TypeVar('_Data', bound=rbd_image.RbdImage)


@dataclasses.dataclass(frozen=True)
class Stored:
    """How an image got its data.

    :ivar read_bytes: read from the disk, by this host
    :ivar sent_bytes: sent to Glance, or to Ceph, by this host
    :ivar in_ceph: whether Glance has taken the image over, and may still read
        it
    """

    read_bytes: int = 0
    sent_bytes: int = 0
    in_ceph: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Making:
    """What a snapshot hands to the image that is made in Ceph.

    All of it is used in the snapshot's worker thread. Under eventlet that is
    a native thread, which shares no lock of Nova's.

    :ivar stack: releases the image's data if the snapshot fails, in the
        thread that runs the snapshot
    :ivar seen_by_nova: see :func:`upload.is_seen_by_nova`
    :ivar complete: called when the image is complete
    """

    driver: libvirt_driver.LibvirtDriver
    stack: journal.ReleaseStack
    seen_by_nova: bool
    complete: Callable[[], None]


def make_image(plan: planning.Plan, frozen: strategies.FrozenDisk,
               making: Making, metadata: upload.Metadata,
               token: cancel.CancelToken,
               on_progress: upload.OnProgress) -> Stored | None:
    """Make an image in Ceph, if that is possible.

    :returns: how it was made, see :func:`wait_until_hashed`. If None, nothing
        is left of it, and the disk has to be streamed
    :raises DiskReadError: the frozen disk can't be read
    :raises ReleaseFailed: it is not made, and its data is left in Ceph
    :raises JournalFailed: it is not made, and the journal may still have its
        data
    :raises ImageNotFound: the image was deleted
    """
    image: DirectImage[ty.Any]
    if isinstance(frozen, rbd.FrozenRbd):
        image = ClonedImage(plan, frozen.snapshot, making, token, on_progress)
    elif CONF.snapext.rbd_image_user and ceph.image_of(plan.disk) is None:
        image = CopiedImage(plan, frozen, making, token, on_progress)
    else:
        return None
    is_begun = False
    try:
        with token.prefer_cause():
            image.check()
            is_begun = True
            # Glance would overwrite later changes with what it has read when
            # it takes over the location.
            with upload.GlanceImage(
                    plan.context, plan.image_id, token) as glance_image:
                glance_image.update_metadata(metadata)
            return image.make()
    except (exception.CephError, exception.DirectImageRefused) as error:
        # What is missing on purpose is no reason for a warning.
        LOG.log(logging.WARNING if is_begun else logging.INFO,
                'The root disk is streamed: %s', error,
                instance=plan.instance)
    return None


def wait_until_hashed(plan: planning.Plan, token: cancel.CancelToken,
                      task_state: str | None) -> None:
    """Wait until Glance has read a complete image for its digest.

    No error fails the snapshot; the log says what is not known.

    :param task_state: Nova's task that the snapshot is part of. A Glance that
        was restarted never ends; only where Nova may delete the image next,
        its size is waited for
    :param token: its cancellation ends the wait
    """
    try:
        with location.LocatedImage(
                plan.context, plan.image_id, token) as image:
            if not image.wait_until_hashed(
                    math.inf if task_state in KEEPING_TASKS
                    else location.SLOWEST_HASH):
                LOG.info('Glance has no digest of image %s', plan.image_id,
                         instance=plan.instance)
    except nova_exception.ImageNotFound:
        LOG.warning('Image %s was deleted while Glance read it for its '
                    'digest. If Glance shows it again, active and without '
                    'data, delete it again', plan.image_id,
                    instance=plan.instance)
    except Exception as error:
        LOG.warning('Image %(image)s is complete, but Glance may still read '
                    'it for its digest: do not delete it before it has one '
                    '(%(error)s)', {'image': plan.image_id, 'error': error},
                    instance=plan.instance)


def may_be_taken_over(plan: planning.Plan) -> bool:
    """Return whether Glance may have the data that it was offered.

    It waits for the end of a task that takes it over.
    """
    with location.LocatedImage(
            plan.context, plan.image_id, cancel.CancelToken()) as image:
        try:
            return image.is_taken_over()
        except nova_exception.ImageNotFound:
            return False
        except Exception as error:
            LOG.warning('It is not known whether Glance has the data of image '
                        '%(image)s: %(error)s',
                        {'image': plan.image_id, 'error': error},
                        instance=plan.instance)
            return True


class DirectImage(abc.ABC, ty.Generic[_Data]):
    """The image of one snapshot, made in Ceph.

    :param token: its cancellation ends the copy within seconds
    :param on_progress: called with the number of bytes that are in the image,
        and the total
    """

    def __init__(self, plan: planning.Plan, making: Making,
                 token: cancel.CancelToken,
                 on_progress: upload.OnProgress):
        self._plan = plan
        self._making = making
        self._token = token
        self._on_progress = on_progress
        self._user: str | None = None
        self._pool = ''
        self._store: str | None = None
        # How often its data is written, if Ceph fails.
        self._attempts = 1

    def check(self) -> None:
        """Check all that can be known before anything is created.

        :raises DirectImageRefused: it is known that it can't end well
        """
        reason = unsupported_reason(self._plan) or self._glance_reason()
        if reason is not None:
            raise self._refused(reason)
        self._pool = self._find_pool()
        # Without the right, nobody could tell later whether data was left.
        try:
            ceph.check_writable(self._pool, self._user)
        except exception.CephError as error:
            raise self._refused(str(error)) from error

    def make(self) -> Stored:
        """Make the image after its check, and have Glance take it over.

        After any other error than these, the stack releases its data.

        :raises DirectImageRefused: it is not possible; nothing is left, and
            the disk can be streamed
        :raises ReleaseFailed: it is not possible, and its data is left
        :raises JournalFailed: it is not possible, and the disk must not be
            streamed: the journal may still have its data
        :raises ImageNotFound: the image was deleted
        """
        stack = self._making.stack
        data = self._new_data(ceph.ImageSpec(
            self._pool, self._plan.image_id, self._user))
        self._token.raise_if_cancelled()
        stack.add(data)
        try:
            snapshot = self._fill_again(data)
            with self._located() as image:
                self._register(data, image, snapshot)
        except (exception.CephError, exception.LocationRefused) as error:
            self._token.raise_if_cancelled()
            data.release()
            # Glance may keep the streamed image under the same name.
            stack.mark_replaced(data)
            raise self._refused(str(error)) from error
        # From here on the image is the only one that has the data. Nobody may
        # delete it, whatever happens while Glance still reads it.
        stack.mark_released(data)
        self._making.complete()
        LOG.info('Image %(image)s was made inside Ceph, as %(spec)s',
                 {'image': self._plan.image_id, 'spec': data.spec},
                 instance=self._plan.instance)
        return self._stored()

    def _fill_again(self, data: _Data) -> ceph.SnapSpec:
        """Fill the image, and try again if that fails.

        :returns: the snapshot that Glance expects
        :raises CephError: it fails again, or in a way that will not change
        """
        for left in reversed(range(self._attempts)):
            self._token.raise_if_cancelled()
            try:
                return self._fill(data)
            except exception.CephError as error:
                if left == 0 or ceph.is_final(error):
                    raise
                LOG.warning('The image is written again: %s', error,
                            instance=self._plan.instance)
                self._token.raise_if_cancelled()
                data.release()
        raise AssertionError('the last attempt has ended it')

    @abc.abstractmethod
    def _new_data(self, spec: ceph.ImageSpec) -> _Data:
        """Return what is put into the journal. Nothing is created yet."""

    @abc.abstractmethod
    def _fill(self, data: _Data) -> ceph.SnapSpec:
        """Create the image's data, with the snapshot that Glance expects.

        :raises CephError: a step fails
        """

    @abc.abstractmethod
    def _stored(self) -> Stored:
        """Return how the image got its data."""

    @abc.abstractmethod
    def _find_pool(self) -> str:
        """Return the pool that Glance has its images in.

        :raises DirectImageRefused: it is not known
        """

    def _pool_of_options(self, otherwise: str) -> str:
        """Return the pool that the options name, if Glance has its store.

        :param otherwise: what else does not tell the pool
        :raises DirectImageRefused: they name none
        """
        if not CONF.snapext.rbd_image_pool:
            raise self._refused(
                f'{otherwise}[snapext]rbd_image_pool is not set')
        self._store = CONF.snapext.rbd_image_store
        if self._store:
            self._check_store(self._store)
        return str(CONF.snapext.rbd_image_pool)

    def _check_store(self, store: str) -> None:
        """Check that Glance has a store.

        :raises DirectImageRefused: it has none of this name
        """
        with self._located() as image:
            try:
                stores = image.stores()
            except upload.CLIENT_ERRORS as error:
                self._token.raise_if_cancelled()
                raise self._refused(
                    f'Glance does not tell its stores: {error}') from error
        if store not in stores:
            raise self._refused(
                f'[snapext]rbd_image_store is {store}, and Glance has '
                f'{f"the stores {stores}" if stores else "one store only"}')

    def _glance_reason(self) -> str | None:
        """Return why Glance would refuse the location; None if not known."""
        if _is_service(self._plan.context):
            return None
        with self._located() as image:
            try:
                if not image.needs_service():
                    return None
            except (*upload.CLIENT_ERRORS, AttributeError, KeyError,
                    TypeError) as error:
                # No JSON, or another one.
                self._token.raise_if_cancelled()
                return f'Glance does not tell the versions of its API: {error}'
        return service_user.missing_reason(self._token)

    def _located(self) -> location.LocatedImage:
        return location.LocatedImage(
            self._plan.context, self._plan.image_id, self._token)

    def _register(self, data: rbd_image.RbdImage,
                  image: location.LocatedImage,
                  snapshot: ceph.SnapSpec) -> None:
        """Have Glance take over the image's data.

        :raises CephError: Ceph does not tell which cluster it is
        :raises LocationRefused: Glance does not
        """
        cluster = ceph.cluster_id(self._pool, self._user)
        self._token.raise_if_cancelled()
        data.set_offered(True)
        try:
            # In Glance's words.
            image.add(f'rbd://{cluster}/{snapshot.image}/{snapshot.name}',
                      self._store)
            image.wait_until_active(CONF.snapext.glance_reset_timeout)
        except exception.LocationRefused as error:
            # A proxy may have sent the request twice.
            if not image.is_taken_over():
                data.set_offered(False)
                raise
            self._log_complete(error)
        except Exception as error:
            # Nova would delete the image, which Glance already reads.
            if not self._is_active():
                raise
            self._log_complete(error)

    def _log_complete(self, error: Exception) -> None:
        LOG.warning('Image %(image)s is complete, in spite of an error: '
                    '%(error)s', {'image': self._plan.image_id,
                                  'error': error},
                    instance=self._plan.instance)

    def _is_active(self) -> bool:
        """Return whether the image is active, also after a cancellation."""
        with location.LocatedImage(
                self._plan.context, self._plan.image_id,
                cancel.CancelToken()) as image:
            try:
                image.wait_until_active(SETTLE_TIMEOUT)
            except Exception as error:
                LOG.debug('Image %(image)s is not active: %(error)s',
                          {'image': self._plan.image_id, 'error': error},
                          instance=self._plan.instance)
                return False
        return True

    def _refused(self, reason: str) -> exception.DirectImageRefused:
        return exception.DirectImageRefused(
            instance=self._plan.instance.uuid, reason=reason)


class ClonedImage(DirectImage[rbd_clone.RbdClone]):
    """The image of a snapshot in Ceph: a clone that is flattened.

    :param snapshot: where the frozen disk is
    """

    def __init__(self, plan: planning.Plan, snapshot: ceph.SnapSpec,
                 making: Making, token: cancel.CancelToken,
                 on_progress: upload.OnProgress):
        super().__init__(plan, making, token, on_progress)
        self._snapshot = snapshot
        self._size = 0

    def _find_pool(self) -> str:
        try:
            pool = (ceph.parent_pool(self._snapshot.image) or
                    pool_of_base_image(self._plan, self._token))
        except exception.CephError as error:
            raise self._refused(str(error)) from error
        return pool or self._pool_of_options(
            'the root disk is no clone, the image that the instance was '
            'booted from is not in this cluster, and ')

    def _new_data(self, spec: ceph.ImageSpec) -> rbd_clone.RbdClone:
        return rbd_clone.RbdClone(
            self._plan, spec, self._making.seen_by_nova)

    def _fill(self, data: rbd_clone.RbdClone) -> ceph.SnapSpec:
        self._size = ceph.size_of(self._snapshot)
        data.create(self._snapshot)
        self._token.raise_if_cancelled()
        data.flatten(self._token, self._report)
        # librbd does not report the last objects.
        self._report(1, 1)
        return ceph.finish_image(data.spec)

    def _report(self, done: int, total: int) -> None:
        self._on_progress(self._size * done // max(total, 1), self._size)

    def _stored(self) -> Stored:
        return Stored(in_ceph=True)


class CopiedImage(DirectImage[rbd_copy.RbdCopy]):
    """The image of any frozen disk, written into Ceph by this host."""

    def __init__(self, plan: planning.Plan, frozen: strategies.FrozenDisk,
                 making: Making, token: cancel.CancelToken,
                 on_progress: upload.OnProgress):
        super().__init__(plan, making, token, on_progress)
        self._frozen = frozen
        self._user = CONF.snapext.rbd_image_user
        self._attempts = 1 + CONF.glance.num_retries
        self._read_bytes = self._written_bytes = 0

    def _find_pool(self) -> str:
        if not ceph.is_installed():
            raise self._refused(f'[snapext]rbd_image_user is set, and '
                                f'{ceph.MISSING_BINDINGS}')
        return self._pool_of_options('')

    def _new_data(self, spec: ceph.ImageSpec) -> rbd_copy.RbdCopy:
        return rbd_copy.RbdCopy(self._plan, spec, self._making.seen_by_nova)

    def _fill(self, data: rbd_copy.RbdCopy) -> ceph.SnapSpec:
        disk = self._frozen.to_read(self._token)
        with self._token.on_cancel(disk.abort), disk:
            snapshot = data.fill(disk, self._token, self._on_progress)
        self._read_bytes = disk.bytes_read
        self._written_bytes = data.bytes_written
        return snapshot

    def _stored(self) -> Stored:
        return Stored(self._read_bytes, self._written_bytes, in_ceph=True)


def pool_of_base_image(plan: planning.Plan,
                       token: cancel.CancelToken) -> str | None:
    """Return the pool of the image that an instance was booted from.

    :returns: None if it is not in Nova's cluster, or not known
    :raises CephError: Ceph does not tell which cluster it is
    """
    disk = ceph.image_of(plan.disk)
    if disk is None or not plan.instance.image_ref:
        return None
    try:
        with location.LocatedImage(
                plan.context, plan.instance.image_ref, token) as image:
            locations = image.locations()
    except Exception as error:
        # As in Nova: the image may be deleted, or be none of the user's.
        token.raise_if_cancelled()
        LOG.debug('The image that the instance was booted from can\'t be '
                  'read: %s', error, instance=plan.instance)
        return None
    return _pool_of(locations, disk.pool)


def _pool_of(locations: list[str], any_pool: str) -> str | None:
    """Return the pool of the first location that is in Nova's cluster.

    :param locations: of an image, in Glance's words
    :param any_pool: name of a pool of the cluster
    :raises CephError: Ceph does not tell which cluster it is
    """
    driver = rbd_utils.RBDDriver(pool=any_pool)
    cluster: str | None = None
    for url in locations:
        try:
            fsid, pool, _name, _snapshot = driver.parse_url(url)
        except nova_exception.ImageUnacceptable:
            continue
        if cluster is None:
            cluster = ceph.cluster_id(any_pool)
        if fsid == cluster:
            return str(pool)
    return None


def unsupported_reason(plan: planning.Plan) -> str | None:
    """Return what is known of a plan to prevent an image made inside Ceph.

    It asks neither Ceph nor Glance.
    """
    if plan.image_format != 'raw':
        return (f'the image has the format {plan.image_format}, and Ceph can '
                f'only make raw images')
    return None


def _is_service(context: nova_context.RequestContext) -> bool:
    """Return whether the user of a request is one of a service."""
    return service_user.ROLE in (context.roles or [])
