# SPDX-License-Identifier: Apache-2.0
"""Nova's own snapshot, with a journal, and without a suspension if unwanted.

Nova's driver calls some of its own methods during its snapshot. SnapextDriver
overrides them, finds the job of the instance and calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os

from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import guest_filesystems
from nova_snapext.resources import native_snapshot

LOG = logging.getLogger(__name__)


class NativeJob:
    """Nova's own snapshot of one instance.

    :param driver: a SnapextDriver
    :param may_suspend: Nova may suspend the guest
    """

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 plan: planning.Plan, may_suspend: bool):
        self._driver = driver
        self._plan = plan
        self._may_suspend = may_suspend
        self._snapshot = native_snapshot.NativeSnapshot(
            driver, plan, plan.guest.get_power_state(driver._host))

    def run(self, update_task_state: Callable[..., None],
            entry: journal.JournalEntry,
            complete: Callable[[], None]) -> None:
        """Take the snapshot.

        :param entry: the snapshot's entry in the journal
        :param complete: called when the image is complete
        :raises DirectSnapshotRefused: Nova would have suspended the guest;
            nothing is left of the attempt
        """
        plan = self._plan
        with journal.ReleaseStack(entry) as stack:
            stack.add(guest_filesystems.GuestFilesystems(
                self._driver._host, plan))
            stack.enter_context(self._registered())
            stack.add(self._snapshot)
            libvirt_driver.LibvirtDriver.snapshot(
                self._driver, plan.context, plan.instance, plan.image_id,
                update_task_state)
            complete()

    @contextlib.contextmanager
    def _registered(self) -> Iterator[None]:
        jobs = self._driver.native_jobs
        jobs[self._plan.instance.uuid] = self
        try:
            yield
        finally:
            del jobs[self._plan.instance.uuid]

    def on_live_snapshot(self, path: str) -> None:
        """Record the directory that Nova has just created.

        :param path: of the file in it that Nova mirrors the disk to
        """
        self._snapshot.directory = os.path.dirname(path)
        self._snapshot.save()
        LOG.debug('Nova mirrors the root disk to %s', path,
                  instance=self._plan.instance)

    def on_suspend(self) -> None:
        """Check that Nova may suspend the guest.

        :raises DirectSnapshotRefused: it may not
        """
        if not self._may_suspend:
            raise exception.DirectSnapshotRefused(
                instance=self._plan.instance.uuid)
