# SPDX-License-Identifier: Apache-2.0
"""The errors of snapshots, as operators and users read them."""

from __future__ import annotations

from collections.abc import Mapping
import traceback

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

    Its text is for operators. Users may be able to read what Nova makes of
    it: Nova stores format_message() as the fault of the instance, and shows
    it to its users when the instance is in the state ERROR.

    :cvar user_msg_fmt: the text for users, which says nothing of the host;
        ``error`` is the name of the class, ``user_reason`` the part of the
        reason that is for users
    """

    user_msg_fmt = _("A problem of the cloud, not of your server or your "
                     "request (%(error)s). Ask an operator of the cloud for "
                     "the reason, and give the request ID.")

    def format_message(self) -> str:
        """Return the text for users."""
        return str(self.user_msg_fmt % {
            'error': type(self).__name__,
            'user_reason': 'an operator of the cloud knows the reason',
            **self.kwargs})

    def append(self, text: str) -> None:
        """Append a sentence to the text for operators."""
        self.args = (f'{self} {text}',)
        self.message = self.args[0]


class CompatibilityError(SnapextError):
    msg_fmt = _("nova-snapext does not work with this installation: "
                "%(reason)s. Run 'nova-snapext check' for details.")


class CompressionUnavailable(SnapextError):
    msg_fmt = _("Images can't be compressed with zstd, as "
                "[snapext]compression_type asks for: the Python package "
                "zstandard is not installed. Install it for the Python of "
                "nova-compute (python3-zstandard in Debian, or 'pip install "
                "zstandard'), or remove the option: images are then "
                "compressed with zlib.")


class StrategyConfigError(SnapextError):
    msg_fmt = _("The snapshot strategies are not configured correctly: "
                "%(reason)s")


class StrategyRefused(SnapextError):
    """Users see the first 255 characters of user_msg_fmt.

    :ivar reasons: why each strategy can't take the snapshot, by its name;
        empty if the request itself is refused
    """

    msg_fmt = _("Strategy %(strategy)s, requested by %(source)s, can't take "
                "the snapshot of instance %(instance)s: %(reason)s")
    # The event that shows it is one of the instance.
    user_msg_fmt = _("Strategy %(strategy)s, requested by %(source)s, can't "
                     "take the snapshot: %(user_reason)s")

    def __init__(self, reasons: Mapping[str, str], **kwargs: str):
        super().__init__(**kwargs)
        self.reasons = reasons


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
    user_msg_fmt = _("Another operation of the server is in progress "
                     "(%(job)s). Wait until it has ended, then take the "
                     "snapshot again.")


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
    user_msg_fmt = _("Another snapshot of the server is in progress, or was "
                     "interrupted. Wait until it has ended, or delete its "
                     "image to cancel it.")


class RecoveryInProgress(SnapshotInProgress):
    msg_fmt = _("Instance %(instance)s is being recovered from an interrupted "
                "snapshot, which takes long. It can't be started, moved or "
                "snapshotted until then. Try again when the log of "
                "nova-compute says that the interrupted snapshot is cleaned "
                "up.")
    user_msg_fmt = _("An earlier snapshot of the server was interrupted, and "
                     "is being cleaned up. Try again later.")


class NotRecovered(SnapextError):
    """Resources of an interrupted snapshot are left.

    :ivar blocks_start: the instance must not be started or moved
    """

    msg_fmt = _("An interrupted snapshot of instance %(instance)s could not "
                "be cleaned up: %(reason)s nova-compute tries again by "
                "itself: when a job of the guest ends, when the guest is "
                "started, stopped or unpaused, when libvirtd is back, and "
                "otherwise after [snapext]recovery_interval; 'nova-snapext "
                "recover' does so while nova-compute is stopped.")
    user_msg_fmt = _("An earlier snapshot of the server was interrupted, and "
                     "could not be cleaned up. Ask an operator of the cloud.")

    def __init__(self, blocks_start: bool, **kwargs: str):
        super().__init__(**kwargs)
        self.blocks_start = blocks_start


class OperationRefused(NotRecovered):
    """Users see this message, so it says nothing of the host."""

    msg_fmt = _("Nothing was done to instance %(instance)s, because an "
                "earlier snapshot of it is not cleaned up yet, and data that "
                "the guest has written since then could be lost. nova-compute "
                "keeps trying to clean up: try again later. An operator "
                "finds the reason in the log of nova-compute. The instance "
                "can be stopped or deleted at any time; if a job of the "
                "running guest is in the way, stopping it helps.")
    user_msg_fmt = msg_fmt


class JournalEntryUnusable(NotRecovered):
    """Nobody knows what an earlier snapshot has left."""

    msg_fmt = _("The journal of a snapshot of instance %(instance)s can't be "
                "used (%(path)s): %(reason)s. The instance can't be started, "
                "moved or snapshotted before the interrupted snapshot is "
                "cleaned up: by the version and on the host that began it, or "
                "when the file can be read.")

    def __init__(self, **kwargs: str):
        super().__init__(blocks_start=True, **kwargs)


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


class JournalFileInvalid(JournalRecordError):
    """A file of the journal has no content that makes sense."""


class JournalFileInaccessible(JournalRecordError):
    """A file of the journal may be right, and can't be read or trusted."""


class JournalFileNewer(JournalRecordError):
    """A file of the journal was written by a newer version."""


class JournalFileForeign(JournalRecordError):
    """A file of the journal was written by another host."""


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
    """The guest is as before, and was not touched.

    Another strategy may be tried.
    """

    msg_fmt = _("Strategy %(strategy)s could not freeze the root disk "
                "%(disk)s of instance %(instance)s: %(reason)s")


class QuiesceFailed(SnapextError, exception.InstanceQuiesceFailed):
    """The image requires what the guest can't do. Nothing was changed.

    No other strategy is tried: each one needs the same of the guest.
    """

    msg_fmt = _("The filesystems of instance %(instance)s could not be "
                "frozen, and its image requires it (os_require_quiesce): "
                "%(reason)s. Its users can mend that: install and start "
                "qemu-guest-agent in the guest, or boot it from an image "
                "without os_require_quiesce.")
    user_msg_fmt = _("The image of the server requires that its filesystems "
                     "are frozen (os_require_quiesce), and %(user_reason)s.")


class GuestStoodStill(FreezeFailed):
    """The guest is as before, and may have stood still for the attempt.

    No strategy that stops the guest is tried after that.
    """


class FreezeFailedForGood(FreezeFailed):
    """No other strategy may be tried.

    The guest was disturbed, although it is as before; or its disk must not be
    opened.
    """


class ThawFailed(SnapextError):
    msg_fmt = _("The filesystems of instance %(instance)s were frozen for "
                "the snapshot and could not be thawed: %(reason)s. Thaw them "
                "with 'virsh domfsthaw %(guest)s', or reboot the instance.")
    user_msg_fmt = _("The guest agent (qemu-guest-agent) of the server did "
                     "not answer. The filesystems of the server may be "
                     "frozen. If the server hangs, reboot it. Check the "
                     "agent, then take the snapshot again.")


class ReleaseFailed(SnapextError):
    msg_fmt = _("The snapshot of instance %(instance)s could not be cleaned "
                "up: %(reason)s")


class CommitFailed(SnapextError):
    msg_fmt = _("The root disk %(disk)s of guest %(guest)s %(reason)s")


class DiskReadError(SnapextError):
    """Not an OSError: Nova takes those for a Glance server to try again."""

    msg_fmt = _("Could not read the frozen disk %(disk)s: %(reason)s")


class CephError(SnapextError):
    msg_fmt = _("A request to Ceph failed: it could not %(action)s: "
                "%(reason)s. 'ceph -s' shows whether the cluster responds to "
                "this host, with the ceph.conf of [libvirt]"
                "images_rbd_ceph_conf and the user of [libvirt]rbd_user, or "
                "[snapext]rbd_image_user for images of disks outside Ceph.")


class CephTimeout(CephError):
    msg_fmt = _("Ceph did not respond within %(seconds)s seconds, to "
                "%(action)s. 'ceph -s' shows the state of the cluster, with "
                "the ceph.conf of [libvirt]images_rbd_ceph_conf and the user "
                "of [libvirt]rbd_user, or [snapext]rbd_image_user for images "
                "of disks outside Ceph.")


class DirectImageRefused(SnapextError):
    """The disk can still be streamed."""

    msg_fmt = _("The image of instance %(instance)s can't be made inside "
                "Ceph: %(reason)s")


class LocationRefused(SnapextError):
    msg_fmt = _("Glance did not take over the location of image %(image)s: "
                "%(reason)s")


class ImageMismatch(SnapextError):
    msg_fmt = _("Image %(image)s in Glance is not what was sent: %(reason)s")


class ImageNotVerified(SnapextError):
    msg_fmt = _("Could not verify image %(image)s in Glance: %(reason)s")


class IncompleteImageLeft(SnapextError):
    msg_fmt = _("The incomplete image %(image)s could not be deleted: "
                "%(reason)s. Do not use it. nova-compute tries again to "
                "delete it. Its snapshot failed: %(failure)s")
    user_msg_fmt = _("The incomplete image %(image)s could not be deleted. "
                     "Do not use it. Delete it; if it is protected, remove "
                     "the protection first.")


class SnapshotAborted(SnapextError):
    """The snapshot was ended early for a reason that is not its own fault."""


class ServiceStopping(SnapshotAborted):
    msg_fmt = _("nova-compute is stopping, and the snapshot of instance "
                "%(instance)s was not finished. Take it again when the "
                "service is back.")
    user_msg_fmt = _("The cloud is being maintained, and the snapshot was "
                     "not finished. Take it again later.")


class GuestStopped(SnapshotAborted):
    msg_fmt = _("Instance %(instance)s was shut off before its snapshot was "
                "finished. The frozen disk ended with its QEMU process. Take "
                "the snapshot again; the instance may stay shut off.")
    user_msg_fmt = _("The server was shut off before its snapshot was "
                     "finished. Take the snapshot again. The server may stay "
                     "shut off.")


class InsufficientSpace(SnapshotAborted):
    msg_fmt = _("There is not enough free space for the snapshot of instance "
                "%(instance)s: the file system of %(path)s has %(free)d MiB "
                "free (less [DEFAULT]reserved_host_disk_mb), %(shrinks)d MiB "
                "less each second, and [snapext]min_free_disk_mb keeps "
                "%(min_free)d MiB for the guest, which would pause without "
                "space. Free some space there, or take the snapshot when the "
                "guest writes less.")
    user_msg_fmt = _("The host of the server has not enough free space for "
                     "the snapshot. Take it again when the server writes "
                     "less, or ask an operator of the cloud.")


class GlanceRefused(SnapshotAborted):
    msg_fmt = _("Glance at %(server)s refused image %(image)s: %(reason)s")
    user_msg_fmt = _("The image service (Glance) refused the image: "
                     "%(user_reason)s.")


def free_frames(error: BaseException | None,
                *others: BaseException | None) -> None:
    """Free what the functions that an error has left still refer to.

    An error keeps these functions' variables in its traceback: buffers,
    threads, connections. Some of them keep the error in turn, such as a
    CancelToken its cause, and urllib3's ``urlopen`` the errors that it
    handles. Only the garbage collector would free such a cycle.

    :param others: errors whose functions keep their variables
    """
    if error is None or error in others:
        return
    # Functions that have not ended keep theirs.
    traceback.clear_frames(error.__traceback__)
    # The errors of requests have it, and it has the body.
    vars(error).pop('request', None)
    free_frames(error.__cause__, error, *others)
    free_frames(error.__context__, error, *others)
