# SPDX-License-Identifier: Apache-2.0
"""The guest that ``nova-snapext check --trial`` takes snapshots of.

It is none of Nova's instances, has no network, and finds nothing to boot. Its
disk is an RBD image if those of Nova's instances are, and a file otherwise.
"""

from __future__ import annotations

import os
import pathlib
import platform
import typing as ty
import uuid

import libvirt
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import units

from nova_snapext import conf
from nova_snapext.hypervisor import ceph
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
    {disk}
  </devices>
</domain>
"""

# All that libvirt keeps of a guest goes with its definition.
UNDEFINE = (libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
            libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
            libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


class TrialGuest(journal.Resource):
    """A domain of libvirt, and its disk.

    Recorded: the RBD image, if the disk is one; all else is named after the
    uuid. Restored: for the instance that the journal's entry is of. Released:
    ended, undefined, and its disk removed.

    :ivar instance: as much of an instance as a snapshot needs
    :ivar disk: its disk
    """

    kind = 'trial guest'

    def __init__(self, host: libvirt_host.Host,
                 instance: planning.UnknownInstance,
                 image: ceph.ImageSpec | None = None):
        self._host = host
        self.instance = instance
        self.image = image
        self.directory = os.path.join(
            os.path.abspath(CONF.instances_path), instance.uuid)
        if image is not None:
            self.disk = planning.RootDisk(
                'vda', 'network', f'{ceph.PREFIX}{image}', 'raw')
        else:
            self.disk = planning.RootDisk(
                'vda', 'file', os.path.join(self.directory, 'disk'), 'qcow2')

    @classmethod
    def new(cls, host: libvirt_host.Host) -> TrialGuest:
        """Return a guest that does not exist yet."""
        identity = str(uuid.uuid4())
        image = None
        if CONF.libvirt.images_type == 'rbd':
            image = ceph.ImageSpec(CONF.libvirt.images_rbd_pool,
                                   f'{identity}{ceph.DISK_SUFFIX}')
        return cls(host, planning.UnknownInstance(
            identity, f'{PREFIX}{identity[:8]}'), image)

    @classmethod
    def find(cls, host: libvirt_host.Host) -> list[TrialGuest]:
        """Return all that libvirt has, by their names.

        :raises libvirtError: libvirt can't be asked
        """
        found = []
        for guest in host.list_guests(only_running=False):
            if guest.name.startswith(PREFIX):
                instance = planning.UnknownInstance(guest.uuid, guest.name)
                disk = planning.find_root_disk(
                    domain.Domain(guest._domain), ty.cast(ty.Any, instance))
                found.append(cls(host, instance, ceph.image_of(disk)))
        return found

    def record(self) -> dict[str, ty.Any]:
        return {'image': [self.image.pool, self.image.name]
                } if self.image else {}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> TrialGuest:
        image = record.get('image')
        return cls(driver._host, target.instance,
                   ceph.ImageSpec(*image) if image else None)

    def check_storage(self) -> None:
        """Check that Nova's user may create its disk, and remove it again.

        :raises CephError: it may not
        """
        if self.image is not None:
            ceph.check_writable(self.image.pool)

    def create(self) -> bytes:
        """Create its disk, define it, and start it.

        :returns: the content of the disk
        :raises libvirtError: libvirt refuses
        :raises CephError: Ceph can't create the disk
        :raises ProcessExecutionError: qemu-img can't create the disk
        :raises OSError: the directory can't be created
        """
        content = os.urandom(DATA_SIZE) + bytes(DISK_SIZE - DATA_SIZE)
        if self.image is not None:
            ceph.create_image(self.image, content)
        else:
            self._create_file(content)
        guest = self._host.get_connection().defineXML(DEFINITION.format(
            virt_type=CONF.libvirt.virt_type, name=self.instance.name,
            uuid=self.instance.uuid, memory=MEMORY,
            architecture=platform.machine(),
            disk=self._disk_config().to_xml()))
        guest.create()
        LOG.debug('The trial guest %s runs', self.instance.name)
        return content

    def _create_file(self, content: bytes) -> None:
        # As Nova makes the directory of an instance, whatever the umask is.
        os.makedirs(self.directory)
        os.chmod(self.directory, 0o755)  # noqa: S103  # nosec B103
        raw = pathlib.Path(self.directory, 'raw')
        raw.write_bytes(content)
        processutils.execute('qemu-img', 'convert', '-f', 'raw', '-O',
                             'qcow2', str(raw), self.disk.path)
        raw.unlink()

    def _disk_config(self) -> vconfig.LibvirtConfigGuestDisk:
        """Return Nova's model of the disk in libvirt's definition.

        Of an RBD image, as in nova/virt/libvirt/imagebackend.py, class Rbd.
        """
        disk = vconfig.LibvirtConfigGuestDisk()
        disk.driver_name, disk.driver_format = 'qemu', self.disk.format
        disk.source_type = self.disk.storage
        disk.target_dev, disk.target_bus = self.disk.target, 'virtio'
        if self.image is None:
            disk.source_path = self.disk.path
            return disk
        disk.source_protocol = 'rbd'
        disk.source_name = str(self.image)
        disk.source_hosts, disk.source_ports = ceph.monitors(self.image.pool)
        if CONF.libvirt.rbd_user:
            disk.auth_username = CONF.libvirt.rbd_user
            disk.auth_secret_type = 'ceph'  # noqa: S105  # nosec B105
            disk.auth_secret_uuid = CONF.libvirt.rbd_secret_uuid
        return disk

    def shut_off(self) -> None:
        """End its QEMU."""
        domain.get(self._host, ty.cast(ty.Any, self.instance)).poweroff()

    def release(self) -> None:
        guest = self._domain()
        if guest is not None:
            if guest.isActive():
                guest.destroy()
            guest.undefineFlags(UNDEFINE)
        # Only a directory, or an image, that has the name of this guest, which
        # no instance has, is removed.
        if os.path.isdir(self.directory):
            work_directory.remove_tree(self.directory)
        if self.image is not None:
            ceph.remove_image(self.image)
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
