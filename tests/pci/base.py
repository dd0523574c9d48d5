# SPDX-License-Identifier: Apache-2.0
"""A guest that has functions of a card that Linux takes for a real one."""

import pathlib
import socket
import uuid

from devcloud import wait
import libvirt
from lxml import etree
from oslo_config import fixture as config_fixture

from nova_snapext import conf
from nova_snapext import plan as planning
from tests.functional import base

#: Created by tools/pci-rig for the guest.
BOOT = pathlib.Path('/rig/guest')

#: Seconds for the guest to boot, in one emulation inside another, and to
#: answer.
BOOT_TIMEOUT, ANSWER_TIMEOUT = 300, 60

#: The addresses of the two functions. The first is set on the card, the second
#: by libvirt.
MACS = ('52:54:00:00:00:01', '52:54:00:00:00:02')

KERNEL = f"""
<kernel>{BOOT}/vmlinux</kernel>
<initrd>{BOOT}/initramfs</initrd>
<cmdline>console=ttyS0 quiet mitigations=off panic=-1</cmdline>
"""

# Nova gives a guest a function in two ways: for the flavor or for a port of
# the type direct-physical, and for a port of the type direct.
DOMAIN = """
<domain type='qemu'>
  <name>{instance.name}</name>
  <uuid>{instance.uuid}</uuid>
  <memory unit='MiB'>96</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/><apic/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{disk.format}'/>
      <source file='{disk.path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='unix'><source mode='bind' path='{console}'/></serial>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address {functions[0]}/></source>
    </hostdev>
    <interface type='hostdev' managed='yes'>
      <mac address='{mac}'/>
      <source><address type='pci' {functions[1]}/></source>
    </interface>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def functions():
    """Yield the card's virtual functions, as libvirt's address attributes."""
    found = pathlib.Path('/sys/bus/pci/drivers/igb').glob('*/virtfn*')
    for link in sorted(found):
        domain, bus, rest = link.resolve().name.split(':')
        slot, function = rest.split('.')
        yield (f"domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' "
               f"function='0x{function}'")


class PassthroughTestCase(base.GuestTestCase):
    """One guest with both functions for all tests, because it boots slowly.

    :cvar BOOT: libvirt's elements of the kernel to boot; empty for none
    """

    BOOT = KERNEL

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (card,) = pathlib.Path('/sys/bus/pci/drivers/igb').glob('*/net/*')
        base.run('ip', 'link', 'set', card.name, 'vf', '0', 'mac', MACS[0])
        instance = base.FakeInstance('guest')
        cls.instance = instance
        (cls.directory / instance.uuid).mkdir()
        cls.console = cls.directory / 'console'
        cls.disk = planning.RootDisk(
            'vda', 'file', str(cls.directory / 'root.qcow2'), 'qcow2')
        base.run('qemu-img', 'create', '-q', '-f', 'qcow2', cls.disk.path,
                 str(base.DISK_SIZE))
        cls.domain = cls.host.get_connection().defineXML(DOMAIN.format(
            instance=instance, disk=cls.disk, console=cls.console,
            boot=cls.BOOT, functions=list(functions()), mac=MACS[1]))
        cls.addClassCleanup(cls.remove, instance)
        cls.is_dirty = True

    def setUp(self):
        super().setUp()
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            instances_path=str(self.directory))
        if self.is_dirty:
            self.power_cycle()
        self.addOnException(self.mark_dirty)
        self.plan = self.plan_of(self.instance, self.disk)
        self.before = self.devices()
        self.removed = []
        self.record_removals()

    def power_cycle(self):
        """Start the guest from its persistent definition."""
        if self.domain.isActive():
            self.domain.destroy()
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_FORCE_BOOT)
        if self.BOOT:
            self.await_line('READY', BOOT_TIMEOUT)
        type(self).is_dirty = False

    def mark_dirty(self, _exc_info):
        """Start the guest again before the next test, after a failed one."""
        type(self).is_dirty = True

    def record_removals(self):
        """Record the names of the devices whose removal libvirt reports."""
        connection = self.domain.connect()
        callback = connection.domainEventRegisterAny(
            self.domain, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            lambda _connection, _domain, alias, _:
            self.removed.append(alias), None)
        self.addCleanup(connection.domainEventDeregisterAny, callback)

    def await_line(self, beginning, timeout, question=None):
        """Wait for a line on the guest's console.

        :param beginning: beginning of the line
        :param timeout: in seconds
        :param question: text to send to the guest first
        :returns: the rest of the line
        """
        with socket.socket(socket.AF_UNIX) as console:
            console.settimeout(timeout)
            console.connect(str(self.console))
            if question:
                console.sendall(f'{question}\n'.encode())
            with console.makefile('r', errors='replace') as lines:
                for line in lines:
                    if line.startswith(beginning):
                        return line.removeprefix(beginning).strip()
        raise AssertionError(f'the console was closed before {beginning!r}')

    def working_functions(self):
        """Return the addresses of the functions that the guest can use."""
        question = uuid.uuid4().hex
        answer = self.await_line(f'ANSWER {question}', ANSWER_TIMEOUT,
                                 question)
        return sorted(answer.split())

    def devices(self):
        """Return the guest's passthrough devices, as libvirt defines them."""
        devices = etree.fromstring(self.domain.XMLDesc()).xpath(
            './devices/hostdev | ./devices/interface')
        for device in devices:
            # A name of libvirt, which the guest does not see.
            device.remove(device.find('alias'))
        return sorted(etree.tostring(device, method='c14n').decode()
                      for device in devices)

    def assert_unchanged(self):
        """Check that the guest runs, with the same devices as before."""
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.domain.state()[0])
        self.assertEqual(self.before, self.devices())
        if self.BOOT:
            # The guest finds a device after libvirt has attached it.
            wait.until('both functions work in the guest', lambda:
                       sorted(MACS) == self.working_functions(),
                       ANSWER_TIMEOUT)
