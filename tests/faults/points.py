# SPDX-License-Identifier: Apache-2.0
"""The points at which nova-compute can be killed, made to fail or to wait.

Each is a moment of a function: of ours, of Nova's, or of libvirt's binding.
"""

import dataclasses
import re

BEFORE, DURING, AFTER = 'before', 'during', 'after'

#: What a running guest does while nova-compute is dead.
WRITES = 'writes'
FROZEN = 'has its filesystems frozen'
HALTED = 'stands still, or does not run'


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a snapshot.

    :ivar name: what has just happened, or just happens
    :ivar function: 'module:qualified.name'
    :ivar moment: of this function
    :ivar guest: what it does meanwhile, if it ran before
    :ivar nth: at which call of the function, in one snapshot
    :ivar delay: seconds from the call, for DURING
    """

    name: str
    function: str
    moment: str = AFTER
    guest: str = WRITES
    nth: int = 1
    delay: float = 0.0

    @property
    def identifier(self):
        """Its name, as part of a test's."""
        return re.sub(r'\W+', '_', self.name)


@dataclasses.dataclass(frozen=True)
class Case:
    """The snapshots of one strategy and kind of guest.

    :ivar running: whether the guest runs
    :ivar points: in the order in which they are reached
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
        """The points from one on."""
        return self.points[self.points.index(self.point(name)):]


FREEZE = 'nova_snapext.freeze.'
UPLOAD = 'nova_snapext.upload.'
NOVA = 'nova.virt.libvirt.driver:LibvirtDriver.'

ADD = 'nova_snapext.journal:Entry.add'

BEGUN = Point('the journal is begun', 'nova_snapext.journal:Entry.write')
MADE = Point('its directory is made', f'{FREEZE}directory:Directory.make')
QUIESCED = Point('the filesystems are frozen',
                 f'{FREEZE}quiesce:Filesystems._freeze', guest=FROZEN)
THAWED = Point('the filesystems are thawed',
               f'{FREEZE}quiesce:Filesystems.thaw')
SERVED = Point('qemu-nbd serves', f'{FREEZE}qemu_nbd:serve')
READ = Point('the 50th piece is read', f'{UPLOAD}body:Body.read', nth=50)
SENT = (
    READ,
    Point('the upload is over', f'{UPLOAD}glance:StreamingClient._attempt'),
)
SERVER_ENDED = Point('qemu-nbd has ended', f'{FREEZE}qemu_nbd:Server.end')
JOURNAL_ENDED = (
    Point('the journal is to be ended', 'nova_snapext.journal:Entry.close',
          BEFORE),
    Point('the journal is ended', 'nova_snapext.journal:Entry.close'),
)
DONE = (
    Point('its directory is removed', f'{FREEZE}directory:Directory.remove'),
    Point('it is done', 'nova_snapext.driver:SnapextDriver.snapshot'),
)

OVERLAY_MADE = Point('the overlay\'s file is made',
                     f'{FREEZE}qemu_img:create_overlay')
MERGED = (
    Point('the commit is to begin', 'libvirt:virDomain.blockCommit', BEFORE),
    Point('the commit has begun', 'libvirt:virDomain.blockCommit'),
    Point('the commit is ready', 'libvirt:virDomain.blockJobAbort', BEFORE),
    Point('the pivot is asked for', 'libvirt:virDomain.blockJobAbort'),
    Point('the guest is back on its disk',
          f'{FREEZE}active_commit:ActiveCommit.run'),
    Point('the overlay is to be removed', f'{FREEZE}overlay:Overlay._remove',
          BEFORE),
    Point('the overlay is removed', f'{FREEZE}overlay:Overlay._remove'),
)

#: What all have in common is here in full, and elsewhere in short.
BACKUP = Case('backup', True, (
    Point('the journal is to be begun', 'os:link', BEFORE),
    BEGUN,
    Point('the backup job is in the journal', ADD, nth=2),
    MADE,
    Point('its directory is shared with QEMU',
          f'{FREEZE}directory:Directory.share_with'),
    QUIESCED,
    Point('the backup job has begun', 'libvirt:virDomain.backupBegin',
          guest=FROZEN),
    THAWED,
    Point('the upload is to begin', f'{UPLOAD}glance:StreamingClient._attempt',
          BEFORE),
    Point('the first piece is read', f'{UPLOAD}body:Body.read'),
    *SENT,
    Point('the digest is compared', f'{UPLOAD}glance:_mismatch'),
    Point('the backup job is to be ended', 'libvirt:virDomain.abortJob',
          BEFORE),
    Point('the backup job is aborted', 'libvirt:virDomain.abortJob'),
    Point('the backup job is over', f'{FREEZE}backup_job:BackupJob.end'),
    DONE[0],
    *JOURNAL_ENDED,
    DONE[1],
))

EXTERNAL = Case('external', True, (
    BEGUN,
    Point('its directory is in the journal', ADD),
    MADE,
    Point('the overlay is in the journal', ADD, nth=3),
    OVERLAY_MADE,
    QUIESCED,
    Point('the guest is on the overlay', 'libvirt:virDomain.snapshotCreateXML',
          guest=FROZEN),
    THAWED,
    SERVED,
    *SENT,
    SERVER_ENDED,
    *MERGED,
    *DONE,
))

INTERNAL = Case('internal', True, (
    BEGUN,
    MADE,
    Point('the snapshot is in the journal', ADD, nth=4),
    QUIESCED,
    Point('the memory is being saved', 'libvirt:virDomain.snapshotCreateXML',
          DURING, guest=FROZEN, delay=0.3),
    Point('the snapshot is made', 'libvirt:virDomain.snapshotCreateXML',
          guest=FROZEN),
    THAWED,
    SERVED,
    *SENT,
    SERVER_ENDED,
    Point('libvirt is told of the snapshot',
          'libvirt:virDomain.snapshotCreateXML', nth=2),
    Point('the snapshot is deleted', 'libvirt:virDomainSnapshot.delete'),
    *DONE,
))

INTERNAL_OFF = Case('internal', False, (
    BEGUN,
    MADE,
    Point('the snapshot is in the journal', ADD, nth=3),
    Point('the snapshot is made',
          f'{FREEZE}internal_snapshot:InternalSnapshot.create'),
    SERVED,
    *SENT,
    SERVER_ENDED,
    Point('the snapshot is deleted', f'{FREEZE}qemu_img:delete_snapshot'),
    *DONE,
))

COLD = Case('cold', True, (
    BEGUN,
    MADE,
    Point('the overlay is in the journal', ADD, nth=2),
    OVERLAY_MADE,
    Point('the suspension is in the journal', ADD, nth=4),
    Point('the memory is to be saved', 'libvirt:virDomain.managedSave',
          BEFORE),
    Point('the memory is being saved', 'libvirt:virDomain.managedSave', DURING,
          guest=HALTED, delay=0.3),
    Point('the memory is saved', 'libvirt:virDomain.managedSave',
          guest=HALTED),
    Point('the definition is on the overlay',
          f'{FREEZE}overlay:Overlay._move_definition', guest=HALTED),
    Point('the saved memory is on the overlay',
          f'{FREEZE}overlay:Overlay._move_saved_state', guest=HALTED),
    Point('the guest is being resumed', f'{FREEZE}cold:Suspension.resume',
          DURING, guest=HALTED, delay=0.5),
    Point('the guest is resumed', f'{FREEZE}cold:Suspension.resume'),
    SERVED,
    *SENT,
    SERVER_ENDED,
    *MERGED,
    *DONE,
))

COLD_OFF = Case('cold', False, (
    BEGUN,
    MADE,
    SERVED,
    *SENT,
    SERVER_ENDED,
    *DONE,
))

NATIVE = Case('native', True, (
    BEGUN,
    Point('Nova\'s own snapshot is to begin', f'{NOVA}snapshot', BEFORE),
    Point('the domain is undefined', f'{NOVA}_delete_guest_configuration'),
    Point('the mirror has begun',
          'nova.virt.libvirt.guest:BlockDevice.rebase'),
    Point('the filesystems are frozen', f'{NOVA}quiesce', guest=FROZEN),
    Point('the mirror is ended',
          'nova.virt.libvirt.guest:BlockDevice.abort_job', guest=FROZEN),
    Point('the domain is defined again',
          'nova.virt.libvirt.host:Host.write_instance_config', guest=FROZEN),
    Point('the image is converted', f'{NOVA}_live_snapshot'),
    Point('the image is being sent',
          'glanceclient.v2.images:Controller.upload', DURING, delay=0.2),
    Point('Nova\'s own snapshot is over', f'{NOVA}snapshot'),
    DONE[-1],
))

CASES = (BACKUP, EXTERNAL, INTERNAL, INTERNAL_OFF, COLD, COLD_OFF, NATIVE)

SERVING = Point('qemu-nbd is to serve', f'{FREEZE}qemu_nbd:serve', BEFORE)
COMPARING = Point('the digest is to be compared', f'{UPLOAD}glance:_mismatch',
                  BEFORE)
SNAPSHOTTING = Point('the snapshot is to be made',
                     'libvirt:virDomain.snapshotCreateXML', BEFORE)
SNAPSHOTTED = Point('the snapshot is made',
                    'libvirt:virDomain.snapshotCreateXML')
#: Where an error can come while the disk is frozen and sent, by case. After a
#: function means that it says so of what it has done.
ERRORS = {
    BACKUP: (
        Point('its directory is to be shared with QEMU',
              f'{FREEZE}directory:Directory.share_with', BEFORE),
        Point('the backup job is to begin', 'libvirt:virDomain.backupBegin',
              BEFORE),
        Point('the backup job has begun', 'libvirt:virDomain.backupBegin'),
        READ,
        COMPARING,
    ),
    EXTERNAL: (
        Point('the overlay\'s file is to be made',
              f'{FREEZE}qemu_img:create_overlay', BEFORE),
        SNAPSHOTTING,
        SNAPSHOTTED,
        SERVING,
        COMPARING,
    ),
    INTERNAL: (SNAPSHOTTING, SNAPSHOTTED, SERVING, COMPARING),
    COLD: (
        Point('the memory is to be saved', 'libvirt:virDomain.managedSave',
              BEFORE),
        Point('the memory is saved', 'libvirt:virDomain.managedSave'),
        Point('the definition is to be on the overlay',
              f'{FREEZE}overlay:Overlay._move_definition', BEFORE),
        Point('the definition is on the overlay',
              f'{FREEZE}overlay:Overlay._move_definition'),
        Point('the saved memory is on the overlay',
              f'{FREEZE}overlay:Overlay._move_saved_state'),
        Point('the guest is to be resumed',
              f'{FREEZE}cold:Suspension.resume', BEFORE),
        SERVING,
        COMPARING,
    ),
}

REMOVING = Point('its directory is to be removed',
                 f'{FREEZE}directory:Directory.remove', BEFORE)
COMMITTING = (
    Point('the commit is to begin', 'libvirt:virDomain.blockCommit', BEFORE),
    Point('the commit has begun', 'libvirt:virDomain.blockCommit'),
    Point('the pivot is to be asked for', 'libvirt:virDomain.blockJobAbort',
          BEFORE),
    Point('the pivot is asked for', 'libvirt:virDomain.blockJobAbort'),
    Point('the overlay is to be removed', f'{FREEZE}overlay:Overlay._remove',
          BEFORE),
)

#: Where one can come when the disk is released.
RELEASE_ERRORS = {
    BACKUP: (
        Point('the backup job is to be ended', 'libvirt:virDomain.abortJob',
              BEFORE),
        Point('the backup job is aborted', 'libvirt:virDomain.abortJob'),
        REMOVING,
    ),
    EXTERNAL: (*COMMITTING, REMOVING),
    INTERNAL: (
        Point('libvirt is to be told of the snapshot',
              'libvirt:virDomain.snapshotCreateXML', BEFORE, nth=2),
        Point('the snapshot is to be deleted',
              'libvirt:virDomainSnapshot.delete', BEFORE),
        REMOVING,
    ),
    COLD: (*COMMITTING, REMOVING),
}


def _named(points, *names):
    return tuple(point for point in points if point.name in names)


#: Where libvirtd can hang: in the middle of what is asked of it.
HANGS = {
    BACKUP: (
        *_named(ERRORS[BACKUP], 'the backup job is to begin'),
        Point('the filesystems are to be thawed',
              f'{FREEZE}quiesce:Filesystems.thaw', BEFORE, guest=FROZEN),
        *_named(RELEASE_ERRORS[BACKUP], 'the backup job is to be ended'),
    ),
    EXTERNAL: (
        SNAPSHOTTING,
        *_named(COMMITTING, 'the commit is to begin',
                'the pivot is to be asked for'),
    ),
    INTERNAL: (
        SNAPSHOTTING,
        *_named(RELEASE_ERRORS[INTERNAL],
                'libvirt is to be told of the snapshot',
                'the snapshot is to be deleted'),
    ),
    COLD: (
        *_named(ERRORS[COLD], 'the memory is to be saved',
                'the guest is to be resumed'),
        *_named(COMMITTING, 'the commit is to begin'),
    ),
}

#: Points of the healing of what a first kill has left, by case and by the
#: point of that.
HEALING = {
    (BACKUP, READ): (
        *BACKUP.since('the backup job is to be ended')[:4],
        Point('the backup job is off the journal',
              'nova_snapext.journal:Entry.forget'),
        Point('the image is deleted',
              'nova_snapext.upload.image:UnfinishedImage.release'),
        *JOURNAL_ENDED,
    ),
    (EXTERNAL, READ): (
        *MERGED,
        EXTERNAL.point('its directory is removed'),
    ),
    (INTERNAL, READ): (
        SNAPSHOTTED,
        INTERNAL.point('the snapshot is deleted'),
        INTERNAL.point('its directory is removed'),
    ),
    (COLD, COLD.point('the saved memory is on the overlay')): (
        Point('the overlay is being committed', f'{FREEZE}qemu_img:commit',
              DURING, guest=HALTED, delay=0.02),
        Point('the overlay is committed', f'{FREEZE}qemu_img:commit',
              guest=HALTED),
        Point('the definition is on the disk again',
              f'{FREEZE}overlay:Overlay._move_definition', guest=HALTED),
        Point('the saved memory is on the disk again',
              f'{FREEZE}overlay:Overlay._move_saved_state', guest=HALTED),
        COLD.point('the guest is being resumed'),
        COLD.point('the guest is resumed'),
    ),
}

#: All functions that are to be wrapped.
FUNCTIONS = tuple(sorted({
    point.function
    for points in (*(case.points for case in CASES), *ERRORS.values(),
                   *RELEASE_ERRORS.values(), *HANGS.values(),
                   *HEALING.values())
    for point in points}))
