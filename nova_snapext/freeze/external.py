# SPDX-License-Identifier: Apache-2.0
"""The strategy ``external``: a disk-only external snapshot of libvirt's.

What the guest writes from then on goes to an overlay, and the disk below it,
which holds still, is read beside the running guest, through qemu-nbd. Then the
overlay is committed into the disk, and the guest goes on on its disk as
before. No metadata is left in libvirt.

https://libvirt.org/formatsnapshot.html, and virDomainBlockCommit.
"""

from __future__ import annotations

from nova.virt.libvirt import utils as libvirt_utils
from oslo_utils import timeutils

from nova_snapext.freeze import base
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import overlay as disk_overlay
from nova_snapext.freeze import qemu_nbd
from nova_snapext.freeze import quiesce
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext import read


class ExternalStrategy(base.FreezingStrategy):

    name = 'external'

    def _reason_against(self, plan: planning.Plan) -> str | None:
        if not plan.running:
            return 'the guest is shut off, and has no QEMU that could do it'
        return None

    def filling(self, plan: planning.Plan) -> tuple[str, ...]:
        # Of the overlay.
        return (libvirt_utils.get_instance_path(plan.instance),)

    def _freeze(self, plan: planning.Plan,
                stack: journal.ReleaseStack) -> base.FrozenDisk:
        directory = snapshot_directory.Directory.choose(plan.instance)
        stack.hold(directory)
        directory.make()
        filesystems = quiesce.Filesystems(plan)
        # Once more when the guest is back on its disk: the agent of one that
        # QEMU has paused, for want of room for the overlay, can't answer
        # before.
        stack.hold(filesystems)
        overlay = disk_overlay.Overlay(self._host, plan)
        overlay.prepare(plan.guest)
        stack.hold(overlay)
        overlay.create(plan.guest)
        with filesystems.quiesced() as consistency, \
                timeutils.StopWatch() as watch:
            overlay.take(plan.guest)
        instant = timeutils.utcnow()
        stack.settle(filesystems)
        export = qemu_nbd.Export(plan.instance.uuid, directory.socket)
        stack.hold(export)
        export.serve(plan.disk, directory)
        return base.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=consistency, freeze_seconds=watch.elapsed(),
            instant=instant)
