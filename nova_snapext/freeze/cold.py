# SPDX-License-Identifier: Apache-2.0
"""The strategy ``cold``: the root disk of a guest that is shut off.

Nothing writes to the disk, so it is read as it is, through qemu-nbd. QEMU's
image locks see to it that a guest that is started meanwhile does not come up
(https://www.qemu.org/docs/master/system/qemu-block-drivers.html, "Disk image
file locking").
"""

from __future__ import annotations

import contextlib

from oslo_utils import timeutils

from nova_snapext.freeze import base
from nova_snapext.freeze import directory as snapshot_directory
from nova_snapext.freeze import qemu_nbd
from nova_snapext import plan as planning
from nova_snapext import read


class ColdStrategy(base.FreezingStrategy):

    name = 'cold'

    def _reason_against(self, plan: planning.Plan) -> str | None:
        if plan.running:
            return 'the guest is running'
        return None

    def _freeze(self, plan: planning.Plan,
                stack: contextlib.ExitStack) -> base.FrozenDisk:
        directory = snapshot_directory.Directory.make(plan.instance)
        stack.callback(directory.remove)
        with timeutils.StopWatch() as watch:
            server = qemu_nbd.serve(plan.disk, directory,
                                    plan.instance.uuid)
        stack.callback(server.end)
        return base.FrozenDisk(
            uri=read.unix_uri(directory.socket, plan.disk.target),
            consistency=base.consistency_of_shut_off(plan),
            freeze_seconds=watch.elapsed())
