# SPDX-License-Identifier: Apache-2.0
"""The steps of a snapshot and of a recovery at which the power goes.

Each is a moment of a call, as in :mod:`tests.faults.points`. A unit test finds
functions that were renamed.
"""

import functools
import importlib

from tests.faults import points

BEFORE, Point = points.BEFORE, points.Point

FILES = f'{points.RESOURCES}overlay_files:OverlayFiles.'
COMMIT = f'{points.HYPERVISOR}block_commit:ActiveCommit.run'
PIVOT = 'libvirt:virDomain.blockJobAbort'
RESUMED = f'{points.HYPERVISOR}block_commit:ActiveCommit.remove_limit'
OFFLINE_COMMIT = f'{points.HYPERVISOR}qemu_img:commit'
DELETE_SNAPSHOT = 'libvirt:virDomainSnapshot.delete'
CLOSE = f'{points.JOURNAL}close'

OVERLAY_CREATED = (
    Point('the overlay has no marker yet',
          f'{points.HYPERVISOR}qemu_img:create_overlay'),
    Point('the overlay has no fence yet', f'{FILES}mark_unmerged'),
    Point('the overlay is created', f'{FILES}create'),
)
PAUSED = Point('the guest is paused for the pivot',
               f'{points.HYPERVISOR}write_limit:WriteLimit.pause')
PIVOT_TOLD = Point('the pivot is requested', PIVOT)
ON_DISK_AGAIN = Point('the guest uses its disk again', COMMIT)
OVERLAY_REMOVED = Point('the overlay is removed', f'{FILES}remove_overlay')
GUEST_CONTINUES = Point('the guest continues', RESUMED)
END = (
    points.DONE[0],
    *points.JOURNAL_REMOVED,
)
OVERLAY_RELEASED = (
    Point('before the overlay is removed', f'{FILES}remove_overlay', BEFORE),
    OVERLAY_REMOVED,
    Point('before the fence is removed', f'{FILES}remove_fence', BEFORE),
    Point('the fence is removed', f'{FILES}remove_fence'),
    *END,
)
MERGED = (
    Point('before the commit', 'libvirt:virDomain.blockCommit', BEFORE),
    Point('the commit has started', 'libvirt:virDomain.blockCommit'),
    PAUSED,
    Point('the marker is removed', f'{FILES}unmark'),
    Point('before the pivot is requested', PIVOT, BEFORE),
    PIVOT_TOLD,
    ON_DISK_AGAIN,
    *OVERLAY_RELEASED[:2],
    GUEST_CONTINUES,
    *OVERLAY_RELEASED[2:],
)

EXTERNAL = (
    Point('the overlay is in the journal', points.ADD, nth=3),
    *OVERLAY_CREATED,
    Point('the guest uses the overlay', 'libvirt:virDomain.snapshotCreateXML'),
    points.SERVED,
    *MERGED,
)

COLD = (
    *OVERLAY_CREATED,
    Point('before the memory is saved', 'libvirt:virDomain.managedSave',
          BEFORE),
    Point('the memory is saved', 'libvirt:virDomain.managedSave'),
    Point('the definition uses the overlay', points.MOVE_PERSISTENT),
    Point('the saved memory uses the overlay', points.MOVE_SAVED_MEMORY),
    Point('before the guest is resumed', points.RESUME, BEFORE),
    Point('libvirt has resumed the guest',
          'nova.virt.libvirt.driver:LibvirtDriver._create_guest'),
    Point('the guest is resumed', points.RESUME),
    points.SERVED,
    *MERGED,
)

INTERNAL = (
    Point('the snapshot is in the journal', points.ADD, nth=4),
    Point('the snapshot is created', 'libvirt:virDomain.snapshotCreateXML'),
    points.SERVED,
    Point('before the snapshot is deleted', DELETE_SNAPSHOT, BEFORE),
    Point('the snapshot is deleted', DELETE_SNAPSHOT),
    *END,
)

BACKUP = (
    Point('the scratch file is created',
          'nova_snapext.hypervisor.qemu_img:create_scratch'),
    Point('the work directory is shared with QEMU',
          f'{points.DIRECTORY}share_with'),
    Point('the backup job has started', 'libvirt:virDomain.backupBegin'),
    Point("QEMU's socket is taken", f'{points.DIRECTORY}take_socket'),
    Point('the backup job has ended',
          f'{points.RESOURCES}backup_job:BackupJob.end'),
    *END,
)

STEPS = {'external': EXTERNAL, 'cold': COLD, 'internal': INTERNAL,
         'backup': BACKUP}

#: Of the recovery of a guest that is off, and defined on its overlay.
RECOVERY = (
    Point('before qemu-img commits', OFFLINE_COMMIT, BEFORE),
    Point('qemu-img has committed', OFFLINE_COMMIT),
    Point('the definition uses the disk again', points.MOVE_PERSISTENT),
    OVERLAY_RELEASED[0],
    Point('the marker is removed', f'{FILES}unmark'),
    *OVERLAY_RELEASED[1:4],
    *points.JOURNAL_REMOVED,
)

FUNCTIONS = tuple(sorted({
    COMMIT, PIVOT, RESUMED,
    *(point.function for case in (*STEPS.values(), RECOVERY)
      for point in case)}))


def find(case, name):
    """Return the point of a name."""
    [found] = [point for point in case if point.name == name]
    return found


def part(case, since, until=None):
    """Return the points of a case from one name to another.

    :param since: name of the first point; None: no point is returned
    :param until: name of the last point; None: the last one of all
    """
    names = [point.name for point in case]
    if since is None:
        return ()
    return case[names.index(since):
                len(names) if until is None else names.index(until) + 1]


def owner_and_name(function):
    """Return the module or class of a point's function, and its name."""
    module, _, qualified_name = function.partition(':')
    *outer, name = qualified_name.split('.')
    return functools.reduce(
        getattr, outer, importlib.import_module(module)), name
