# SPDX-License-Identifier: Apache-2.0
"""Lifecycle methods of Nova's driver that first recover the instance."""

from __future__ import annotations

from collections.abc import Callable
import functools
import inspect
import typing as ty

from nova import context as nova_context
from nova import objects
from nova.virt.libvirt import driver

from nova_snapext.recovery import gate as recovery_gate


def _guarded(method: Callable[..., ty.Any]) -> Callable[..., ty.Any]:
    """Return a method that recovers the instance, then calls Nova's.

    :param method: a method of Nova's driver whose first arguments are the
        context and the instance
    """
    name = method.__name__

    @functools.wraps(method)
    def guarded(self: RecoveryGuards,
                context: nova_context.RequestContext,
                instance: objects.Instance,
                *args: ty.Any, **kwargs: ty.Any) -> ty.Any:
        self.gate.ensure_recovered(context, instance)
        nova_method = getattr(super(RecoveryGuards, self), name)
        return nova_method(context, instance, *args, **kwargs)

    # Nova's tests compare the public signatures of its drivers.
    guarded.__signature__ = (  # type: ignore[attr-defined]
        inspect.signature(method))
    return guarded


class RecoveryGuards:
    """All methods that start a guest, or move its disk to another host.

    The definition that Nova writes for a guest has the disk without the
    overlay of an interrupted snapshot. A mixin, to be listed before
    LibvirtDriver among the base classes.

    :ivar gate: the gate of this driver
    """

    gate: recovery_gate.InstanceGate

    check_can_live_migrate_source = _guarded(
        driver.LibvirtDriver.check_can_live_migrate_source)
    finish_revert_migration = _guarded(
        driver.LibvirtDriver.finish_revert_migration)
    migrate_disk_and_power_off = _guarded(
        driver.LibvirtDriver.migrate_disk_and_power_off)
    power_on = _guarded(driver.LibvirtDriver.power_on)
    reboot = _guarded(driver.LibvirtDriver.reboot)
    rescue = _guarded(driver.LibvirtDriver.rescue)
    resume = _guarded(driver.LibvirtDriver.resume)
    resume_state_on_host_boot = _guarded(
        driver.LibvirtDriver.resume_state_on_host_boot)
    spawn = _guarded(driver.LibvirtDriver.spawn)
    unrescue = _guarded(driver.LibvirtDriver.unrescue)


#: The names of the methods above.
GUARDED = tuple(name for name, value in vars(RecoveryGuards).items()
                if inspect.isfunction(value))
