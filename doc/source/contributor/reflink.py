# SPDX-License-Identifier: Apache-2.0
"""A strategy for file systems that share blocks, such as XFS and Btrfs."""

import contextlib
import dataclasses
import pathlib

import libvirt
from oslo_concurrency import processutils
from oslo_utils import timeutils

from nova_snapext import strategies


class ReflinkCopy(strategies.Resource):
    """A copy beside the disk, and the guest that is paused for it.

    Recorded: whether the guest is paused. Restored: as recorded. Released:
    the guest is resumed, and the copy removed.
    """

    kind = 'reflink copy'

    def __init__(self, host, target):
        self.host = host
        self.target = target
        self.path = pathlib.Path(f'{target.disk.path}.reflink')
        self.paused = False

    def record(self):
        return {'paused': self.paused}

    @classmethod
    def restore(cls, driver, target, record):
        copy = cls(driver.strategies['reflink'].host, target)
        copy.paused = record['paused']
        return copy

    def create(self, guest):
        with self.paused_guest(guest):
            processutils.execute(
                'cp', '--reflink=always', self.target.disk.path, self.path)

    @contextlib.contextmanager
    def paused_guest(self, guest):
        """Make QEMU write its caches to the disk, and then nothing more."""
        if guest.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            yield
            return
        self.paused = True
        self.save()
        try:
            guest.pause()
            yield
        finally:
            self.resume()

    def resume(self):
        guest = strategies.find_domain(self.host, self.target.instance)
        if guest is not None and guest.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            guest.resume()
        self.paused = False
        self.save()

    def release(self):
        if self.paused:
            self.resume()
        self.path.unlink(missing_ok=True)


class ReflinkStrategy(strategies.FreezingStrategy):

    name = 'reflink'
    STORAGES = frozenset({'file'})
    resource_types = (strategies.WorkDirectory, strategies.GuestFilesystems,
                      ReflinkCopy, strategies.NbdExport)

    def unsupported_guest_reason(self, plan):
        if not plan.running:
            return strategies.UserReason(
                'the guest is shut off: there is nothing to freeze')
        return None

    def freeze_disk(self, plan, stack):
        directory = self.create_work_directory(plan, stack)
        filesystems = strategies.GuestFilesystems(self.host, plan)
        stack.add(filesystems)
        copy = ReflinkCopy(self.host, plan)
        stack.add(copy)
        with filesystems.frozen() as consistency, \
                timeutils.StopWatch() as watch:
            frozen_at = timeutils.utcnow()
            copy.create(plan.guest)
        stack.mark_released(filesystems)
        return self.export_disk(
            plan, stack, directory, consistency=consistency,
            freeze_seconds=watch.elapsed(), frozen_at=frozen_at,
            disk=dataclasses.replace(plan.disk, path=str(copy.path)))
