# SPDX-License-Identifier: Apache-2.0
"""A guest with host devices, on Nova's libvirt fixture."""

import copy

from lxml import etree
from nova.tests.fixtures import libvirt as fakelibvirt

from tests.unit import base

DOMAIN = """
<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid>
  <memory>1</memory><vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os>
  <devices/>
</domain>
"""


def source_of(device):
    return etree.tostring(device.find('source'), method='c14n2',
                          strip_text=True)


class Domain(fakelibvirt.Domain):
    """A domain with any devices; Nova's fixture knows few of them.

    As in libvirt, a detach is only a request. The guest releases the device,
    or does not, in answer().

    :ivar answers: by the device's alias: True if the guest releases it, False
        if it refuses, None if it ignores the request
    :ivar attach_errors: errors of the next calls that attach a device
    """

    def __init__(self, connection, instance, devices):
        super().__init__(connection, DOMAIN.format(
            name=instance.name, uuid=instance.uuid))
        self._state = fakelibvirt.VIR_DOMAIN_RUNNING
        self.live = [etree.fromstring(xml) for xml in devices]
        self.persistent = []
        for device in copy.deepcopy(self.live):
            device.remove(device.find('alias'))
            self.persistent.append(device)
        self.requests = []
        self.answers = {}
        self.attach_errors = []
        self.calls = []
        connection._vms[instance.name] = self

    def jobStats(self, flags=0):
        # That of an older Nova always has a job.
        return {'type': fakelibvirt.VIR_DOMAIN_JOB_NONE}

    def XMLDesc(self, flags):
        definition = etree.fromstring(DOMAIN.format(
            name=self.name(), uuid=self.UUIDString()))
        inactive = (flags & fakelibvirt.VIR_DOMAIN_XML_INACTIVE or
                    self._state == fakelibvirt.VIR_DOMAIN_SHUTOFF)
        if not inactive:
            definition.set('id', '1')
        definition.find('devices').extend(copy.deepcopy(
            self.persistent if inactive else self.live))
        return etree.tostring(definition, encoding='unicode')

    def destroy(self):
        self._state = fakelibvirt.VIR_DOMAIN_SHUTOFF

    def managedSave(self, flags):
        self.destroy()
        self._has_saved_state = True

    def undefine(self):
        del self._connection._vms[self.name()]

    def find(self, device):
        return next((other for other in self.live
                     if source_of(other) == source_of(device)), None)

    def detachDeviceFlags(self, xml, flags):
        self.calls.append(('detach', xml, flags))
        device = self.find(etree.fromstring(xml))
        if device is None:
            raise base.libvirt_error(fakelibvirt.VIR_ERR_DEVICE_MISSING)
        self.requests.append(device)

    def attachDeviceFlags(self, xml, flags):
        self.calls.append(('attach', xml, flags))
        error = self.attach_errors.pop(0) if self.attach_errors else None
        if error:
            raise error
        device = etree.fromstring(xml)
        if self.find(device) is not None:
            raise base.libvirt_error(fakelibvirt.VIR_ERR_OPERATION_FAILED)
        self.live.append(device)

    def answer(self):
        """Answer all pending requests, as the guest."""
        requests, self.requests = self.requests, []
        for device in requests:
            answer = self.answers.get(device.find('alias').get('name'), True)
            if answer is not None:
                self.end_request(device, answer)

    def end_request(self, device, released):
        """End a request: the device is released, or stays."""
        if released:
            self.live.remove(device)
        event = (fakelibvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED
                 if released else
                 fakelibvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED)
        callback, opaque = self._connection._event_callbacks[event]
        callback(self._connection, self, device.find('alias').get('name'),
                 opaque)
