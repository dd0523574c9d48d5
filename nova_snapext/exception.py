# SPDX-License-Identifier: Apache-2.0
"""The errors of snapshots, as operators and users read them."""

from nova import exception
from nova.i18n import _

#: Nova's manager reads these errors as the end of the instance, or as a user
#: who no longer wants the image. It does not report them as failures.
GONE = (exception.InstanceNotFound,
        exception.InstanceNotRunning,
        exception.UnexpectedDeletingTaskStateError,
        exception.ImageNotFound)


class SnapextError(exception.NovaException):
    """Base class of all errors that this package raises.

    An error of another class is a bug, or comes from Nova, libvirt or Glance.
    """


class CompatibilityError(SnapextError):
    msg_fmt = _("nova-snapext does not work with this installation: "
                "%(reason)s. Run 'nova-snapext check' for details.")


class StrategyConfigError(SnapextError):
    msg_fmt = _("The snapshot strategies are not configured correctly: "
                "%(reason)s")


class StrategyRefused(SnapextError):
    """Users see the first 255 characters of this message."""

    msg_fmt = _("Strategy %(strategy)s, requested by %(source)s, can't take "
                "the snapshot of instance %(instance)s: %(reason)s")


class RootDiskUnknown(SnapextError):
    msg_fmt = _("No snapshot can be taken of guest %(guest)s, because its "
                "definition does not tell which disk is the root disk: "
                "%(reason)s. Compare 'virsh dumpxml %(guest)s' with what Nova "
                "knows ('openstack server show %(guest)s'), and undo what was "
                "changed outside of Nova. If no data is in other images, a "
                "hard reboot defines the guest again.")


class DirectSnapshotRefused(SnapextError):
    """Nova's own snapshot would now suspend the guest."""

    msg_fmt = _("The storage can't make an image of instance %(instance)s by "
                "itself")


class GuestBusy(SnapextError):
    msg_fmt = _("Guest %(guest)s of instance %(instance)s runs the job "
                "'%(job)s'. Its root disk can't be frozen until that job "
                "ends. Wait for its end, or stop it (virsh domjobinfo and "
                "domjobabort %(guest)s), then take the snapshot again.")


class DiskBusy(GuestBusy):
    msg_fmt = _("The root disk %(disk)s of instance %(instance)s runs the "
                "job '%(job)s'. The disk can't be frozen until that job ends. "
                "Wait for its end, or stop it (virsh blockjob %(guest)s "
                "%(disk)s --abort), then take the snapshot again.")


class SnapshotInProgress(SnapextError):
    msg_fmt = _("A snapshot of instance %(instance)s is in progress, or was "
                "interrupted and is not cleaned up yet (%(path)s). Wait for "
                "its end, or delete its image to cancel it. If no snapshot is "
                "in progress, the log of nova-compute names what is left and "
                "what to do.")


class RecoveryInProgress(SnapshotInProgress):
    msg_fmt = _("Instance %(instance)s is being recovered from an interrupted "
                "snapshot, which takes long. It can't be started, moved or "
                "snapshotted until then. Try again when the log of "
                "nova-compute says that the interrupted snapshot is cleaned "
                "up.")


class NotRecovered(SnapextError):
    """Resources of an interrupted snapshot are left.

    :ivar blocks_start: the instance must not be started or moved
    """

    msg_fmt = _("An interrupted snapshot of instance %(instance)s could not "
                "be cleaned up: %(reason)s nova-compute tries again when it "
                "starts and when the instance is started, unpaused or "
                "snapshotted; 'nova-snapext recover' does so while "
                "nova-compute is stopped.")

    def __init__(self, blocks_start: bool, **kwargs: str):
        super().__init__(**kwargs)
        self.blocks_start = blocks_start


class JournalFailed(SnapextError):
    msg_fmt = _("The snapshot journal in [snapext]journal_directory "
                "(%(path)s) can't be used: %(reason)s. No snapshot is taken "
                "without it, because nothing would clean up after a crash. "
                "The directory must belong to the user of nova-compute and "
                "have free space.")


class JournalLocked(SnapextError):
    msg_fmt = _("Another process on this host uses the snapshot journal "
                "(%(path)s): nova-compute, which cleans up when it starts, "
                "or nova-snapext (recover or drain). Stop it first.")


class JournalRecordError(SnapextError):
    """A record of the journal can't be used."""

    msg_fmt = _("%(reason)s")


class UnexpectedState(SnapextError):
    """The guest, its disk or a file is not in the state that a step needs."""

    msg_fmt = _("%(reason)s")


class UnexpectedHeader(SnapextError):
    """Nothing was opened: a guest may have written the header of its disk."""

    msg_fmt = _("The disk image %(path)s was not opened, because its header "
                "%(reason)s. A guest that has taken over its QEMU can write "
                "this, to reach other files of the host. Do not start the "
                "instance, and do not use qemu-img on the image, before you "
                "know where the header comes from: 'head --bytes=4096 "
                "%(path)s | strings' shows the names in it.")


class WorkDirectoryError(SnapextError):
    msg_fmt = _("The work directory %(path)s can't be used: %(reason)s")


class FreezeFailed(SnapextError):
    msg_fmt = _("Strategy %(strategy)s could not freeze the root disk "
                "%(disk)s of instance %(instance)s: %(reason)s")


class ThawFailed(SnapextError):
    msg_fmt = _("The filesystems of instance %(instance)s were frozen for "
                "the snapshot and could not be thawed: %(reason)s. Thaw them "
                "with 'virsh domfsthaw %(guest)s', or reboot the instance.")


class ReleaseFailed(SnapextError):
    msg_fmt = _("The snapshot of instance %(instance)s could not be cleaned "
                "up: %(reason)s")


class CommitFailed(SnapextError):
    msg_fmt = _("The root disk %(disk)s of guest %(guest)s %(reason)s")


class DiskReadError(SnapextError):
    """Not an OSError: Nova takes those for a Glance server to try again."""

    msg_fmt = _("Could not read the frozen disk %(disk)s: %(reason)s")


class ImageMismatch(SnapextError):
    msg_fmt = _("Image %(image)s in Glance is not what was sent: %(reason)s")


class ImageNotVerified(SnapextError):
    msg_fmt = _("Could not verify image %(image)s in Glance: %(reason)s")


class IncompleteImageLeft(SnapextError):
    msg_fmt = _("The snapshot failed: %(failure)s. Its image %(image)s could "
                "not be deleted (%(reason)s). Do not use this image; delete "
                "it by hand.")


class SnapshotAborted(SnapextError):
    """The snapshot was ended early for a reason that is not its own fault."""


class ServiceStopping(SnapshotAborted):
    msg_fmt = _("nova-compute is stopping, and the snapshot of instance "
                "%(instance)s was not finished. Take it again when the "
                "service is back.")


class GuestStopped(SnapshotAborted):
    msg_fmt = _("Instance %(instance)s was shut off before its snapshot was "
                "finished. The frozen disk ended with its QEMU process. Take "
                "the snapshot again; the instance may stay shut off.")


class InsufficientSpace(SnapshotAborted):
    msg_fmt = _("There is not enough free space for the snapshot of instance "
                "%(instance)s: the file system of %(path)s has %(free)d MiB "
                "free (less [DEFAULT]reserved_host_disk_mb), %(shrinks)d MiB "
                "less each second, and [snapext]min_free_disk_mb keeps "
                "%(min_free)d MiB for the guest, which would pause without "
                "space. Free some space there, or take the snapshot when the "
                "guest writes less.")


class GlanceRefused(SnapshotAborted):
    msg_fmt = _("Glance at %(server)s refused image %(image)s: %(reason)s")
