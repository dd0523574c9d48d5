# SPDX-License-Identifier: Apache-2.0
"""Methods of Nova's driver that first recover the instance.

A method that can't recover it refuses, before Nova changes anything. Nova's
manager sets an instance to ERROR after most errors, even if nothing was
changed. So each method raises what leaves the instance as it was, where the
manager has such an error (nova/compute/manager.py,
_error_out_instance_on_exception; nova/conductor/manager.py, _live_migrate).
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import functools
import inspect
import typing as ty

from nova.compute import task_states
from nova.compute import vm_states
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext.hypervisor import block_commit
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import jobs
from nova_snapext.hypervisor import write_limit
from nova_snapext import journal
from nova_snapext.recovery import gate as recovery_gate
from nova_snapext.recovery import state
from nova_snapext.resources import passthrough_devices

LOG = logging.getLogger(__name__)

#: Tasks that begin with a power off, after which Nova changes or destroys the
#: disk, or copies it: rescue, shelve, rebuild, and a resize to another cell.
#: A plain stop and a deletion are none of them: they always work.
POWER_OFF_TASKS = (task_states.RESCUING, task_states.SHELVING,
                   task_states.REBUILDING, task_states.RESIZE_MIGRATING)

#: Methods before which a guest moves while it runs.
LIVE_MOVES = ('check_can_live_migrate_source',)

Refuse = Callable[[exception.SnapextError, objects.Instance], Exception]


def _as_it_is(error: exception.SnapextError,
              _instance: objects.Instance) -> Exception:
    """Return the error itself: the state does not change, or can't be kept."""
    return ty.cast(Exception, error)


def _roll_back(error: exception.SnapextError,
               _instance: objects.Instance) -> Exception:
    """Return the error after which the manager keeps the state."""
    return ty.cast(Exception, nova_exception.InstanceFaultRollback(
        inner_exception=error))


def _refuse_rebuild(error: exception.SnapextError,
                    instance: objects.Instance) -> Exception:
    # Seen in Nova 34: _do_rebuild_instance_with_claim() and its callers.
    LOG.warning('Nova has already stored the new image for the instance, and '
                'removes the allocation of an instance whose rebuild fails. '
                'Repeat the rebuild later, or run "nova-manage placement '
                'heal_allocations --instance %s"', instance.uuid,
                instance=instance)
    return _roll_back(error, instance)


def _fail_check(error: exception.SnapextError,
                _instance: objects.Instance) -> Exception:
    """Return the error after which the conductor keeps the state."""
    return ty.cast(Exception, nova_exception.MigrationPreCheckError(
        reason=error.format_message()))


def _stay_rescued(error: exception.SnapextError,
                  instance: objects.Instance) -> Exception:
    """Put the state back after the manager has changed it."""
    state.put_back(instance.uuid, vm_states.RESCUED)
    return ty.cast(Exception, error)


def _guarded(method: Callable[..., ty.Any],
             refuse: Refuse = _as_it_is) -> Callable[..., ty.Any]:
    """Return a method that recovers the instance, then calls Nova's.

    :param method: a method of Nova's driver whose first arguments are the
        context and the instance
    :param refuse: returns what to raise if the instance can't be recovered
    """
    name = method.__name__

    @functools.wraps(method)
    def guarded(self: RecoveryGuards,
                context: nova_context.RequestContext,
                instance: objects.Instance,
                *args: ty.Any, **kwargs: ty.Any) -> ty.Any:
        self._ensure_recovered(context, instance, name, refuse)
        nova_method = getattr(super(RecoveryGuards, self), name)
        return nova_method(context, instance, *args, **kwargs)

    # Nova's tests compare the public signatures of its drivers.
    guarded.__signature__ = (  # type: ignore[attr-defined]
        inspect.signature(method))
    return guarded


class RecoveryGuards:
    """All methods that start a guest, or move or replace its disk.

    The definition that Nova writes for a guest has the disk without the
    overlay of an interrupted snapshot. A mixin, to be listed before
    LibvirtDriver among the base classes.

    :ivar gate: the gate of this driver
    :ivar pending_unplugs: devices whose removal libvirt has yet to report
    """

    gate: recovery_gate.InstanceGate
    pending_unplugs: passthrough_devices.PendingUnplugs

    check_can_live_migrate_source = _guarded(
        driver.LibvirtDriver.check_can_live_migrate_source, _fail_check)
    finish_revert_migration = _guarded(
        driver.LibvirtDriver.finish_revert_migration)
    migrate_disk_and_power_off = _guarded(
        driver.LibvirtDriver.migrate_disk_and_power_off, _roll_back)
    power_on = _guarded(driver.LibvirtDriver.power_on)
    reboot = _guarded(driver.LibvirtDriver.reboot)
    # Nova's own only says that the manager has to rebuild.
    rebuild = _guarded(driver.LibvirtDriver.rebuild, _refuse_rebuild)
    rescue = _guarded(driver.LibvirtDriver.rescue)
    resume = _guarded(driver.LibvirtDriver.resume, _roll_back)
    resume_state_on_host_boot = _guarded(
        driver.LibvirtDriver.resume_state_on_host_boot)
    spawn = _guarded(driver.LibvirtDriver.spawn)
    unrescue = _guarded(driver.LibvirtDriver.unrescue, _stay_rescued)

    def power_off(self, instance: objects.Instance, timeout: int = 0,
                  retry_interval: int = 0) -> None:
        """Power off a guest; recover it first if its disk is needed next.

        For rescue and shelve, no method of the driver is called earlier.
        """
        if instance.task_state in POWER_OFF_TASKS:
            self._ensure_recovered(None, instance, 'power_off', _power_off)
        super().power_off(  # type: ignore[misc]
            instance, timeout, retry_interval)

    def pause(self, instance: objects.Instance) -> None:
        """Pause a guest, which no merge resumes then."""
        with write_limit.PAUSES.keep_off(
                instance.uuid, block_commit.MAX_PAUSE):
            super().pause(instance)  # type: ignore[misc]

    def suspend(self, context: nova_context.RequestContext,
                instance: objects.Instance) -> None:
        """Suspend a guest, unless it is being recovered.

        Nova takes devices away from the guest, and does not give them back if
        libvirt then refuses: it saves no guest whose disk has a job.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.gate.no_recovery(instance.uuid))
                self._require_no_job(instance)
            except (exception.RecoveryInProgress,
                    exception.OperationRefused) as error:
                raise _roll_back(error, instance) from error
            except exception.SnapshotInProgress:
                LOG.debug('The snapshot in progress suspends the guest',
                          instance=instance)
            self.pending_unplugs.discard(instance.uuid)
            super().suspend(context, instance)  # type: ignore[misc]

    def _require_no_job(self, instance: objects.Instance) -> None:
        """Check that no interrupted snapshot has left a job of its disk.

        A job can outlast a recovery that has failed.

        :raises OperationRefused: there is one, or it is not known
        """
        try:
            for entry in journal.find_all(instance.uuid):
                guest = domain.find(
                    self._host, instance)  # type: ignore[attr-defined]
                if guest is not None and guest.is_active():
                    jobs.check_no_disk_job(
                        entry.disk.target, guest, instance)
        except (exception.DiskBusy, exception.JournalFailed) as error:
            LOG.warning('The guest is not suspended, because an interrupted '
                        'snapshot is not cleaned up: %s', error,
                        instance=instance)
            raise exception.OperationRefused(
                instance=instance.uuid, blocks_start=False) from error

    def _ensure_recovered(self, context: nova_context.RequestContext | None,
                          instance: objects.Instance, method: str,
                          refuse: Refuse) -> None:
        """Recover an instance before Nova's manager goes on.

        :param method: the name of the method that Nova has called
        """
        try:
            self.gate.ensure_recovered(context, instance)
            if method in LIVE_MOVES:
                self.gate.ensure_thawed(context, instance)
        except exception.NotRecovered as error:
            # Users see the error that Nova stores for the instance, and the
            # reason has paths of this host.
            LOG.error('%(method)s is refused, and nothing was changed: '
                      '%(error)s', {'method': method, 'error': error},
                      instance=instance)
            refused = exception.OperationRefused(
                instance=instance.uuid, blocks_start=error.blocks_start)
            # The manager raises it without the error that contains it.
            refused.__cause__ = error
            raise refuse(refused, instance) from error
        except exception.SnapshotInProgress as error:
            raise refuse(error, instance) from error
        # What Nova detaches from now on, such as for a live migration, is not
        # to be attached again.
        self.pending_unplugs.discard(instance.uuid)


def _power_off(error: exception.SnapextError,
               instance: objects.Instance) -> Exception:
    """Return the error of a power off before another operation."""
    if instance.task_state == task_states.RESCUING:
        state.put_back(instance.uuid, instance.vm_state)
    return ty.cast(Exception, error)


#: The names of the methods above whose first arguments are the context and
#: the instance.
GUARDED = tuple(name for name, value in vars(RecoveryGuards).items()
                if hasattr(value, '__wrapped__'))
