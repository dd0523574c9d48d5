# SPDX-License-Identifier: Apache-2.0
"""The points at which nova-compute is killed, gets an error or waits.

Each point is a moment of a call: of a function of this package, of Nova, or
of libvirt's Python binding. It has to be a function that nova-compute itself
calls, through its module or class: see hook/sitecustomize.py.
"""

import dataclasses
import re

BEFORE, DURING, AFTER = 'before', 'during', 'after'

#: What a running guest does while nova-compute is dead.
WRITES = 'writes'
FROZEN = 'has frozen filesystems'
HALTED = 'is halted or off'


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a snapshot.

    :ivar name: the event at this point, as in the table of results
    :ivar function: the function, as 'module:qualified.name'
    :ivar moment: BEFORE, DURING or AFTER the call
    :ivar guest: what the guest does at this point, if it ran before
    :ivar nth: number of the call within one snapshot, from 1
    :ivar delay: seconds from the start of the call, for DURING
    """

    name: str
    function: str
    moment: str = AFTER
    guest: str = WRITES
    nth: int = 1
    delay: float = 0.0

    @property
    def identifier(self):
        """Return the name in a form that fits into a test's name."""
        return re.sub(r'\W+', '_', self.name)


@dataclasses.dataclass(frozen=True)
class Case:
    """The snapshots of one strategy and one kind of guest.

    :ivar running: whether the guest runs
    :ivar points: the points, in the order of the snapshot
    """

    strategy: str
    running: bool
    points: tuple[Point, ...]

    @property
    def guest(self):
        return 'running' if self.running else 'shut off'

    def point(self, name):
        [found] = [point for point in self.points if point.name == name]
        return found

    def since(self, name):
        """Return the point of this name and all later ones."""
        return self.points[self.points.index(self.point(name)):]


HYPERVISOR = 'nova_snapext.hypervisor.'
RESOURCES = 'nova_snapext.resources.'
UPLOAD = 'nova_snapext.upload.'
NOVA = 'nova.virt.libvirt.driver:LibvirtDriver.'

JOURNAL = 'nova_snapext.journal.file:JournalEntry.'
JOURNAL_IMAGE = 'nova_snapext.journal.image:ImageEntry.'
DIRECTORY = f'{RESOURCES}work_directory:WorkDirectory.'
FILESYSTEMS = f'{RESOURCES}guest_filesystems:GuestFilesystems.'
OVERLAY_FILES = f'{RESOURCES}overlay_files:OverlayFiles.'
REMOVE_OVERLAY = f'{OVERLAY_FILES}remove_overlay'
MOVE_PERSISTENT = f'{RESOURCES}disk_definition:move_persistent'
MOVE_SAVED_MEMORY = f'{RESOURCES}disk_definition:move_saved_memory'
RESUME = f'{RESOURCES}managed_save:ManagedSave.resume'

#: The nth call adds the nth resource of the strategy's freeze_disk(). The
#: image is not added: it has a file of its own, which is created before.
ADD = f'{JOURNAL}add'

JOURNAL_CREATED = Point('the journal is created', f'{JOURNAL}write')
DIRECTORY_CREATED = Point('the work directory is created',
                          f'{DIRECTORY}create')
QUIESCED = Point('the filesystems are frozen', f'{FILESYSTEMS}freeze',
                 guest=FROZEN)
THAWED = Point('the filesystems are thawed', f'{FILESYSTEMS}thaw')
SERVED = Point('qemu-nbd serves', f'{HYPERVISOR}qemu_nbd:serve')
READ = Point('the 50th chunk is read', f'{UPLOAD}body:Body.read', nth=50)
SENT = (
    READ,
    Point('the upload has ended', f'{UPLOAD}glance:GlanceImage._attempt'),
)
SERVER_ENDED = Point('qemu-nbd has ended', f'{HYPERVISOR}qemu_nbd:Server.stop')
JOURNAL_REMOVED = (
    Point('before the journal is removed', f'{JOURNAL}close', BEFORE),
    Point('the journal is removed', f'{JOURNAL}close'),
)
DONE = (
    Point('the work directory is removed', f'{DIRECTORY}remove'),
    Point('everything is done', 'nova_snapext.driver:SnapextDriver.snapshot'),
)

OVERLAY_CREATED = Point("the overlay's file is created",
                        f'{HYPERVISOR}qemu_img:create_overlay')
OVERLAY_READY = Point('the overlay is marked and fenced',
                      f'{OVERLAY_FILES}create')
MERGED = (
    Point('before the commit', 'libvirt:virDomain.blockCommit', BEFORE),
    Point('the commit has started', 'libvirt:virDomain.blockCommit'),
    Point('the guest is paused for the pivot',
          f'{HYPERVISOR}write_limit:WriteLimit.pause', guest=HALTED),
    Point('the overlay is no longer marked as newer',
          f'{OVERLAY_FILES}unmark', guest=HALTED),
    Point('the commit is ready', 'libvirt:virDomain.blockJobAbort', BEFORE,
          guest=HALTED),
    Point('the pivot is requested', 'libvirt:virDomain.blockJobAbort',
          guest=HALTED),
    Point('the guest uses its disk again',
          f'{HYPERVISOR}block_commit:ActiveCommit.run', guest=HALTED),
    Point('before the overlay is removed', REMOVE_OVERLAY, BEFORE,
          guest=HALTED),
    Point('the overlay is removed', REMOVE_OVERLAY, guest=HALTED),
    Point('the guest continues',
          f'{HYPERVISOR}block_commit:ActiveCommit.remove_limit'),
    Point('the fence is removed', f'{OVERLAY_FILES}remove_fence'),
)

#: The steps that all strategies share are in this case in full, and in the
#: others in part.
BACKUP = Case('backup', True, (
    Point('the image is in the journal', f'{JOURNAL_IMAGE}write'),
    Point('before the journal is created', 'os:link', BEFORE),
    JOURNAL_CREATED,
    Point('the backup job is in the journal', ADD, nth=2),
    DIRECTORY_CREATED,
    Point('the scratch file is created',
          f'{HYPERVISOR}qemu_img:create_scratch'),
    Point('the work directory is shared with QEMU', f'{DIRECTORY}share_with'),
    QUIESCED,
    Point('the backup job has started', 'libvirt:virDomain.backupBegin',
          guest=FROZEN),
    THAWED,
    Point("before QEMU's socket is taken", f'{DIRECTORY}take_socket', BEFORE),
    Point("QEMU's socket is taken", f'{DIRECTORY}take_socket'),
    Point('before the upload', f'{UPLOAD}glance:GlanceImage._attempt',
          BEFORE),
    Point('the first chunk is read', f'{UPLOAD}body:Body.read'),
    *SENT,
    Point('the digest is compared', f'{UPLOAD}glance:_mismatch'),
    Point('the image is removed from the journal', f'{JOURNAL_IMAGE}remove'),
    Point('before the backup job is aborted', 'libvirt:virDomain.abortJob',
          BEFORE),
    Point('the backup job is aborted', 'libvirt:virDomain.abortJob'),
    Point('the backup job has ended', f'{RESOURCES}backup_job:BackupJob.end'),
    DONE[0],
    *JOURNAL_REMOVED,
    DONE[1],
))

EXTERNAL = Case('external', True, (
    JOURNAL_CREATED,
    Point('the work directory is in the journal', ADD),
    DIRECTORY_CREATED,
    Point('the overlay is in the journal', ADD, nth=3),
    OVERLAY_CREATED,
    OVERLAY_READY,
    QUIESCED,
    Point('the guest uses the overlay', 'libvirt:virDomain.snapshotCreateXML',
          guest=FROZEN),
    THAWED,
    SERVED,
    *SENT,
    SERVER_ENDED,
    *MERGED,
    *DONE,
))

INTERNAL = Case('internal', True, (
    JOURNAL_CREATED,
    DIRECTORY_CREATED,
    Point('the snapshot is in the journal', ADD, nth=4),
    QUIESCED,
    Point('the memory is being saved', 'libvirt:virDomain.snapshotCreateXML',
          DURING, guest=FROZEN, delay=0.3),
    Point('the snapshot is created', 'libvirt:virDomain.snapshotCreateXML',
          guest=FROZEN),
    THAWED,
    SERVED,
    *SENT,
    SERVER_ENDED,
    Point('libvirt knows the snapshot',
          'libvirt:virDomain.snapshotCreateXML', nth=2),
    Point('the snapshot is deleted', 'libvirt:virDomainSnapshot.delete'),
    *DONE,
))

INTERNAL_OFF = Case('internal', False, (
    JOURNAL_CREATED,
    DIRECTORY_CREATED,
    Point('the snapshot is in the journal', ADD, nth=3),
    Point('the snapshot is created',
          f'{RESOURCES}internal_snapshot:InternalSnapshot.create'),
    SERVED,
    *SENT,
    SERVER_ENDED,
    Point('the snapshot is deleted', f'{HYPERVISOR}qemu_img:delete_snapshot'),
    *DONE,
))

COLD = Case('cold', True, (
    JOURNAL_CREATED,
    DIRECTORY_CREATED,
    Point('the overlay is in the journal', ADD, nth=2),
    OVERLAY_CREATED,
    OVERLAY_READY,
    Point('the managed save is in the journal', ADD, nth=4),
    Point('before the memory is saved', 'libvirt:virDomain.managedSave',
          BEFORE),
    Point('the memory is being saved', 'libvirt:virDomain.managedSave', DURING,
          guest=HALTED, delay=0.3),
    Point('the memory is saved', 'libvirt:virDomain.managedSave',
          guest=HALTED),
    Point('the definition uses the overlay', MOVE_PERSISTENT, guest=HALTED),
    Point('the saved memory uses the overlay', MOVE_SAVED_MEMORY,
          guest=HALTED),
    Point('the guest is being resumed', RESUME, DURING, guest=HALTED,
          delay=0.5),
    Point('the guest is resumed', RESUME),
    SERVED,
    *SENT,
    SERVER_ENDED,
    *MERGED,
    *DONE,
))

COLD_OFF = Case('cold', False, (
    JOURNAL_CREATED,
    DIRECTORY_CREATED,
    SERVED,
    *SENT,
    SERVER_ENDED,
    *DONE,
))

NATIVE = Case('native', True, (
    JOURNAL_CREATED,
    Point("before Nova's own snapshot", f'{NOVA}snapshot', BEFORE),
    Point('the domain is undefined', f'{NOVA}_delete_guest_configuration'),
    Point('the mirror has started',
          'nova.virt.libvirt.guest:BlockDevice.rebase'),
    QUIESCED,
    Point('the mirror has ended',
          'nova.virt.libvirt.guest:BlockDevice.abort_job', guest=FROZEN),
    Point('the domain is defined again',
          'nova.virt.libvirt.host:Host.write_instance_config', guest=FROZEN),
    THAWED,
    Point('the image is converted', f'{NOVA}_live_snapshot'),
    Point('the image is being sent',
          'glanceclient.v2.images:Controller.upload', DURING, delay=0.2),
    Point("Nova's own snapshot has ended", f'{NOVA}snapshot'),
    DONE[-1],
))

CASES = (BACKUP, EXTERNAL, INTERNAL, INTERNAL_OFF, COLD, COLD_OFF, NATIVE)

CEPH = f'{HYPERVISOR}ceph:'
RBD_SNAPSHOT = f'{RESOURCES}rbd_snapshot:RbdSnapshot.'
RBD_IMAGE = f'{RESOURCES}rbd_image:RbdImage.'
RBD_CLONE = f'{RESOURCES}rbd_clone:RbdClone.'
RBD_COPY = f'{RESOURCES}rbd_copy:RbdCopy.'
LOCATED_IMAGE = f'{UPLOAD}location:LocatedImage.'

RBD_SNAPSHOT_ADDED = Point('the RBD snapshot is in the journal', ADD, nth=3)
RBD_FROZEN = (
    Point('the RBD image is open', f'{RBD_SNAPSHOT}open'),
    QUIESCED,
    Point('the RBD snapshot is created', f'{RBD_SNAPSHOT}create',
          guest=FROZEN),
    THAWED,
)
RBD_SERVED = (
    Point('the RBD export is in the journal', ADD, nth=4),
    Point('qemu-nbd serves', f'{HYPERVISOR}rbd_nbd:serve'),
)
RBD_REMOVED = (
    Point('before the RBD snapshot is removed', f'{CEPH}remove_snapshot',
          BEFORE),
    Point('the RBD snapshot is removed', f'{CEPH}remove_snapshot'),
)
COPYING = Point('the data is being copied', f'{RBD_CLONE}flatten', DURING,
                delay=0.3)

FINISHED_IN_CEPH = Point("the image's snapshot is created",
                         f'{CEPH}finish_image')
ADDING = Point('before the location is added', f'{LOCATED_IMAGE}add', BEFORE)
ADDED = (
    Point('the location is added', f'{LOCATED_IMAGE}add'),
    Point('the image is active', f'{LOCATED_IMAGE}wait_until_active'),
)
IMAGE_REMOVED = BACKUP.point('the image is removed from the journal')
HASHED = Point('Glance has the digest', f'{LOCATED_IMAGE}wait_until_hashed')

#: A raw image that is made inside Ceph.
RBD_DIRECT = Case('rbd', True, (
    JOURNAL_CREATED,
    DIRECTORY_CREATED,
    RBD_SNAPSHOT_ADDED,
    *RBD_FROZEN,
    *RBD_SERVED,
    Point('the clone is in the journal', ADD, nth=5),
    Point('the RBD snapshot is protected', f'{CEPH}protect'),
    Point('the clone is created', f'{CEPH}clone'),
    COPYING,
    Point('the data is copied', f'{RBD_CLONE}flatten'),
    FINISHED_IN_CEPH,
    Point('the clone is about to be offered', f'{RBD_IMAGE}set_offered'),
    *ADDED,
    # After the filesystems.
    Point('the clone is removed from the journal', f'{JOURNAL}remove', nth=2),
    IMAGE_REMOVED,
    HASHED,
    SERVER_ENDED,
    *RBD_REMOVED,
    *DONE,
))

#: An image of any format that is sent to Glance.
RBD_STREAMED = Case('rbd', True, (
    JOURNAL_CREATED,
    DIRECTORY_CREATED,
    RBD_SNAPSHOT_ADDED,
    *RBD_FROZEN,
    *RBD_SERVED,
    *SENT,
    SERVER_ENDED,
    *RBD_REMOVED,
    *DONE,
))

RBD_OFF = Case('rbd', False, (
    JOURNAL_CREATED,
    RBD_SNAPSHOT_ADDED,
    Point('the RBD snapshot is created', f'{RBD_SNAPSHOT}create'),
    *RBD_SERVED,
    *SENT,
    SERVER_ENDED,
    *RBD_REMOVED,
    *DONE,
))

WRITING = Point('the data is being written',
                f'{HYPERVISOR}rbd_io:OpenImage.write', nth=20)

#: A raw image that the host writes into Ceph, of a disk that is a file. The
#: steps until the disk is frozen are those of BACKUP.
RBD_COPIED = Case('backup', True, (
    THAWED,
    # After the filesystems and the backup job.
    Point('the copy is in the journal', ADD, nth=3),
    Point('the copy is created', f'{CEPH}create_image'),
    WRITING,
    FINISHED_IN_CEPH,
    Point('the data is written and verified', f'{RBD_COPY}fill'),
    Point('the copy is about to be offered', f'{RBD_IMAGE}set_offered'),
    *ADDED,
    # After the filesystems.
    Point('the copy is removed from the journal', f'{JOURNAL}remove', nth=2),
    *BACKUP.since('the image is removed from the journal')[:4],
    DONE[0],
    HASHED,
    *JOURNAL_REMOVED,
    DONE[1],
))

#: Cases of a host with Ceph.
CEPH_CASES = (RBD_DIRECT, RBD_STREAMED, RBD_OFF, RBD_COPIED)

SERVING = Point('before qemu-nbd serves', f'{HYPERVISOR}qemu_nbd:serve',
                BEFORE)
COMPARING = Point('before the digest is compared', f'{UPLOAD}glance:_mismatch',
                  BEFORE)
SNAPSHOTTING = Point('before the snapshot is created',
                     'libvirt:virDomain.snapshotCreateXML', BEFORE)
SNAPSHOTTED = Point('the snapshot is created',
                    'libvirt:virDomain.snapshotCreateXML')
#: Points of errors while the disk is frozen and uploaded, by case. An error
#: after a function is one of a function that has done its work.
ERRORS = {
    BACKUP: (
        Point('before the scratch file is created',
              f'{HYPERVISOR}qemu_img:create_scratch', BEFORE),
        Point('before the work directory is shared with QEMU',
              f'{DIRECTORY}share_with', BEFORE),
        Point('before the backup job starts', 'libvirt:virDomain.backupBegin',
              BEFORE),
        Point('the backup job has started', 'libvirt:virDomain.backupBegin'),
        READ,
        COMPARING,
    ),
    EXTERNAL: (
        Point("before the overlay's file is created",
              f'{HYPERVISOR}qemu_img:create_overlay', BEFORE),
        SNAPSHOTTING,
        SNAPSHOTTED,
        SERVING,
        COMPARING,
    ),
    INTERNAL: (SNAPSHOTTING, SNAPSHOTTED, SERVING, COMPARING),
    COLD: (
        Point('before the memory is saved', 'libvirt:virDomain.managedSave',
              BEFORE),
        Point('the memory is saved', 'libvirt:virDomain.managedSave'),
        Point('before the definition uses the overlay', MOVE_PERSISTENT,
              BEFORE),
        Point('the definition uses the overlay', MOVE_PERSISTENT),
        Point('the saved memory uses the overlay', MOVE_SAVED_MEMORY),
        Point('before the guest is resumed', RESUME, BEFORE),
        SERVING,
        COMPARING,
    ),
}

RBD_FREEZE_ERRORS = (
    Point('before the RBD image is opened', f'{RBD_SNAPSHOT}open', BEFORE),
    Point('before the RBD snapshot is created', f'{RBD_SNAPSHOT}create',
          BEFORE, guest=FROZEN),
    Point('the RBD snapshot is created', f'{RBD_SNAPSHOT}create',
          guest=FROZEN),
    Point('before qemu-nbd serves', f'{HYPERVISOR}rbd_nbd:serve', BEFORE),
)
ERRORS |= {
    RBD_DIRECT: (
        *RBD_FREEZE_ERRORS,
        Point('before the RBD snapshot is protected', f'{CEPH}protect',
              BEFORE),
        Point('before the clone is created', f'{CEPH}clone', BEFORE),
        Point('the clone is created', f'{CEPH}clone'),
        Point('before the data is copied', f'{RBD_CLONE}flatten', BEFORE),
        Point('the data is copied', f'{RBD_CLONE}flatten'),
        FINISHED_IN_CEPH,
        Point('the clone is about to be offered', f'{RBD_IMAGE}set_offered'),
        ADDING,
        # The image is complete: the snapshot succeeds.
        *ADDED,
        HASHED,
    ),
    RBD_COPIED: (
        Point('before the copy is created', f'{CEPH}create_image', BEFORE),
        *RBD_COPIED.since('the copy is created')[:5],
        ADDING,
        # The image is complete: the snapshot succeeds.
        *ADDED,
        HASHED,
    ),
    RBD_STREAMED: (*RBD_FREEZE_ERRORS, READ, COMPARING),
}

REMOVING = Point('before the work directory is removed', f'{DIRECTORY}remove',
                 BEFORE)
COMMITTING = (
    Point('before the commit', 'libvirt:virDomain.blockCommit', BEFORE),
    Point('the commit has started', 'libvirt:virDomain.blockCommit'),
    Point('before the pivot is requested', 'libvirt:virDomain.blockJobAbort',
          BEFORE),
    Point('the pivot is requested', 'libvirt:virDomain.blockJobAbort'),
    Point('before the overlay is removed', REMOVE_OVERLAY, BEFORE),
)

#: Points of errors while the disk is released, by case.
RELEASE_ERRORS = {
    BACKUP: (
        Point('before the backup job is aborted', 'libvirt:virDomain.abortJob',
              BEFORE),
        Point('the backup job is aborted', 'libvirt:virDomain.abortJob'),
        REMOVING,
    ),
    EXTERNAL: (*COMMITTING, REMOVING),
    INTERNAL: (
        Point('before libvirt knows the snapshot',
              'libvirt:virDomain.snapshotCreateXML', BEFORE, nth=2),
        Point('before the snapshot is deleted',
              'libvirt:virDomainSnapshot.delete', BEFORE),
        REMOVING,
    ),
    COLD: (*COMMITTING, REMOVING),
}


_RBD_RELEASE_ERRORS = (
    Point('before qemu-nbd has ended', f'{HYPERVISOR}qemu_nbd:Server.stop',
          BEFORE),
    *RBD_REMOVED,
)
RELEASE_ERRORS |= dict.fromkeys(
    (RBD_DIRECT, RBD_STREAMED), (*_RBD_RELEASE_ERRORS, REMOVING))


def _named(points, *names):
    return tuple(point for point in points if point.name in names)


#: Points before calls to libvirtd, at which it hangs, by case.
HANGS = {
    BACKUP: (
        *_named(ERRORS[BACKUP], 'before the backup job starts'),
        Point('before the filesystems are thawed',
              f'{FILESYSTEMS}thaw', BEFORE, guest=FROZEN),
        *_named(RELEASE_ERRORS[BACKUP], 'before the backup job is aborted'),
    ),
    EXTERNAL: (
        SNAPSHOTTING,
        *_named(COMMITTING, 'before the commit',
                'before the pivot is requested'),
    ),
    INTERNAL: (
        SNAPSHOTTING,
        *_named(RELEASE_ERRORS[INTERNAL],
                'before libvirt knows the snapshot',
                'before the snapshot is deleted'),
    ),
    COLD: (
        *_named(ERRORS[COLD], 'before the memory is saved',
                'before the guest is resumed'),
        *_named(COMMITTING, 'before the commit'),
    ),
}

#: Points before calls to Ceph, at which it does not respond any more, by case.
CEPH_HANGS = {
    RBD_DIRECT: (
        *_named(RBD_FREEZE_ERRORS, 'before the RBD image is opened',
                'before the RBD snapshot is created'),
        *_named(ERRORS[RBD_DIRECT], 'before the clone is created',
                'before the data is copied'),
        RBD_REMOVED[0],
    ),
    RBD_STREAMED: (READ,),
}

#: Points of the recovery after a first kill, by case and by the point of the
#: first kill.
RECOVERY = {
    (BACKUP, READ): (
        *BACKUP.since('before the backup job is aborted')[:4],
        Point('the backup job is removed from the journal',
              f'{JOURNAL}remove'),
        Point('the image is deleted', f'{RESOURCES}image:delete'),
        *JOURNAL_REMOVED,
    ),
    (EXTERNAL, READ): (
        *MERGED,
        EXTERNAL.point('the work directory is removed'),
    ),
    (INTERNAL, READ): (
        Point('libvirt knows the snapshot',
              'libvirt:virDomain.snapshotCreateXML'),
        INTERNAL.point('the snapshot is deleted'),
        INTERNAL.point('the work directory is removed'),
    ),
    (COLD, COLD.point('the saved memory uses the overlay')): (
        Point('the overlay is being committed', f'{HYPERVISOR}qemu_img:commit',
              DURING, guest=HALTED, delay=0.02),
        Point('the overlay is committed', f'{HYPERVISOR}qemu_img:commit',
              guest=HALTED),
        Point('the definition uses the disk again', MOVE_PERSISTENT,
              guest=HALTED),
        Point('the saved memory uses the disk again', MOVE_SAVED_MEMORY,
              guest=HALTED),
        COLD.point('the guest is being resumed'),
        COLD.point('the guest is resumed'),
    ),
    (RBD_DIRECT, COPYING): (
        Point('before the clone is removed', f'{CEPH}remove_image', BEFORE),
        Point('the clone is being removed', f'{CEPH}_delete_image', DURING,
              delay=0.05),
        Point('the clone is removed', f'{CEPH}remove_image'),
        *RBD_REMOVED,
        Point('the RBD snapshot is removed from the journal',
              f'{JOURNAL}remove', nth=3),
        Point('the image is deleted', f'{RESOURCES}image:delete'),
        *JOURNAL_REMOVED,
    ),
    (RBD_STREAMED, READ): (
        *RBD_REMOVED,
        RBD_STREAMED.point('the work directory is removed'),
    ),
    (RBD_COPIED, WRITING): (
        Point('before the copy is removed', f'{CEPH}remove_image', BEFORE),
        Point('the copy is being removed', f'{CEPH}_delete_image', DURING,
              delay=0.05),
        Point('the copy is removed', f'{CEPH}remove_image'),
        Point('the backup job is aborted', 'libvirt:virDomain.abortJob'),
        Point('the image is deleted', f'{RESOURCES}image:delete'),
        *JOURNAL_REMOVED,
    ),
}

#: All functions that the hook wraps.
FUNCTIONS = tuple(sorted({
    point.function
    for points in (*(case.points for case in (*CASES, *CEPH_CASES)),
                   *ERRORS.values(), *RELEASE_ERRORS.values(),
                   *HANGS.values(), *CEPH_HANGS.values(),
                   *RECOVERY.values())
    for point in points}))
