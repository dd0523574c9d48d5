# SPDX-License-Identifier: Apache-2.0
"""The processes that stand for nova-compute.

One takes a snapshot until the power goes, another one recovers after that.
They are forked from a process that has imported all this, see PowerTestCase.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import signal
import socket
import traceback

from devcloud import libvirtd as devcloud_libvirtd
from devcloud import wait
from nova import objects
from nova import privsep as nova_privsep
from nova.virt import fake
from oslo_serialization import jsonutils

from nova_snapext import conf
from nova_snapext import driver as snapext_driver
from nova_snapext import durable
from nova_snapext import exception
from nova_snapext.hypervisor import domain
from nova_snapext.hypervisor import privsep
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.recovery import recover
from tests.faults import points
from tests.functional import base
from tests.functional.power import filesystems
from tests.functional.power import steps

BEFORE, DURING, AFTER, LAST = 0x22, 0x33, 0x44, 0x55

# Seconds for one answer of QEMU's monitor.
MONITOR_TIMEOUT = 20


@dataclasses.dataclass(frozen=True)
class Guest:
    """A guest, as the victim and the test know it.

    :ivar monitor: path of a monitor of its QEMU that libvirt does not use
    """

    uuid: str
    name: str
    disk: planning.RootDisk
    monitor: pathlib.Path

    def is_alive(self):
        """Return whether the guest has a QEMU."""
        try:
            with Monitor(self.monitor):
                return True
        except (FileNotFoundError, ConnectionError):
            return False

    @property
    def instance(self):
        instance = base.FakeInstance(self.name)
        instance.uuid = self.uuid
        return instance

    def write(self, pattern):
        """Overwrite the whole disk as the guest, and flush.

        :returns: whether it is acknowledged; a guest that does not run does
            not write
        """
        try:
            with Monitor(self.monitor) as monitor:
                if not monitor.run('query-status')['running']:
                    return False
                for command in (f'write -q -P {pattern} 0 {base.DISK_SIZE}',
                                'flush'):
                    if output := monitor.qemu_io(command):
                        raise AssertionError(output)
                return True
        except (FileNotFoundError, ConnectionError):
            return False


class Monitor:
    """QMP: https://www.qemu.org/docs/master/interop/qmp-spec.html."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(MONITOR_TIMEOUT)
            sock.connect(str(self._path))
            self._file = stack.enter_context(sock.makefile('rw'))
            if not self._file.readline():  # the greeting
                raise ConnectionResetError()
            self.run('qmp_capabilities')
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info):
        self._stack.close()

    def run(self, command, **arguments):
        self._file.write(jsonutils.dumps(
            {'execute': command, 'arguments': arguments}))
        self._file.flush()
        while line := self._file.readline():
            answer = jsonutils.loads(line)
            if 'event' not in answer:
                return answer['return']
        raise ConnectionResetError()

    def qemu_io(self, command):
        """Have the root disk's device do something, as for the guest."""
        return self.run('human-monitor-command', **{'command-line': (
            f'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend '
            f'"{command}"')})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The configuration of nova-compute, as far as it matters.

    :ivar options: group, name and value of each
    :ivar filesystems: all file systems, which lose power together
    :ivar boot_id: another one after each loss of power
    :ivar libvirtd: the private libvirtd
    :ivar log: path of the log of all processes
    """

    options: tuple
    libvirtd: devcloud_libvirtd.Libvirtd
    boot_id: str
    filesystems: tuple[filesystems.Filesystem, ...]
    log: pathlib.Path

    def create_driver(self):
        """Configure this process as nova-compute, and return its driver."""
        logging.getLogger().addHandler(logging.FileHandler(self.log))
        logging.getLogger('nova_snapext').setLevel(logging.DEBUG)
        for context in (privsep.context, nova_privsep.sys_admin_pctxt):
            context.set_client_mode(False)
        durable.boot_id = lambda: self.boot_id
        objects.register_all()
        for group, name, value in self.options:
            conf.CONF.set_override(name, value, group=group)
        driver = snapext_driver.SnapextDriver(fake.FakeVirtAPI())
        driver._host.initialize()
        return driver


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A recovery that was refused.

    :ivar text: what the operator reads
    :ivar blocks_start: whether the guest must not be started
    """

    text: str
    blocks_start: bool


@dataclasses.dataclass(frozen=True)
class PowerLoss:
    """When and how the power goes.

    :ivar strategy: name of the snapshot's strategy
    :ivar point: the moment
    :ivar synced: which file systems have just written their logs
    :ivar writes: whether the guest writes once more just before
    :ivar may_pause: whether the guest may be paused for the pivot
    """

    strategy: str
    point: points.Point
    synced: tuple[str, ...] = ()
    writes: bool = False
    may_pause: bool = True


class Victim:
    """Takes a snapshot until the power goes.

    :param pipe: gets each pattern that the guest's disk has acknowledged, and
        an error's text
    """

    def __init__(self, settings, guest, loss, pipe):
        self._settings = settings
        self._guest = guest
        self._loss = loss
        self._pipe = pipe
        self._calls = 0

    def write(self, pattern):
        if self._guest.write(pattern):
            self._pipe.send(pattern)

    def lose_power(self):
        """Switch the power off: nothing after it happens."""
        if self._loss.writes:
            self.write(LAST)
        for filesystem in self._settings.filesystems:
            if filesystem.name in self._loss.synced:
                filesystem.sync()
        for filesystem in self._settings.filesystems:
            filesystem.lose_power()
        self.end()

    def end(self):
        self._pipe.close()
        os.kill(os.getpid(), signal.SIGKILL)

    def run(self):
        driver = self._settings.create_driver()
        if not self._loss.may_pause:
            conf.CONF.set_override('merge_min_write_kbps', 0, group='snapext')
        plan = plan_of(driver, self._guest)
        self.prepare()
        wrap(self._loss.point.function, self._loss.point.moment, self.reach)
        self.act(driver, plan)
        raise AssertionError('it ended without reaching the point')

    def prepare(self):
        """Wrap functions, before the one at which the power goes."""
        # The guest writes on as soon as it is on its disk again and runs.
        for function in (steps.COMMIT, steps.RESUMED):
            wrap(function, points.AFTER, lambda: self.write(AFTER))

    def act(self, driver, plan):
        with driver.strategies[self._loss.strategy].freeze(plan):
            self.write(DURING)

    def reach(self):
        self._calls += 1
        if self._calls != self._loss.point.nth:
            return
        try:
            self.lose_power()
        except BaseException:
            # The snapshot must not go on.
            self._pipe.send(traceback.format_exc())
            self.end()


class KilledVictim(Victim):
    """nova-compute alone is killed; the guest runs on."""

    def lose_power(self):
        self.end()


class RecoveringVictim(Victim):
    """Recovers a snapshot until the power goes."""

    def act(self, driver, plan):
        recover.recover_entry(driver, journal.find(self._guest.uuid),
                              instance=plan.instance)


class VictimWithoutLibvirtd(Victim):
    """libvirtd dies as soon as QEMU is told to pivot.

    Then QEMU pivots, the guest writes on unless it is paused, and the power
    goes.
    """

    def prepare(self):
        wrap(steps.PIVOT, points.AFTER, self.kill_libvirtd)

    def kill_libvirtd(self):
        self._settings.libvirtd.kill()
        wait.until('the pivot', self.has_pivoted, MONITOR_TIMEOUT,
                   interval=0.05)
        self.write(AFTER)

    def has_pivoted(self):
        with Monitor(self._guest.monitor) as monitor:
            return [device['inserted']['file'] for device
                    in monitor.run('query-block')] == [self._guest.disk.path]


class VictimOfGuest(Victim):
    """The guest shuts itself off as soon as it runs on its disk again."""

    def prepare(self):
        super().prepare()
        wrap(steps.RESUMED if self._loss.may_pause else steps.COMMIT,
             points.AFTER, self.shut_off)

    def shut_off(self):
        with Monitor(self._guest.monitor) as monitor, \
                contextlib.suppress(ConnectionError):
            monitor.run('quit')
        wait.until('the end of QEMU', lambda: not self._guest.is_alive(),
                   MONITOR_TIMEOUT, interval=0.05)


class VictimWithFullJournal(Victim):
    """The journal's file system is full as soon as the commit begins."""

    def prepare(self):
        super().prepare()
        wrap(steps.COMMIT, points.BEFORE, self.fill)

    def fill(self):
        directory = pathlib.Path(conf.CONF.snapext.journal_directory)
        with open(directory.parent / 'full', 'wb', buffering=0) as file, \
                contextlib.suppress(OSError):
            for size in (1 << 20, 1):
                while file.write(bytes(size)):
                    pass


def snapshot(kind, settings, guest, loss, pipe):
    """Run a victim in this process."""
    with _reported(pipe):
        kind(settings, guest, loss, pipe).run()


def recover_all(settings, guest, pipe):
    """Recover as when nova-compute starts, and when the guest is started."""
    with _reported(pipe):
        driver = settings.create_driver()
        journal.finish_writes()
        journal.set_aside_unreadable()
        try:
            entry = journal.find(guest.uuid)
            if entry is not None:
                recover.recover_entry(driver, entry, instance=guest.instance)
            recover.ensure_recovered(driver, None, guest.instance)
            pipe.send(None)
        except exception.NotRecovered as error:
            pipe.send(Refusal(str(error), error.blocks_start))


@contextlib.contextmanager
def _reported(pipe):
    """Send an error, and end the process."""
    try:
        yield
    except BaseException:
        pipe.send(traceback.format_exc())
    finally:
        pipe.close()
        os._exit(0)  # Nova's threads for libvirt's events never end


def plan_of(driver, guest):
    """Return the plan of a snapshot."""
    instance = guest.instance
    found = domain.get(driver._host, instance)
    return planning.Plan(
        context=None, instance=instance, guest=found,
        running=bool(found.is_active()), disk=guest.disk,
        image_id=base.IMAGE_ID, image_format='qcow2', image_properties={},
        metadata={})


def wrap(function, moment, act):
    """Call a function before or after each call of another one."""
    owner, name = steps.owner_and_name(function)
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args, **kwargs):
        if moment == points.BEFORE:
            act()
        result = original(*args, **kwargs)
        if moment == points.AFTER:
            act()
        return result

    setattr(owner, name, call)
