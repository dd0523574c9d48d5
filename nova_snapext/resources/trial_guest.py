# SPDX-License-Identifier: Apache-2.0
"""The guest that ``nova-snapext check --trial`` takes snapshots of.

It is none of Nova's instances, has no network, and finds nothing to boot.
"""

from __future__ import annotations

import os
import pathlib
import platform
import typing as ty
import uuid

import libvirt
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import units

from nova_snapext import conf
from nova_snapext.hypervisor import domain
from nova_snapext import journal
from nova_snapext import plan as planning
from nova_snapext.resources import work_directory

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# No other domain of a host with Nova has such a name.
PREFIX = 'nova-snapext-trial-'

# Bytes of the disk, and of the data in it: enough for a file system's worth of
# clusters, and nothing to a host.
DISK_SIZE, DATA_SIZE = 8 * units.Mi, units.Mi

# MiB of memory: what QEMU's firmware needs.
MEMORY = 64

DEFINITION = """
<domain type='{virt_type}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='{architecture}'>hvm</type></os>
  <on_reboot>destroy</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{path}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""

# All that libvirt keeps of a guest goes with its definition.
UNDEFINE = (libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
            libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
            libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


class TrialGuest(journal.Resource):
    """A domain of libvirt, and the directory of its disk.

    Recorded: nothing, because all is named after its uuid. Restored: for the
    instance that the journal's entry is of. Released: ended, undefined, and
    its directory removed.

    :ivar instance: as much of an instance as a snapshot needs
    :ivar path: path of its disk
    """

    kind = 'trial guest'

    def __init__(self, host: libvirt_host.Host,
                 instance: planning.UnknownInstance):
        self._host = host
        self.instance = instance
        self.directory = os.path.join(
            os.path.abspath(CONF.instances_path), instance.uuid)
        self.path = os.path.join(self.directory, 'disk')

    @classmethod
    def new(cls, host: libvirt_host.Host) -> TrialGuest:
        """Return a guest that does not exist yet."""
        identity = str(uuid.uuid4())
        return cls(host, planning.UnknownInstance(
            identity, f'{PREFIX}{identity[:8]}'))

    def record(self) -> dict[str, ty.Any]:
        return {}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> TrialGuest:
        return cls(driver._host, target.instance)

    def create(self) -> bytes:
        """Create its disk, define it, and start it.

        :returns: the content of the disk
        :raises libvirtError: libvirt refuses
        :raises ProcessExecutionError: qemu-img can't create the disk
        :raises OSError: the directory can't be created
        """
        content = os.urandom(DATA_SIZE) + bytes(DISK_SIZE - DATA_SIZE)
        # As Nova makes the directory of an instance, whatever the umask is.
        os.makedirs(self.directory)
        os.chmod(self.directory, 0o755)  # noqa: S103  # nosec B103
        raw = pathlib.Path(self.directory, 'raw')
        raw.write_bytes(content)
        processutils.execute('qemu-img', 'convert', '-f', 'raw', '-O',
                             'qcow2', str(raw), self.path)
        raw.unlink()
        guest = self._host.get_connection().defineXML(DEFINITION.format(
            virt_type=CONF.libvirt.virt_type, name=self.instance.name,
            uuid=self.instance.uuid, memory=MEMORY,
            architecture=platform.machine(), path=self.path))
        guest.create()
        LOG.debug('The trial guest %s runs', self.instance.name)
        return content

    def shut_off(self) -> None:
        """End its QEMU."""
        domain.get(self._host, ty.cast(ty.Any, self.instance)).poweroff()

    def release(self) -> None:
        guest = self._domain()
        if guest is not None:
            if guest.isActive():
                guest.destroy()
            guest.undefineFlags(UNDEFINE)
        # Only a directory that has the name of this guest, which no instance
        # has, is removed.
        if os.path.isdir(self.directory):
            work_directory.remove_tree(self.directory)
        LOG.debug('The trial guest %s is removed', self.instance.name)

    def _domain(self) -> ty.Any:
        """Return libvirt's domain; None if there is none.

        :raises libvirtError: libvirt can't be asked
        """
        try:
            guest = self._host.get_connection().lookupByUUIDString(
                self.instance.uuid)
        except libvirt.libvirtError as error:
            if domain.is_gone(error):
                return None
            raise
        return guest if guest.name().startswith(PREFIX) else None
