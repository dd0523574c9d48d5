# SPDX-License-Identifier: Apache-2.0
"""The strategy ``backup``: libvirt's pull-mode backup job.

Before the guest overwrites data, QEMU copies the old content to a scratch
file; it exports the disk at the job's point in time over NBD. The guest keeps
running, and its backing chain does not change. There is no checkpoint: a full
image needs none.

https://libvirt.org/formatbackup.html, and virDomainBackupBegin.
"""

from __future__ import annotations

from collections.abc import Callable
import grp
import pwd

from lxml import etree
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import confinement
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import jobs
from nova_snapext.hypervisor import known_defects
from nova_snapext.hypervisor import qemu_process
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read
from nova_snapext import reason as reasons
from nova_snapext.resources import backup_job
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import rbd_snapshot
from nova_snapext.resources import work_directory
from nova_snapext.strategies import base
from nova_snapext.strategies import rbd_extents

CONF = conf.CONF


class BackupStrategy(base.FreezingStrategy):
    """Freeze the disk of a running guest by a backup job."""

    name = 'backup'
    STORAGES = frozenset({'file', 'block', 'network'})
    mechanisms = frozenset({known_defects.Mechanism.BACKUP_JOB})
    resource_types = (guest_filesystems.GuestFilesystems,
                      backup_job.BackupJob,
                      rbd_snapshot.RbdSnapshot)

    def unsupported_guest_reason(self, plan: planning.Plan) -> str | None:
        if not plan.running:
            return reasons.UserReason(
                'the guest is shut off, and has no QEMU to run the job')
        if etree.fromstring(plan.guest.get_xml_desc()).xpath(
                './devices/disk[target/@dev=$target]/shareable',
                target=plan.disk.target):
            return reasons.UserReason(
                'its root disk is shared with other guests, and the job does '
                'not see what they write')
        base.check_no_jobs(plan)
        _qemu_owner(plan.guest)
        return None

    def growing_paths(self, plan: planning.Plan) -> tuple[str, ...]:
        return (CONF.snapext.work_directory,)

    def freeze_disk(self, plan: planning.Plan,
                    stack: journal.ReleaseStack) -> base.FrozenDisk:
        jobs.check_no_job(plan.guest, plan.instance)
        uid, gid = _qemu_owner(plan.guest)
        directory = work_directory.WorkDirectory.allocate(plan.instance)
        job = backup_job.BackupJob(self.host, plan, directory)
        job.capture_state(plan.guest)
        filesystems = guest_filesystems.GuestFilesystems(self.host, plan)
        # A thaw that failed is repeated after the job's end: the agent can't
        # answer while QEMU has paused the guest because the scratch file has
        # no space.
        stack.add(filesystems)
        stack.add(job)
        directory.create()
        confinement.label_for_guest(
            directory.path, etree.fromstring(plan.guest.get_xml_desc()))
        directory.create_scratch(
            plan.guest.disk_size(plan.disk.target), uid, gid)
        directory.share_with(uid, gid)
        with filesystems.frozen() as consistency, \
                timeutils.StopWatch() as watch:
            job.begin(plan.guest)
        stack.mark_released(filesystems)
        directory.take_socket()
        qemu_process.check_server(directory.socket, plan.guest, uid)
        extents = rbd_extents.superset_of_frozen(plan, stack)
        return base.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=watch.elapsed(),
            extents=None if extents is None else lambda _token: extents)


def _qemu_owner(guest: domain.Domain) -> tuple[int, int]:
    """Return the ids of the user and group that the guest's QEMU runs as.

    :raises UnexpectedState: libvirt does not say which
    """
    label = etree.fromstring(guest.get_xml_desc()).findtext(
        "./seclabel[@model='dac']/label")
    if not label:
        raise exception.UnexpectedState(
            reason='the guest has no DAC label, and so libvirt does not say '
                   'which user its QEMU runs as')
    user, _, group = label.partition(':')
    try:
        return (_id(user, lambda: pwd.getpwnam(user).pw_uid),
                _id(group, lambda: grp.getgrnam(group).gr_gid))
    except KeyError as error:
        raise exception.UnexpectedState(
            reason=f'the guest\'s QEMU runs as {label}, and this host does '
                   f'not know this user or group') from error


def _id(name: str, lookup: Callable[[], int]) -> int:
    """Return the id of a user or group.

    A number has a plus sign: https://libvirt.org/formatdomain.html#seclabel

    :raises KeyError: there is none of this name
    """
    return int(name) if name.lstrip('+').isdigit() else lookup()
