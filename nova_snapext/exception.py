# SPDX-License-Identifier: Apache-2.0
"""Errors of a snapshot, as Nova reports them to operator and user."""

from nova import exception
from nova.i18n import _

# What Nova's manager takes for the end of the instance, or of the wish for
# its image, and not for an error.
GONE = (exception.InstanceNotFound,
        exception.InstanceNotRunning,
        exception.UnexpectedDeletingTaskStateError,
        exception.ImageNotFound)


class StrategyError(exception.NovaException):
    msg_fmt = _("The strategies of snapshots are not as they should be: "
                "%(reason)s")


class StrategyRefused(exception.NovaException):
    """What a user sees of it is cut at 255 characters."""

    msg_fmt = _("Strategy %(strategy)s, asked for by %(asker)s, can't serve "
                "the snapshot of instance %(instance)s: %(reason)s")


class RootDiskUnknown(exception.NovaException):
    msg_fmt = _("The definition of guest %(guest)s does not tell its root "
                "disk, so that no snapshot can be taken of it: %(reason)s. "
                "See 'virsh dumpxml %(guest)s'; a hard reboot defines the "
                "guest anew.")


class DirectSnapshotRefused(exception.NovaException):
    """Nova's own would now suspend the guest."""

    msg_fmt = _("The storage can't make an image of instance %(instance)s by "
                "itself")


class GuestBusy(exception.NovaException):
    msg_fmt = _("Guest %(guest)s of instance %(instance)s already has the "
                "job '%(job)s' running, which its root disk can't be frozen "
                "beside. Wait for the job's end, or end it (virsh domjobinfo "
                "and domjobabort %(guest)s), then take the snapshot again.")


class DiskBusy(GuestBusy):
    msg_fmt = _("The root disk %(disk)s of instance %(instance)s already has "
                "the job '%(job)s' running, which it can't be frozen beside. "
                "Wait for the job's end, or end it (virsh blockjob %(guest)s "
                "%(disk)s --abort), then take the snapshot again.")


class SnapshotOutstanding(exception.NovaException):
    msg_fmt = _("A snapshot of instance %(instance)s is being taken, or was "
                "interrupted and could not be cleaned up yet (%(path)s). Wait "
                "for its end, or delete its image to give it up; where there "
                "is none under way, nova-compute's log says what is left of "
                "it and how to go on.")


class NotRecovered(exception.NovaException):
    """Something of an interrupted snapshot is left.

    :ivar vital: the instance must not be started or moved
    """

    msg_fmt = _("An interrupted snapshot of instance %(instance)s could not "
                "be cleaned up: %(reason)s It is tried again when "
                "nova-compute starts, when the instance is started or "
                "snapshotted, and by 'nova-snapext recover' while "
                "nova-compute is down.")

    def __init__(self, vital: bool, **kwargs: str):
        super().__init__(**kwargs)
        self.vital = vital


class JournalFailed(exception.NovaException):
    msg_fmt = _("The journal of snapshots in [snapext]journal_directory "
                "(%(path)s) can't be used: %(reason)s. Without it no snapshot "
                "is taken, since nothing would clean up after a crash. The "
                "directory must belong to nova-compute's user and have room.")


class JournalLocked(exception.NovaException):
    msg_fmt = _("Another process of this host uses the journal of snapshots "
                "(%(path)s): nova-compute, which cleans up by itself when it "
                "starts, or nova-snapext recover. Stop it first.")


class FreezeFailed(exception.NovaException):
    msg_fmt = _("The root disk %(disk)s of instance %(instance)s could not "
                "be frozen by the strategy %(strategy)s: %(reason)s")


class ThawFailed(exception.NovaException):
    msg_fmt = _("The filesystems of instance %(instance)s were frozen for "
                "the snapshot and could not be thawed: %(reason)s. Thaw them "
                "with 'virsh domfsthaw %(guest)s', or reboot the instance.")


class ReleaseFailed(exception.NovaException):
    msg_fmt = _("The snapshot of instance %(instance)s could not be cleaned "
                "up: %(reason)s")


class CommitFailed(exception.NovaException):
    msg_fmt = _("The root disk %(disk)s of guest %(guest)s %(reason)s")


class DiskReadError(exception.NovaException):
    """Not an OSError: Nova takes one of those for a Glance to try again."""

    msg_fmt = _("Reading the frozen disk %(disk)s failed: %(reason)s")


class ImageMismatch(exception.NovaException):
    msg_fmt = _("Glance stored something else for image %(image)s than was "
                "sent: %(reason)s")


class ImageNotVerified(exception.NovaException):
    msg_fmt = _("Whether Glance stored for image %(image)s what was sent "
                "can't be told: %(reason)s")


class ImageLeft(exception.NovaException):
    msg_fmt = _("The snapshot failed: %(failure)s. Its image %(image)s could "
                "not be deleted (%(reason)s): it must not be used, and is to "
                "be deleted by hand")


class GivenUp(exception.NovaException):
    """What is no fault of the snapshot's, and what somebody is to know."""


class ServiceStopping(GivenUp):
    msg_fmt = _("nova-compute is being stopped, and the snapshot of instance "
                "%(instance)s was not finished. Take it again when the "
                "service is back.")


class GuestStopped(GivenUp):
    msg_fmt = _("Instance %(instance)s was shut off before its snapshot was "
                "finished, and with its QEMU went the frozen disk. Take it "
                "again: of an instance that is shut off, too.")


class NoSpaceLeft(GivenUp):
    msg_fmt = _("Space runs short for the snapshot of instance %(instance)s: "
                "%(free)d MiB are left where %(path)s is "
                "([DEFAULT]reserved_host_disk_mb taken off), and just now "
                "%(shrinks)d MiB less each second, while "
                "[snapext]space_headroom keeps %(headroom)d MiB for the "
                "guest, which would be paused without. Make room there, or "
                "take the snapshot when less is written.")


class GlanceRefused(GivenUp):
    msg_fmt = _("Glance at %(server)s refused image %(image)s: %(reason)s")
