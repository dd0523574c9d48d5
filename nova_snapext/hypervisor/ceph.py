# SPDX-License-Identifier: Apache-2.0
"""RBD images of Ceph and their snapshots, through librbd.

The cluster, the user and its key are those of Nova's own RBDDriver: options
``rbd_user`` and ``images_rbd_ceph_conf`` of ``[libvirt]``, and the keyring
that ceph.conf names. An image may name another user. A host without Ceph has
no librbd binding, and does not need it.

A call of librbd waits for as long as the cluster does not respond, and nothing
can interrupt it. So all calls are made in native threads of their own, which
the caller leaves alone after a time limit.
https://docs.ceph.com/en/latest/rbd/api/librbdpy/
"""

from __future__ import annotations

import array
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import typing as ty

from nova.storage import rbd_utils
from oslo_utils import timeutils

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext import plan as planning

CONF = conf.CONF

# Nova's prefix of the path of an RBD disk (libvirt_utils.find_disk).
PREFIX = 'rbd:'

#: Glance's name for the snapshot of an image that guests are cloned from
#: (glance_store/_drivers/rbd.py, DEFAULT_SNAPNAME).
IMAGE_SNAPSHOT = 'snap'

#: End of Nova's name of a root disk, after the uuid of the instance
#: (nova/virt/libvirt/imagebackend.py, class Rbd).
DISK_SUFFIX = '_disk'

#: What a host without Ceph lacks.
MISSING_BINDINGS = ('the Python bindings of librbd and librados (python3-rbd, '
                    'python3-rados) are not installed on this host')

#: Bytes of an image in which librbd searches for data at a time: a multiple
#: of the size of an object. A search in a larger part may show no progress.
SEARCH_STRIDE = 16 * 1024 ** 3

# Name of an object that nobody creates.
NO_OBJECT = 'nova-snapext-no-such-object'

# Seconds to open each disk in a pool: some 10,000 of them.
LIST_TIMEOUT = 600

# Seconds between two checks of a long call for a stall.
POLL_INTERVAL = 1

_R = ty.TypeVar('_R')

# Called by librbd with the number of objects that are done, and of all. A
# negative result ends what it does.
OnProgress = Callable[[int, int], int]


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """An RBD image: an ``image-spec`` in Ceph's words.

    :ivar user: of Ceph, who uses it; None for ``[libvirt]rbd_user``
    """

    pool: str
    name: str
    user: str | None = None

    def __str__(self) -> str:
        return f'{self.pool}/{self.name}'


@dataclasses.dataclass(frozen=True)
class SnapSpec:
    """A snapshot of an RBD image: a ``snap-spec`` in Ceph's words."""

    image: ImageSpec
    name: str

    def __str__(self) -> str:
        return f'{self.image}@{self.name}'


def is_installed() -> bool:
    """Return whether the librbd binding can be imported."""
    return rbd_utils.rbd is not None and rbd_utils.rados is not None


def image_of(disk: planning.RootDisk) -> ImageSpec | None:
    """Return the RBD image of a disk; None if it has none that Nova made."""
    if disk.storage != 'network' or not disk.path.startswith(PREFIX):
        return None
    # Nova knows no namespaces inside of a pool, which would be a third part.
    pool, _, name = disk.path.removeprefix(PREFIX).partition('/')
    return ImageSpec(pool, name) if name and '/' not in name else None


class Call(ty.Generic[_R]):
    """A function that runs in a native thread of its own.

    A daemon thread: only Ceph can end it. It must not log, because under
    eventlet the locks of logging are for green threads.

    :param action: what it does, for errors
    :param changes: what it creates, changes or removes: this may still happen
        when nobody waits for it any more
    :raises CephError: no thread can start; nothing was done
    """

    def __init__(self, action: str, function: Callable[[], _R],
                 changes: ImageSpec | SnapSpec | None = None):
        native = cancel.native_threading()
        self._changes = changes
        if changes is not None:
            _CHANGING[changes] = self
        self._action = action
        self._function = function
        self._ended = native.Event()
        self._result: list[_R] = []
        self._error: Exception | None = None
        try:
            native.Thread(target=self._run, name='snapext-ceph',
                          daemon=True).start()
        except RuntimeError as error:
            self._end()
            raise exception.CephError(
                action=action, reason=str(error)) from error

    def _run(self) -> None:
        try:
            self._result.append(self._function())
        except Exception as error:
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        if self._changes is not None and (
                _CHANGING.get(self._changes) is self):
            del _CHANGING[self._changes]
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, and return whether it has ended."""
        return cancel.wait_for(self._ended, seconds)

    def result(self, seconds: float) -> _R:
        """Wait for its end, and return what the function has returned.

        :raises CephTimeout: it runs for longer than that
        :raises CephError: Ceph has refused or failed
        """
        if not self.wait(seconds):
            raise exception.CephTimeout(
                action=self._action, seconds=f'{seconds:g}')
        if self._error is None:
            return self._result[0]
        if isinstance(self._error, exception.SnapextError):
            raise self._error
        # The bindings also have defects, whose errors may have no text.
        raise exception.CephError(
            action=self._action,
            reason=(str(self._error) or repr(self._error)) if is_installed()
            else f'{MISSING_BINDINGS}; install them',
        ) from self._error


# The calls that create, change or remove something, also of a snapshot that
# has failed. What one creates can be removed for good only after its end.
_CHANGING: dict[ImageSpec | SnapSpec, Call[ty.Any]] = {}


def call(action: str, function: Callable[[], _R],
         changes: ImageSpec | SnapSpec | None = None) -> _R:
    """Run a function of librbd, for at most [snapext]operation_timeout.

    :param action: what it does, for errors
    :param changes: what it creates, changes or removes
    :raises CephTimeout: it takes longer
    :raises CephError: Ceph has refused or failed
    """
    return Call(action, function, changes).result(
        CONF.snapext.operation_timeout)


def _await_change(spec: ImageSpec | SnapSpec) -> None:
    """Wait for the end of a call that may create or remove something.

    :raises CephTimeout: it does not end
    """
    changing = _CHANGING.get(spec)
    timeout = CONF.snapext.operation_timeout
    if changing is not None and not changing.wait(timeout):
        raise exception.CephTimeout(
            action=f'end an earlier change of {spec}', seconds=f'{timeout:g}')


def _call_with_progress(action: str, function: Callable[[OnProgress], _R],
                        changes: ImageSpec | None = None,
                        check: Callable[[], object] = lambda: None) -> _R:
    """Run a function of librbd for as long as it makes progress.

    Its duration depends on the size of the image.

    :param action: what it does, for errors
    :param function: gets the function that librbd calls with its progress
    :param changes: what it changes or removes
    :param check: called each second; its error ends the wait
    :raises CephTimeout: it makes no progress for [snapext]read_timeout, and
        may go on later
    :raises CephError: Ceph has refused or failed
    """
    reports = 0

    def on_progress(_done: int, _total: int) -> int:
        nonlocal reports
        reports += 1
        return 0

    running = Call(action, lambda: function(on_progress), changes)
    seen, stalled = 0, 0
    while not running.wait(POLL_INTERVAL):
        check()
        stalled = 0 if reports > seen else stalled + POLL_INTERVAL
        seen = reports
        if stalled >= CONF.snapext.read_timeout:
            raise exception.CephTimeout(
                action=action, seconds=f'{stalled:g}')
    return running.result(0)


def is_forbidden(error: exception.CephError) -> bool:
    """Return whether Ceph's user lacks the right for what has failed."""
    # Both bindings have errors with the number of the cause.
    return getattr(error.__cause__, 'errno', None) in (
        errno.EPERM, errno.EACCES)


def exists(error: exception.CephError) -> bool:
    """Return whether an image could not be created because it exists."""
    return getattr(error.__cause__, 'errno', None) == errno.EEXIST


def is_final(error: exception.CephError) -> bool:
    """Return whether an image can't be written by another attempt either.

    The user lacks the right, the image is somebody else's, the pool is full,
    or Ceph does not respond.
    """
    return (isinstance(error, exception.CephTimeout) or
            is_forbidden(error) or exists(error) or
            getattr(error.__cause__, 'errno', None) in (
                errno.ENOSPC, errno.EDQUOT))


def is_in_use(error: BaseException) -> bool:
    """Return whether a request has failed because an image is in use.

    A client that was killed uses it until Ceph forgets that client.
    """
    return (isinstance(error, exception.CephError) and
            isinstance(error.__cause__, rbd_utils.rbd.ImageBusy))


def check_writable(pool: str, user: str | None = None) -> None:
    """Check that a user may write to a pool, and change nothing.

    A user without the right may not even remove an object that does not exist.

    :param user: see :class:`ImageSpec`
    :raises CephError: it may not (see :func:`is_forbidden`), the pool does
        not exist, or Ceph does not respond
    """
    def remove_nothing() -> None:
        with _client(pool, user) as client, contextlib.suppress(
                rbd_utils.rados.ObjectNotFound):
            client.ioctx.remove_object(NO_OBJECT)

    call(f'write to the pool {pool}', remove_nothing)


class SnapshotCreation:
    """The creation of a snapshot that takes no longer than Ceph needs for it.

    The image is opened before. Both happen in one thread, which goes on by
    itself when Ceph responds again after a time limit.
    """

    def __init__(self, snapshot: SnapSpec):
        self._snapshot = snapshot
        native = cancel.native_threading()
        # Whether it is open, or can't be.
        self._open_ended = native.Event()
        self._is_open = False
        self._decided = native.Event()
        self._is_created = native.Event()
        self._wanted = False
        self._error: Exception | None = None
        self._call: Call[None] | None = None

    def open(self) -> None:
        """Open the image, which shows that Ceph responds.

        :raises CephError: it can't be opened, or not in time
        """
        timeout = CONF.snapext.operation_timeout
        action = f'open {self._snapshot.image}'
        self._call = Call(action, self._run, self._snapshot)
        if not cancel.wait_for(self._open_ended, timeout):
            raise exception.CephTimeout(action=action, seconds=f'{timeout:g}')
        if not self._is_open:
            self._call.result(timeout)

    def create(self, seconds: float) -> None:
        """Create the snapshot.

        :param seconds: time limit. Ceph may still create the snapshot after
            it; remove_snapshot() waits for that
        :raises CephError: it can't be created, or not in time
        """
        if not self._is_open:
            raise RuntimeError('the image is not open')
        self._wanted = True
        self._decided.set()
        if not cancel.wait_for(self._is_created, seconds):
            raise exception.CephTimeout(
                action=f'create the snapshot {self._snapshot}',
                seconds=f'{seconds:g}')
        if self._error is not None:
            raise exception.CephError(
                action=f'create the snapshot {self._snapshot}',
                reason=str(self._error)) from self._error

    def close(self) -> None:
        """Close the image, at the latest when Ceph responds."""
        self._decided.set()

    def _run(self) -> None:
        try:
            with opened(self._snapshot.image) as volume:
                self._is_open = True
                self._open_ended.set()
                self._decided.wait()
                if self._wanted:
                    self._create(volume)
        finally:
            self._open_ended.set()

    def _create(self, volume: ty.Any) -> None:
        try:
            volume.create_snap(self._snapshot.name)
        except Exception as error:
            self._error = error
        finally:
            self._is_created.set()


def protect(snapshot: SnapSpec) -> None:
    """Protect a snapshot, so that it can be cloned.

    :raises CephError: it can't be protected
    """
    def protect() -> None:
        with opened(snapshot.image) as volume:
            if not volume.is_protected_snap(snapshot.name):
                volume.protect_snap(snapshot.name)

    call(f'protect the snapshot {snapshot}', protect)


def remove_snapshot(snapshot: SnapSpec) -> None:
    """Remove a snapshot, protected or not, if it exists.

    :raises CephError: it can't be removed, because it has a clone or Ceph
        does not respond
    """
    _await_change(snapshot)
    call(f'remove the snapshot {snapshot}',
         lambda: _remove_snapshot(snapshot))


def _remove_snapshot(snapshot: SnapSpec) -> None:
    rbd = rbd_utils.rbd
    with contextlib.suppress(rbd.ImageNotFound), \
            opened(snapshot.image) as volume:
        if snapshot.name not in _names(volume):
            return
        try:
            if volume.is_protected_snap(snapshot.name):
                volume.unprotect_snap(snapshot.name)
        except rbd.ImageBusy as error:
            volume.set_snap(snapshot.name)
            clones = [str(clone) for clone in _children(volume).values()]
            raise exception.CephError(
                action=f'remove the snapshot {snapshot}',
                reason=f'it has the clones '
                       f'{", ".join(clones) or "in pools not seen"}',
            ) from error
        volume.remove_snap(snapshot.name)


def allocated(snapshot: SnapSpec, token: cancel.CancelToken,
              timeout: float | None = None,
              ) -> tuple[int, Iterable[tuple[int, int]]]:
    """Find out what of a snapshot holds data, in its parents too.

    All else reads as zeros. QEMU asks librbd for the same, but before librbd
    17 it takes all of an image that was cloned for data: block/rbd.c,
    qemu_rbd_co_block_status, https://tracker.ceph.com/issues/53784. That
    defect of librbd is one of requests that begin inside an object; these
    begin with one.

    :param token: its cancellation ends the search
    :param timeout: seconds that it may take; None: as long as it finds parts
    :returns: the size of the image in bytes, and offset and length of each
        part, in bytes and ascending order; the parts can be read once
    :raises CephError: Ceph does not tell, or not in time, or finds no part
        for [snapext]read_timeout
    :raises Exception: the token's cause
    """
    action = f'list what is allocated of {snapshot}'
    watch = timeutils.StopWatch(timeout).start()
    is_wanted = True

    def check() -> None:
        token.raise_if_cancelled()
        if watch.expired():
            raise exception.CephTimeout(action=action, seconds=f'{timeout:g}')

    def diff(on_progress: OnProgress,
             ) -> tuple[int, Iterable[tuple[int, int]]]:
        # An array takes 16 bytes for a part, and a list of tuples 120.
        offsets, lengths = array.array('Q'), array.array('Q')
        is_ascending = True

        def on_part(offset: int, length: int, exists: bool) -> int:
            nonlocal is_ascending
            on_progress(offset, size)
            end = offsets[-1] + lengths[-1] if offsets else -1
            if exists and offset == end:
                lengths[-1] += length
            elif exists:
                is_ascending = is_ascending and offset > end
                offsets.append(offset)
                lengths.append(length)
            # This result ends the search, after the objects in flight.
            return 0 if is_wanted else -errno.ECANCELED

        with opened(snapshot.image, snapshot.name) as volume:
            size = volume.size()
            for begin in range(0, size, SEARCH_STRIDE):
                volume.diff_iterate(
                    begin, min(SEARCH_STRIDE, size - begin), None, on_part,
                    include_parent=True, whole_object=False)
                on_progress(begin, size)
        parts = zip(offsets, lengths, strict=True)
        return size, parts if is_ascending else sorted(parts)

    try:
        return _call_with_progress(action, diff, check=check)
    finally:
        is_wanted = False


def has_one_writer(image: ImageSpec) -> bool:
    """Return whether an image is locked by the client that writes to it.

    That client creates the image's snapshots then, and before that writes all
    that it has cached: librbd, feature ``exclusive-lock``.

    :raises CephError: Ceph does not tell
    """
    def is_locked() -> bool:
        with opened(image, read_only=True) as volume:
            return bool(volume.features() &
                        rbd_utils.rbd.RBD_FEATURE_EXCLUSIVE_LOCK)

    return call(f'tell the features of {image}', is_locked)


def size_of(snapshot: SnapSpec) -> int:
    """Return the size of a snapshot, in bytes.

    :raises CephError: Ceph does not tell
    """
    def size() -> int:
        with opened(snapshot.image, snapshot.name) as volume:
            return int(volume.size())

    return call(f'tell the size of {snapshot}', size)


def snapshot_names(image: ImageSpec) -> list[str]:
    """List the snapshots of an image; none if it does not exist.

    :raises CephError: Ceph does not tell
    """
    def names() -> list[str]:
        with contextlib.suppress(rbd_utils.rbd.ImageNotFound), \
                opened(image, read_only=True) as volume:
            return _names(volume)
        return []

    return call(f'list the snapshots of {image}', names)


def snapshots_in(pool: str) -> dict[ImageSpec, list[str]]:
    """List the snapshots of all disks of instances in a pool.

    It opens each of them, which takes some milliseconds.

    :returns: names by image; images without a snapshot are left out
    :raises CephError: Ceph does not tell
    """
    def found() -> dict[ImageSpec, list[str]]:
        rbd = rbd_utils.rbd
        snapshots: dict[ImageSpec, list[str]] = {}
        with _client(pool) as client:
            for name in rbd.RBD().list(client.ioctx):
                # Another host may delete it now.
                with contextlib.suppress(rbd.ImageNotFound):
                    if not name.endswith(DISK_SUFFIX):
                        continue
                    with rbd.Image(client.ioctx, name,
                                   read_only=True) as volume:
                        if names := _names(volume):
                            snapshots[ImageSpec(pool, name)] = names
        return snapshots

    return Call(f'list the snapshots in the pool {pool}', found).result(
        LIST_TIMEOUT)


def children(snapshot: SnapSpec) -> dict[str, ImageSpec]:
    """Find the clones of a snapshot, in the pools that the user may see.

    A clone in the trash is among them, by the name that it had.

    :returns: the clones by their ids
    :raises CephError: Ceph does not tell
    """
    def clones() -> dict[str, ImageSpec]:
        with opened(snapshot.image, snapshot.name) as volume:
            return _children(volume)

    return call(f'list the clones of {snapshot}', clones)


def cluster_id(pool: str, user: str | None = None) -> str:
    """Return the cluster's fsid, which is part of a location in Glance.

    :param user: see :class:`ImageSpec`
    :raises CephError: Ceph does not tell
    """
    def fsid() -> str:
        with _client(pool, user) as client:
            found = client.cluster.get_fsid()
        return found.decode() if isinstance(found, bytes) else str(found)

    return call('tell the id of the cluster', fsid)


def parent_pool(image: ImageSpec) -> str | None:
    """Return the pool of the image that an image was cloned from.

    :returns: None if it is no clone
    :raises CephError: Ceph does not tell
    """
    def parent() -> str | None:
        with contextlib.suppress(rbd_utils.rbd.ImageNotFound), \
                opened(image, read_only=True) as volume:
            pool, _name, _snapshot = volume.parent_info()
            return str(pool)
        return None

    return call(f'tell the parent of {image}', parent)


def clone(snapshot: SnapSpec, image: ImageSpec) -> None:
    """Create an image that shares the data of a protected snapshot.

    :raises CephError: it can't be created
    """
    def clone() -> None:
        with _client(snapshot.image.pool, snapshot.image.user) as source, \
                _client(image.pool, image.user) as target:
            # The features of a new image, as in RBDDriver.clone.
            rbd_utils.rbd.RBD().clone(
                source.ioctx, snapshot.image.name, snapshot.name,
                target.ioctx, image.name, features=source.features)

    call(f'clone {snapshot} to {image}', clone, changes=image)


class Flatten:
    """The copy of all data from a clone's parent into the clone.

    :param on_progress: called with the number of objects that are done, and
        of all, in a thread of librbd
    """

    def __init__(self, image: ImageSpec,
                 on_progress: Callable[[int, int], None]):
        self._image = image
        self._on_progress = on_progress
        self._cancelled = False

    def run(self, token: cancel.CancelToken) -> None:
        """Flatten the clone.

        :param token: its cancellation ends it after the objects in flight
        :raises CephError: it can't be done, or makes no progress for
            [snapext]read_timeout
        :raises Exception: the token's cause
        """
        with token.prefer_cause(), token.on_cancel(self.cancel):
            try:
                _call_with_progress(f'flatten {self._image}', self._flatten,
                                    self._image)
            except exception.CephTimeout:
                self.cancel()
                raise

    def cancel(self) -> None:
        """End it after the objects in flight."""
        self._cancelled = True

    def _flatten(self, on_progress: OnProgress) -> None:
        def report(done: int, total: int) -> int:
            on_progress(done, total)
            self._on_progress(done, total)
            # This result ends the operation: librbd's AsyncObjectThrottle.
            return -errno.ECANCELED if self._cancelled else 0

        with opened(self._image) as volume:
            volume.flatten(on_progress=report)


def create_image(image: ImageSpec, size: int, content: bytes = b'') -> None:
    """Create an image, which reads as zeros behind what is given.

    :param size: in bytes
    :param content: written to its beginning
    :raises CephError: it can't be created
    """
    def create() -> None:
        with _client(image.pool, image.user) as client:
            # As in RBDDriver.clone, see clone().
            rbd_utils.rbd.RBD().create(client.ioctx, image.name, size,
                                       old_format=False,
                                       features=client.features)
        if content:
            with opened(image) as volume:
                volume.write(content, 0)

    call(f'create the image {image}', create, changes=image)


def monitors(pool: str) -> tuple[list[str], list[str]]:
    """Return the hosts and ports of the monitors, as Nova asks for them.

    :raises CephError: Ceph does not tell
    """
    hosts, ports = call('list the monitors',
                        rbd_utils.RBDDriver(pool=pool).get_mon_addrs)
    return hosts, ports


def id_of(image: ImageSpec) -> str | None:
    """Return the id of an image, which it keeps in Ceph's trash.

    :returns: None if it does not exist, or can't be opened
    :raises CephError: Ceph does not tell
    """
    def read_id() -> str | None:
        with contextlib.suppress(rbd_utils.rbd.ImageNotFound), \
                opened(image, read_only=True) as volume:
            return str(volume.id())
        return None

    _await_change(image)
    return call(f'tell the id of {image}', read_id)


def remove_image(image: ImageSpec, image_id: str | None = None) -> None:
    """Remove an image of Glance's form, with its snapshot, if it exists.

    Where Ceph moves what is removed into its trash, it is removed from there
    too. An image that is there already is removed only by its id: there may be
    others that had the name, such as one that Glance has deleted.

    :param image_id: its id, if that is known
    :raises CephError: it can't be removed, or the removal makes no progress
    """
    _await_change(image)
    _call_with_progress(
        f'remove the image {image}',
        lambda on_progress: _delete_image(image, image_id, on_progress),
        image)


def _delete_image(image: ImageSpec, image_id: str | None,
                  on_progress: OnProgress) -> None:
    """Remove an image, or what is left of one that can't be opened.

    librbd adds the name of an image before it creates the image. It moves an
    image into the trash before it removes the objects, and detaches it from
    its parent last. RBD.remove() goes on from either state: librbd's
    api/Image.cc, Image<I>::remove.
    """
    rbd = rbd_utils.rbd
    with contextlib.suppress(rbd.ImageNotFound):
        with opened(image, read_only=True) as volume:
            image_id = volume.id()
        _remove_snapshot(SnapSpec(image, IMAGE_SNAPSHOT))
    with _client(image.pool, image.user) as client:
        try:
            # Somebody else may remove it now.
            with contextlib.suppress(rbd.ImageNotFound):
                rbd.RBD().remove(client.ioctx, image.name,
                                 on_progress=on_progress)
        except rbd.PermissionError:
            # Ceph wants the right even if there is nothing to remove. It lists
            # what it has begun to create or to remove.
            if image.name in rbd.RBD().list(client.ioctx):
                raise
        # Ceph's option rbd_move_to_trash_on_remove leaves it there.
        if image_id is not None and _is_in_trash(client, image_id):
            rbd.RBD().trash_remove(client.ioctx, image_id, force=True,
                                   on_progress=on_progress)


def _is_in_trash(client: ty.Any, image_id: str) -> bool:
    """Return whether an image is in the trash.

    Do not list the trash: librbd's binding (seen in 16.2) fails if there is
    any image whose source it has no name for, such as one that is migrated.
    """
    rbd = rbd_utils.rbd
    try:
        rbd.RBD().trash_get(client.ioctx, image_id)
    except rbd.ImageNotFound:
        return False
    except IndexError:
        pass  # it is there, with such a source
    return True


def disks_of(pool: str, instance_uuid: str) -> list[ImageSpec]:
    """List the disks of an instance in a pool, the root disk and all others.

    :raises CephError: Ceph does not tell
    """
    def disks() -> list[ImageSpec]:
        with _client(pool) as client:
            return [ImageSpec(pool, name)
                    for name in rbd_utils.rbd.RBD().list(client.ioctx)
                    if name.startswith(f'{instance_uuid}_')]

    return call(f'list the disks of instance {instance_uuid}', disks)


def remove_disk(image: ImageSpec) -> None:
    """Remove a disk of a deleted instance, as Nova does, if it exists.

    It goes into Ceph's trash, where Ceph keeps what is removed. Nova's own
    removal (RBDDriver.cleanup_volumes) has no time limit.

    :raises CephError: it can't be removed, because it has a snapshot or is in
        use, or the removal makes no progress
    """
    _await_change(image)
    _call_with_progress(
        f'remove the disk {image}',
        lambda on_progress: _remove_disk(image, on_progress), image)


def _remove_disk(image: ImageSpec, on_progress: OnProgress) -> None:
    rbd = rbd_utils.rbd
    # An image whose removal has begun can't be opened, but removed.
    with contextlib.suppress(rbd.ImageNotFound), opened(image) as volume:
        # Left by a resize that has not ended. Nova does not protect it.
        if rbd_utils.RESIZE_SNAPSHOT_NAME in _names(volume):
            volume.remove_snap(rbd_utils.RESIZE_SNAPSHOT_NAME)
    with contextlib.suppress(rbd.ImageNotFound), _client(
            image.pool, image.user) as client:
        rbd.RBD().remove(client.ioctx, image.name, on_progress=on_progress)


def finish_image(image: ImageSpec) -> SnapSpec:
    """Create the protected snapshot that each image of Glance's has.

    :returns: the snapshot
    :raises CephError: it can't be created
    """
    snapshot = SnapSpec(image, IMAGE_SNAPSHOT)

    def create() -> None:
        with opened(image) as volume:
            volume.create_snap(IMAGE_SNAPSHOT)
            volume.protect_snap(IMAGE_SNAPSHOT)

    call(f'create the snapshot {snapshot}', create, changes=image)
    return snapshot


def qemu_options(snapshot: SnapSpec) -> dict[str, str]:
    """Return the options of QEMU's block driver for a snapshot.

    They have no secret: QEMU finds the user's key as librbd does.
    """
    driver = rbd_utils.RBDDriver(pool=snapshot.image.pool,
                                 user=snapshot.image.user)
    options = {'driver': 'rbd', 'pool': snapshot.image.pool,
               'image': snapshot.image.name, 'snapshot': snapshot.name}
    if driver.rbd_user:
        options['user'] = driver.rbd_user
    if driver.ceph_conf:
        options['conf'] = driver.ceph_conf
    return options


def _names(volume: ty.Any) -> list[str]:
    return [snapshot['name'] for snapshot in volume.list_snaps()]


def _children(volume: ty.Any) -> dict[str, ImageSpec]:
    return {child['id']: ImageSpec(child['pool'], child['image'])
            for child in volume.list_children2()}


@contextlib.contextmanager
def _client(pool: str, user: str | None = None) -> Iterator[ty.Any]:
    """Connect to a pool by Nova's class.

    A write to a full pool fails. Otherwise it would wait until the pool has
    space, and with it the removal of the image that fills the pool.

    :yields: Nova's ``RADOSClient``
    """
    with rbd_utils.RADOSClient(
            rbd_utils.RBDDriver(pool=pool, user=user), pool) as client:
        # In spite of its name, it is of this connection.
        client.ioctx.set_osdmap_full_try()
        yield client


@contextlib.contextmanager
def opened(image: ImageSpec, snapshot: str | None = None,
           read_only: bool = False, is_bulk: bool = False,
           ) -> Iterator[ty.Any]:
    """Open an image, in a native thread.

    Not by Nova's RBDVolumeProxy, which works in green threads only.

    :param snapshot: name of the snapshot to read; None for the image itself
    :param is_bulk: whether all of its data is read or written. Then librbd
        keeps none of it
    :yields: librbd's ``rbd.Image``
    """
    with _client(image.pool, image.user) as client:
        if is_bulk:
            client.cluster.conf_set('rbd_cache', 'false')
        with rbd_utils.rbd.Image(
                client.ioctx, image.name, snapshot=snapshot,
                read_only=read_only or snapshot is not None) as volume:
            yield volume
