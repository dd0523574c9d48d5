# SPDX-License-Identifier: Apache-2.0
"""The strategy ``backup``: libvirt's pull-mode backup job.

QEMU keeps the instant by copying to a scratch file whatever the guest is
about to overwrite, and serves it over NBD. The guest runs on, and its backing
chain is not touched. No checkpoint is made: a full image needs none.

https://libvirt.org/formatbackup.html, and virDomainBackupBegin.
"""

from __future__ import annotations

import pwd

from lxml import etree
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils import timeutils

from nova_snapext import conf
from nova_snapext.freeze import backup_job
from nova_snapext.freeze import base
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import jobs
from nova_snapext.freeze import native
from nova_snapext.freeze import quiesce
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read

CONF = conf.CONF


class BackupStrategy(base.FreezingStrategy):

    name = 'backup'
    STORAGES = frozenset({'file', 'block', 'network'})

    def _reason_against(self, plan: planning.Plan) -> str | None:
        if not plan.running:
            return 'the guest is shut off, and has no QEMU that could do it'
        return None

    def reason_against_unasked(self, plan: planning.Plan) -> str | None:
        if native.may_be_direct(plan):
            return 'Nova\'s direct snapshot moves no data at all'
        return None

    def filling(self, plan: planning.Plan) -> tuple[str, ...]:
        return (CONF.snapext.freeze_directory,)

    def _freeze(self, plan: planning.Plan,
                stack: journal.ReleaseStack) -> base.FrozenDisk:
        jobs.check_none_runs(plan.guest, plan.instance)
        directory = snapshot_directory.Directory.choose(plan.instance)
        job = backup_job.BackupJob(self._host, plan, directory)
        job.note(plan.guest)
        filesystems = quiesce.Filesystems(plan)
        # Once more when the job is over: the agent of a guest that QEMU has
        # paused, for want of room for the scratch file, can't answer before.
        stack.hold(filesystems)
        stack.hold(job)
        directory.make()
        directory.share_with(_qemu_uid(plan.guest))
        with filesystems.quiesced() as consistency, \
                timeutils.StopWatch() as watch:
            job.begin(plan.guest)
        stack.settle(filesystems)
        return base.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=watch.elapsed())


def _qemu_uid(guest: libvirt_guest.Guest) -> int:
    """Find the user that the guest's QEMU runs as.

    :raises ValueError: libvirt does not tell
    """
    label = etree.fromstring(guest.get_xml_desc()).findtext(
        "./seclabel[@model='dac']/label")
    if not label:
        raise ValueError(
            'the guest has no DAC label, so that libvirt does not tell which '
            'user its QEMU runs as')
    user = label.partition(':')[0]
    # A number has a plus sign: https://libvirt.org/formatdomain.html#seclabel
    return (int(user) if user.lstrip('+').isdigit()
            else pwd.getpwnam(user).pw_uid)
