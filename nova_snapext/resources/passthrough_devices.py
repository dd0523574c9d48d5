# SPDX-License-Identifier: Apache-2.0
"""Passthrough devices: detached from a running guest, and attached again.

QEMU can't save the memory of a guest that has host devices. Nova gives guests
three kinds of them: flavors' PCI devices, SR-IOV ports and mediated devices.
The guest's live definition lists them. Each is attached again by its own
element of this definition, in the slot where the guest knows it. The
persistent definition is not changed: whatever else fails, the guest has all
its devices after its next start.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import threading
import typing as ty

import libvirt
from lxml import etree
from nova.compute import power_state
from nova import exception as nova_exception
from nova.virt import event as virtevent
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import event as libvirtevent
from oslo_log import log as logging
import tenacity

from nova_snapext import compat
from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.hypervisor import connection
from nova_snapext.hypervisor import domain
from nova_snapext import journal
from nova_snapext.journal import schema
from nova_snapext import plan as planning
from nova_snapext import reason as reasons

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# The elements that Nova's LibvirtGenericVIFDriver.get_config and its driver's
# _get_guest_pci_device and _guest_add_mdevs render. Macvtap ports
# (<interface type='direct'>) are QEMU's own devices, and stay attached.
PASSTHROUGH = etree.XPath(
    "./devices/hostdev[@type='pci' or @type='mdev'] | "
    "./devices/interface[@type='hostdev' or @type='vdpa']")

# Seconds between attempts to attach a device: libvirt has no event for a host
# device that another guest or program releases.
ATTACH_RETRY_INTERVAL = 2


@dataclasses.dataclass(frozen=True)
class PassthroughDevice:
    """A host device of a guest, in the form that Nova's functions expect.

    :ivar name: unique on this host, and known to operators
    :ivar alias: libvirt's name of the device, while it is attached
    :ivar xml: the device's element in the guest's definition
    """

    name: str
    alias: str | None
    xml: str

    @classmethod
    def parse(cls, element: etree._Element) -> PassthroughDevice:
        alias = element.find('alias')
        return cls(
            name=_name(element),
            alias=None if alias is None else alias.get('name'),
            xml=etree.tostring(element, encoding='unicode', with_tail=False))

    @classmethod
    def restore(cls, name: str, alias: str | None,
                xml: str) -> PassthroughDevice:
        """Return a device from its record.

        :raises JournalRecordError: it is no passthrough device
        """
        try:
            definition = etree.Element('domain')
            etree.SubElement(definition, 'devices').append(
                etree.fromstring(xml))
            [element] = PASSTHROUGH(definition)
            is_named = _name(element) == name
        except (etree.XMLSyntaxError, ValueError, TypeError, AttributeError):
            is_named = False
        if not is_named:
            raise exception.JournalRecordError(
                reason=f'the journal names {name!r}, and its definition is '
                       f'not that of such a device: {xml!r}')
        return cls(name, alias, xml)

    def to_xml(self) -> str:
        return self.xml


def _name(element: etree._Element) -> str:
    source = element.find('source')
    address = source.find('address')
    if address is None:
        name = f'vDPA device {source.get("dev")}'
    elif address.get('uuid'):
        name = f'mediated device {address.get("uuid")}'
    else:
        domain_number, bus, slot, function = (
            int(address.get(part), 16)
            for part in ('domain', 'bus', 'slot', 'function'))
        name = (f'PCI device {domain_number:04x}:{bus:02x}:{slot:02x}.'
                f'{function:x}')
    mac = element.find('mac')
    return name if mac is None else f'{name} (port {mac.get("address")})'


class PendingUnplugs:
    """Devices that guests did not release in time, but may still release.

    A request to unplug a device can't be cancelled. Until the guest is shut
    off it may follow the request, long after its snapshot has failed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[str, dict[str | None, Callable[[], None]]] = {}

    def expect(self, instance_uuid: str, alias: str | None,
               attach_again: Callable[[], None]) -> None:
        """Attach a device again if libvirt reports its removal.

        :param alias: libvirt's name of the device
        :param attach_again: runs in a thread of its own
        """
        with self._lock:
            self._expected.setdefault(instance_uuid, {})[alias] = attach_again

    def discard(self, instance_uuid: str) -> None:
        """Expect no removals from a guest any more."""
        with self._lock:
            self._expected.pop(instance_uuid, None)

    def discard_device(self, instance_uuid: str, alias: str | None) -> None:
        """Expect no removal of one device any more."""
        with self._lock:
            self._expected.get(instance_uuid, {}).pop(alias, None)

    def on_event(self, event: virtevent.InstanceEvent) -> None:
        """Handle an event of any guest, without a call to libvirt.

        It runs in the thread that dispatches libvirt's events.
        """
        if isinstance(event, libvirtevent.DeviceRemovedEvent):
            with self._lock:
                attach_again = self._expected.get(event.uuid, {}).pop(
                    event.dev, None)
            if attach_again is not None:
                LOG.debug('Guest %(guest)s has released device %(device)s '
                          'late: it is attached again',
                          {'guest': event.uuid, 'device': event.dev})
                compat.spawn(attach_again)
        elif (isinstance(event, virtevent.LifecycleEvent) and
                event.transition == virtevent.EVENT_LIFECYCLE_STOPPED):
            self.discard(event.uuid)


class PassthroughDevices(journal.Resource):
    """The passthrough devices of a guest, detached for one snapshot.

    Recorded: the devices' elements in the live definition, and the names of
    those in the persistent one. Restored: as recorded. Released: the guest
    gets all devices that it lacks.
    """

    kind = 'passthrough devices'
    record_schema = schema.object_of(
        devices=schema.list_of(schema.object_of(
            name=schema.TEXT, alias=schema.OPTIONAL_TEXT, xml=schema.TEXT)),
        persistent=schema.list_of(schema.TEXT))

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 target: planning.Target):
        self._driver = driver
        self._host = driver._host
        self._pending_unplugs: PendingUnplugs = driver.pending_unplugs
        self._instance = target.instance
        self._captured: list[PassthroughDevice] | None = None
        self._persistent: frozenset[str] = frozenset()
        # The guest may lack them.
        self._detached: list[PassthroughDevice] = []

    def record(self) -> dict[str, ty.Any]:
        return {'devices': [dataclasses.asdict(device)
                            for device in self._devices()],
                'persistent': sorted(self._persistent)}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> PassthroughDevices:
        devices = cls(driver, target)
        devices._captured = [PassthroughDevice.restore(**device)
                             for device in record['devices']]
        devices._detached = devices._captured
        devices._persistent = frozenset(record['persistent'])
        return devices

    def release(self) -> None:
        if self._detached:
            self._attach_missing(self._detached, self._persistent)

    def __str__(self) -> str:
        return _names(self._detached) or 'no passthrough device'

    def capture_state(self, guest: domain.Domain) -> None:
        """Remember the devices that the guest has now."""
        self._captured = _live_devices(guest)
        self._persistent = (_persistent_names(guest) if self._captured
                            else frozenset())

    @property
    def exist(self) -> bool:
        """Whether the guest had any when its state was captured."""
        return bool(self._devices())

    def unsupported_reason(self, guest: domain.Domain) -> str | None:
        """Return why the guest can't release its devices; None if it can."""
        devices = _live_devices(guest)
        # A paused guest would follow the request as soon as it runs again:
        # then nothing would attach the devices again.
        if devices and guest.get_power_state(self._host) != (
                power_state.RUNNING):
            return reasons.UserReason(
                f'only a running guest can release its {_names(devices)}, '
                f'and this one is paused or suspended',
                'only a running guest can release its passthrough devices, '
                'and this one is paused or suspended')
        return None

    @contextlib.contextmanager
    def detached(self, guest: domain.Domain) -> Iterator[None]:
        """Detach the devices, and attach them again on every exit.

        Call :meth:`capture_state` before. A guest that is gone on exit gets
        none, and a guest that is shut off gets them when it starts. Devices
        that were removed from the persistent definition during the context
        stay removed, such as a port that was deleted. A device that the
        guest releases only after a failure is attached again then, unless
        nova-compute has restarted.

        :raises DeviceDetachFailed: a device stays in the guest; the others
            are attached again
        :raises libvirtError: the guest is gone
        :raises InstanceNotFound: the same, because Nova deletes the instance
        :raises ReleaseFailed: on exit, unless this would hide another error:
            some devices are not back. It says which, and what to do, and is
            logged in any case.
        """
        devices = self._devices()
        if not devices:
            yield
            return
        reason = self.unsupported_reason(guest)
        if reason is not None:
            raise nova_exception.DeviceDetachFailed(
                device=_names(devices), reason=reason)
        self._pending_unplugs.discard(self._instance.uuid)
        self._detached = devices
        try:
            for device in devices:
                self._detach(device, guest)
            yield
        except BaseException:
            with contextlib.suppress(exception.ReleaseFailed):
                self._attach_missing(devices, self._persistent)
            raise
        self._attach_missing(devices, self._persistent)

    def detached_by_nova(self) -> None:
        """Note that Nova detaches them, until :meth:`release`.

        Call :meth:`capture_state` before.
        """
        self._detached = self._devices()

    def expect_late_unplugs(self) -> None:
        """Attach devices again that the guest releases from now on."""
        for device in self._devices():
            self._expect_late_unplug(device)

    def _devices(self) -> list[PassthroughDevice]:
        if self._captured is None:
            raise RuntimeError('capture_state() has not been called')
        return self._captured

    def _detach(self, device: PassthroughDevice,
                guest: domain.Domain) -> None:
        LOG.info('Detaching %s, because the guest\'s memory is to be saved',
                 device.name, instance=self._instance)
        try:
            self._driver._detach_from_live_with_retry(
                guest, self._instance.uuid, device,
                functools.partial(_find, guest, device.name),
                device.name)
        except nova_exception.DeviceNotFound:
            LOG.info('%s has left the guest before it was detached',
                     device.name, instance=self._instance)
        except nova_exception.DeviceDetachFailed:
            self._expect_late_unplug(device)
            raise
        except libvirt.libvirtError as error:
            if domain.is_gone(error):
                raise
            self._expect_late_unplug(device)
            raise nova_exception.DeviceDetachFailed(
                device=device.name, reason=str(error)) from error
        except KeyError as error:
            # From Nova's AsyncDeviceEventsHandler.wait, if cleanup_waiters
            # ran before it: a part of the instance's deletion.
            raise nova_exception.InstanceNotFound(
                instance_id=self._instance.uuid) from error
        else:
            LOG.debug('%s is detached', device.name, instance=self._instance)

    def _expect_late_unplug(self, device: PassthroughDevice) -> None:
        # Attach it then only if the persistent definition still has it:
        # nothing else says at that time whether the guest should have it.
        self._pending_unplugs.expect(
            self._instance.uuid, device.alias, functools.partial(
                self._attach_missing, [device], frozenset({device.name})))

    def _attach_missing(self, devices: list[PassthroughDevice],
                        persistent: frozenset[str]) -> None:
        """Attach the devices that the guest lacks, until it has them all.

        :param persistent: names of the devices that the persistent
            definition had
        :raises ReleaseFailed: the guest still lacks some
        """
        reasons = tenacity.Retrying(
            retry=tenacity.retry_if_result(bool),
            stop=tenacity.stop_after_attempt(
                CONF.libvirt.device_detach_attempts),
            wait=tenacity.wait_fixed(ATTACH_RETRY_INTERVAL),
            retry_error_callback=_last_result,
        )(self._attach_missing_once, devices, persistent)
        if not reasons:
            self._detached = []
            return
        missing = '; '.join(f'{name}: {reason}'
                            for name, reason in reasons.items())
        self._fail(f'the guest does not have all of its devices again: '
                   f'{missing}. Attach each')

    def _attach_missing_once(
        self, devices: list[PassthroughDevice], persistent: frozenset[str],
    ) -> dict[str, str]:
        """Attach the devices that the guest lacks.

        :returns: why it still lacks some, by their names
        """
        try:
            # The guest may have another domain by now, and libvirtd may have
            # restarted.
            guest = domain.get(self._host, self._instance)
            if not guest.is_active():
                self._check_next_start(guest, devices)
                return {}
            reasons = self._attach(guest, _missing(guest, devices, persistent))
            return {device.name: reasons.get(device.name,
                                             'libvirt reported no error')
                    for device in _missing(guest, devices, persistent)}
        except nova_exception.InstanceNotFound:
            LOG.info('The guest is gone: no devices are attached to it',
                     instance=self._instance)
            return {}
        except connection.UNREACHABLE as error:
            LOG.warning('Could not read the guest\'s devices: %s', error,
                        instance=self._instance)
            return {device.name: str(error) for device in devices}

    def _check_next_start(self, guest: domain.Domain,
                          devices: Iterable[PassthroughDevice]) -> None:
        """Check that a guest that is shut off will start with its devices.

        :raises ReleaseFailed: it will not: it starts from its saved memory
        """
        if guest.has_managed_save():
            self._fail(f'the guest is suspended, and will lack its '
                       f'{_names(devices)} when it is resumed. Attach each '
                       f'then')

    def _fail(self, reason: str) -> ty.NoReturn:
        name = self._instance.name
        failed = exception.ReleaseFailed(
            instance=self._instance.uuid,
            reason=f'{reason} with "virsh attach-device {name} FILE '
                   f'--live", where FILE contains its element from "virsh '
                   f'dumpxml --inactive {name}"; or reboot the instance '
                   f'hard')
        LOG.error('%s', failed, instance=self._instance)
        raise failed

    def _attach(self, guest: domain.Domain,
                devices: Iterable[PassthroughDevice]) -> dict[str, str]:
        """Attach devices.

        :returns: why some could not be attached, by their names
        """
        reasons = {}
        for device in devices:
            try:
                guest.attach_device(device, live=True)
            except libvirt.libvirtError as error:
                LOG.warning('Could not attach %(device)s again: %(error)s',
                            {'device': device.name, 'error': error},
                            instance=self._instance)
                reasons[device.name] = str(error)
            else:
                # The guest has followed the request, and the next one may be
                # Nova's.
                self._pending_unplugs.discard_device(
                    self._instance.uuid, device.alias)
                LOG.info('%s is attached again', device.name,
                         instance=self._instance)
        return reasons


def _last_result(state: tenacity.RetryCallState) -> dict[str, str]:
    return state.outcome.result() if state.outcome else {}


def _devices_in(definition: str) -> list[PassthroughDevice]:
    return [PassthroughDevice.parse(element)
            for element in PASSTHROUGH(etree.fromstring(definition))]


def _names(devices: Iterable[PassthroughDevice]) -> str:
    return ', '.join(device.name for device in devices)


def _live_devices(guest: domain.Domain) -> list[PassthroughDevice]:
    """Return the devices of a running guest; none if it is shut off."""
    definition = guest.get_xml_desc()
    # Without an id it is the persistent definition: the guest is shut off.
    if etree.fromstring(definition).get('id') is None:
        return []
    return _devices_in(definition)


def _persistent_names(guest: domain.Domain) -> frozenset[str]:
    return frozenset(device.name for device in _devices_in(
        guest.get_xml_desc(dump_inactive=True)))


def _find(guest: domain.Domain, name: str) -> PassthroughDevice | None:
    return next((device for device in _live_devices(guest)
                 if device.name == name), None)


def _missing(guest: domain.Domain, devices: Iterable[PassthroughDevice],
             persistent: frozenset[str]) -> list[PassthroughDevice]:
    """Return the devices that a running guest should have and lacks."""
    removed = persistent - _persistent_names(guest)
    present = {device.name for device in _live_devices(guest)} | removed
    return [device for device in devices if device.name not in present]
