# SPDX-License-Identifier: Apache-2.0
"""Taking passthrough devices out of a running guest, and putting them back.

QEMU can't save the memory of a guest while it has host devices. What Nova
gives to guests of these are flavors' PCI devices, SR-IOV ports and mediated
devices; the guest's live definition tells which it has, and each goes back by
its own element of it: into the slot that the guest knows it in. The persistent
definition is not touched, so that whatever else goes wrong, the guest's next
start has them all.
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
from nova import thread_pool_factory
from nova.virt import event as virtevent
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import event as libvirtevent
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging
import tenacity

from nova_snapext import conf
from nova_snapext import exception
from nova_snapext.freeze import libvirtd
from nova_snapext import journal
from nova_snapext import plan as planning

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# What Nova's LibvirtGenericVIFDriver.get_config and its driver's
# _get_guest_pci_device and _guest_add_mdevs render. Macvtap ports
# (<interface type='direct'>) are QEMU's own devices, and stay.
PASSTHROUGH = etree.XPath(
    "./devices/hostdev[@type='pci' or @type='mdev'] | "
    "./devices/interface[@type='hostdev' or @type='vdpa']")

# Between attempts to attach, in seconds: libvirt has no event for a host
# device that somebody else lets go of.
ATTACH_PAUSE = 2


@dataclasses.dataclass(frozen=True)
class PassthroughDevice:
    """A host device of a guest, as Nova's functions for devices want it.

    :ivar name: tells it from all others of the host, in an operator's words
    :ivar alias: libvirt's name of it, while the guest has it
    :ivar xml: its element in the guest's definition
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
        domain, bus, slot, function = (
            int(address.get(part), 16)
            for part in ('domain', 'bus', 'slot', 'function'))
        name = f'PCI device {domain:04x}:{bus:02x}:{slot:02x}.{function:x}'
    mac = element.find('mac')
    return name if mac is None else f'{name} (port {mac.get("address")})'


class LateReleases:
    """Devices that a guest did not let go of in time, but still may.

    The request to let go of a device can't be taken back. Until the guest is
    shut off it may follow it, long after the snapshot was given up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[str, dict[str | None, Callable[[], None]]] = {}

    def expect(self, instance_uuid: str, alias: str | None,
               put_back: Callable[[], None]) -> None:
        """Have a device put back, should libvirt tell that it has gone."""
        with self._lock:
            self._expected.setdefault(instance_uuid, {})[alias] = put_back

    def forget(self, instance_uuid: str) -> None:
        """Expect nothing more of a guest."""
        with self._lock:
            self._expected.pop(instance_uuid, None)

    def notice(self, event: virtevent.InstanceEvent) -> None:
        """Take note of an event of any guest, without waiting for libvirt.

        This runs in the thread that libvirt's events come by.
        """
        if isinstance(event, libvirtevent.DeviceRemovedEvent):
            with self._lock:
                put_back = self._expected.get(event.uuid, {}).pop(
                    event.dev, None)
            if put_back is not None:
                thread_pool_factory.spawn(put_back)
        elif (isinstance(event, virtevent.LifecycleEvent) and
                event.transition == virtevent.EVENT_LIFECYCLE_STOPPED):
            self.forget(event.uuid)


class PassthroughDevices(journal.Resource):
    """The passthrough devices of a guest, for the time of one snapshot."""

    kind = 'passthrough devices'

    def __init__(self, driver: libvirt_driver.LibvirtDriver,
                 plan: planning.Plan):
        self._driver = driver
        self._host = driver._host
        self._late_releases: LateReleases = driver.late_releases
        self._instance = plan.instance
        self._guest = plan.guest
        self._detached: list[PassthroughDevice] = []
        self._lasting: frozenset[str] = frozenset()

    def record(self) -> dict[str, ty.Any]:
        return {'devices': [dataclasses.asdict(device)
                            for device in _live_devices(self._guest)],
                'lasting': sorted(_persistent_names(self._guest))}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                plan: planning.Plan, record: dict[str, ty.Any],
                ) -> PassthroughDevices:
        devices = cls(driver, plan)
        devices._detached = [PassthroughDevice(**device)
                             for device in record['devices']]
        devices._lasting = frozenset(record['lasting'])
        return devices

    def release(self) -> None:
        if self._detached:
            self._put_back(self._detached, self._lasting)

    def __str__(self) -> str:
        return _names(self._detached) or 'no passthrough device'

    def reason_to_stay(self) -> str | None:
        """Say why the guest can't let go of them; None when it may."""
        devices = _live_devices(self._guest)
        # Once asked, it would let go as soon as it runs again: when nobody
        # is there any more to put them back.
        if devices and self._guest.get_power_state(self._host) != (
                power_state.RUNNING):
            return (f'only a guest that runs can let go of its '
                    f'{_names(devices)}, and this one is paused or suspended')
        return None

    @contextlib.contextmanager
    def detached(self) -> Iterator[None]:
        """Hold them detached; on every way out they are attached again.

        A guest that is gone by then gets none, and one that is shut off gets
        them when it starts. What was taken out of the persistent definition
        meanwhile, as Nova does when a port is deleted, stays out. What the
        guest lets go of only after it was given up comes back then, unless
        nova-compute has been restarted.

        :raises DeviceDetachFailed: one stays in the guest; the others are
            attached again
        :raises libvirtError: the guest is gone
        :raises InstanceNotFound: likewise, as Nova is deleting the instance
        :raises ReleaseFailed: on leaving by no other error, which this would
            hide: some are not back; it says which, and what to do. It is
            logged in any case.
        """
        devices = _live_devices(self._guest)
        if not devices:
            yield
            return
        reason = self.reason_to_stay()
        if reason is not None:
            raise nova_exception.DeviceDetachFailed(
                device=_names(devices), reason=reason)
        self._late_releases.forget(self._instance.uuid)
        self._lasting = _persistent_names(self._guest)
        self._detached = devices
        try:
            for device in devices:
                self._detach(device)
            yield
        except BaseException:
            with contextlib.suppress(exception.ReleaseFailed):
                self._put_back(devices, self._lasting)
            raise
        self._put_back(devices, self._lasting)

    def _detach(self, device: PassthroughDevice) -> None:
        LOG.info('Detaching %s, for the guest\'s memory to be saved',
                 device.name, instance=self._instance)
        try:
            self._driver._detach_from_live_with_retry(
                self._guest, self._instance.uuid, device,
                functools.partial(_find, self._guest, device.name),
                device.name)
        except nova_exception.DeviceNotFound:
            LOG.info('%s has gone before it was detached', device.name,
                     instance=self._instance)
        except nova_exception.DeviceDetachFailed:
            self._expect_late_release(device)
            raise
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise
            self._expect_late_release(device)
            raise nova_exception.DeviceDetachFailed(
                device=device.name, reason=str(error)) from error
        except KeyError as error:
            # Nova's AsyncDeviceEventsHandler.wait, if cleanup_waiters came
            # first, which is part of the instance's deletion.
            raise nova_exception.InstanceNotFound(
                instance_id=self._instance.uuid) from error

    def _expect_late_release(self, device: PassthroughDevice) -> None:
        # Only if the persistent definition still has it then: nothing else
        # tells by that time whether it is to be there.
        self._late_releases.expect(
            self._instance.uuid, device.alias, functools.partial(
                self._put_back, [device], lasting=frozenset({device.name})))

    def _put_back(self, devices: list[PassthroughDevice],
                  lasting: frozenset[str]) -> None:
        """Attach what the guest lacks, until it has all that it had.

        :param lasting: names of those that its persistent definition had
        :raises ReleaseFailed: it still lacks some
        """
        reasons = tenacity.Retrying(
            retry=tenacity.retry_if_result(bool),
            stop=tenacity.stop_after_attempt(
                CONF.libvirt.device_detach_attempts),
            wait=tenacity.wait_fixed(ATTACH_PAUSE),
            retry_error_callback=_last_result,
        )(self._put_back_once, devices, lasting)
        if not reasons:
            self._detached = []
            return
        what = '; '.join(f'{name}: {reason}'
                         for name, reason in reasons.items())
        self._fail(f'the guest has not got back all of its devices: {what}. '
                   f'Attach each')

    def _put_back_once(self, devices: list[PassthroughDevice],
                       lasting: frozenset[str]) -> dict[str, str]:
        """Attach what the guest lacks.

        :returns: why it still lacks some, by their names
        """
        try:
            # That of the time before may be another domain, and its
            # connection closed by a restart of libvirtd.
            guest = self._host.get_guest(self._instance)
            if not guest.is_active():
                self._check_next_start(guest, devices)
                return {}
            reasons = self._attach(guest, _missing(guest, devices, lasting))
            return {device.name: reasons.get(device.name, 'libvirt gave none')
                    for device in _missing(guest, devices, lasting)}
        except nova_exception.InstanceNotFound:
            LOG.info('The guest is gone: no devices are attached to it',
                     instance=self._instance)
            return {}
        except libvirtd.UNREACHABLE as error:
            LOG.warning('The guest\'s devices could not be looked at: %s',
                        error, instance=self._instance)
            return {device.name: str(error) for device in devices}

    def _check_next_start(self, guest: libvirt_guest.Guest,
                          devices: Iterable[PassthroughDevice]) -> None:
        """Check that a guest that is shut off will start with its devices.

        :raises ReleaseFailed: it will not, as its saved memory comes first
        """
        if guest._domain.hasManagedSaveImage(0):
            self._fail(f'the guest is suspended, and has lost its '
                       f'{_names(devices)} when it is resumed. Attach each '
                       f'then')

    def _fail(self, reason: str) -> ty.NoReturn:
        domain = self._instance.name
        failed = exception.ReleaseFailed(
            instance=self._instance.uuid,
            reason=f'{reason} with "virsh attach-device {domain} FILE '
                   f'--live", where FILE holds its element out of "virsh '
                   f'dumpxml --inactive {domain}"; or reboot the instance '
                   f'hard')
        LOG.error('%s', failed, instance=self._instance)
        raise failed

    def _attach(self, guest: libvirt_guest.Guest,
                devices: Iterable[PassthroughDevice]) -> dict[str, str]:
        """Attach devices.

        :returns: why it did not work, by the names of those it did not with
        """
        reasons = {}
        for device in devices:
            try:
                guest.attach_device(device, live=True)
            except libvirt.libvirtError as error:
                LOG.warning('Attaching %(device)s again failed: %(error)s',
                            {'device': device.name, 'error': error},
                            instance=self._instance)
                reasons[device.name] = str(error)
            else:
                LOG.info('%s is attached again', device.name,
                         instance=self._instance)
        return reasons


def _last_result(state: tenacity.RetryCallState) -> dict[str, str]:
    return state.outcome.result() if state.outcome else {}


def _devices(definition: str) -> list[PassthroughDevice]:
    return [PassthroughDevice.parse(element)
            for element in PASSTHROUGH(etree.fromstring(definition))]


def _names(devices: Iterable[PassthroughDevice]) -> str:
    return ', '.join(device.name for device in devices)


def _live_devices(guest: libvirt_guest.Guest) -> list[PassthroughDevice]:
    """List what a running guest has; one that is shut off has none."""
    definition = guest.get_xml_desc()
    # Without an id it is the persistent definition: the guest is shut off.
    if etree.fromstring(definition).get('id') is None:
        return []
    return _devices(definition)


def _persistent_names(guest: libvirt_guest.Guest) -> frozenset[str]:
    return frozenset(device.name for device in _devices(
        guest.get_xml_desc(dump_inactive=True)))


def _find(guest: libvirt_guest.Guest, name: str) -> PassthroughDevice | None:
    return next((device for device in _live_devices(guest)
                 if device.name == name), None)


def _missing(guest: libvirt_guest.Guest, devices: Iterable[PassthroughDevice],
             lasting: frozenset[str]) -> list[PassthroughDevice]:
    """List the devices that a running guest should have, and has not."""
    removed = lasting - _persistent_names(guest)
    present = {device.name for device in _live_devices(guest)} | removed
    return [device for device in devices if device.name not in present]
