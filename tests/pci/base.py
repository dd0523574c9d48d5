# SPDX-License-Identifier: Apache-2.0
"""A guest that has functions of a real card, as far as Linux can tell."""

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

#: What tools/pci-rig has made for the guest.
BOOT = pathlib.Path('/rig/guest')

#: Seconds that the guest may take to boot, in one emulation within another,
#: and to answer.
BOOT_TIMEOUT, ANSWER_TIMEOUT = 300, 60

#: The address of the first function, set on the card, and of the second,
#: which libvirt sets.
MACS = ('52:54:00:00:00:01', '52:54:00:00:00:02')

KERNEL = f"""
<kernel>{BOOT}/vmlinux</kernel>
<initrd>{BOOT}/initramfs</initrd>
<cmdline>console=ttyS0 quiet mitigations=off panic=-1</cmdline>
"""

# Both ways in which Nova gives a function to a guest: of the flavor, or with
# a port of the type direct-physical; and with a port of the type direct.
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
    """The card's virtual functions, as attributes of libvirt's address."""
    found = pathlib.Path('/sys/bus/pci/drivers/igb').glob('*/virtfn*')
    for link in sorted(found):
        domain, bus, rest = link.resolve().name.split(':')
        slot, function = rest.split('.')
        yield (f"domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' "
               f"function='0x{function}'")


class PassthroughTestCase(base.GuestTestCase):
    """One guest with both functions, for all tests: it takes long to boot.

    :cvar BOOT: what it boots; its firmware finds nothing else
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
        cls.spoilt = True

    def setUp(self):
        super().setUp()
        self.useFixture(config_fixture.Config(conf.CONF)).config(
            instances_path=str(self.directory))
        if self.spoilt:
            self.power_cycle()
        self.addOnException(self.spoil)
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
        type(self).spoilt = False

    def spoil(self, _exc_info):
        """A test that fails may leave the guest as no other expects it."""
        type(self).spoilt = True

    def record_removals(self):
        """Keep the names of the devices that libvirt says are removed."""
        connection = self.domain.connect()
        callback = connection.domainEventRegisterAny(
            self.domain, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            lambda _connection, _domain, alias, _:
            self.removed.append(alias), None)
        self.addCleanup(connection.domainEventDeregisterAny, callback)

    def await_line(self, beginning, timeout, question=None):
        """Wait for a line on the guest's console.

        :param beginning: the line's
        :param timeout: seconds
        :param question: what to say to the guest first
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
        """The addresses of the functions that the guest has and drives."""
        question = uuid.uuid4().hex
        answer = self.await_line(f'ANSWER {question}', ANSWER_TIMEOUT,
                                 question)
        return sorted(answer.split())

    def devices(self):
        """The guest's passthrough devices, as libvirt defines them."""
        devices = etree.fromstring(self.domain.XMLDesc()).xpath(
            './devices/hostdev | ./devices/interface')
        for device in devices:
            # A name of libvirt's own, which the guest does not see.
            device.remove(device.find('alias'))
        return sorted(etree.tostring(device, method='c14n').decode()
                      for device in devices)

    def assert_whole(self):
        """Check that the guest runs with all that it had."""
        self.assertEqual(libvirt.VIR_DOMAIN_RUNNING, self.domain.state()[0])
        self.assertEqual(self.before, self.devices())
        if self.BOOT:
            # It learns of a device after libvirt has attached it.
            wait.until('both functions work in the guest', lambda:
                       sorted(MACS) == self.working_functions(),
                       ANSWER_TIMEOUT)
