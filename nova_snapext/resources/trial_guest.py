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
from nova_snapext import exception
from nova_snapext.hypervisor import ceph
from nova_snapext.hypervisor import domain
from nova_snapext import journal
from nova_snapext.journal import schema
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

    Recorded: the pool of its RBD image, if its disk is one; all is named after
    its uuid. Restored: for the instance that the journal's entry is of, if
    that has the name of such a guest. Released: ended, its disk removed, and
    undefined.

    :ivar instance: as much of an instance as a snapshot needs
    :ivar disk: its disk
    """

    kind = 'trial guest'
    record_schema = schema.object_of(pool=schema.OPTIONAL_TEXT)

    def __init__(self, host: libvirt_host.Host,
                 instance: planning.UnknownInstance,
                 pool: str | None = None):
        self._host = host
        self.instance = instance
        self.image = image = ceph.ImageSpec(
            pool, f'{instance.uuid}{ceph.DISK_SUFFIX}') if pool else None
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
        return cls(host, planning.UnknownInstance(
            identity, f'{PREFIX}{identity[:8]}'), _pool())

    @classmethod
    def find(cls, host: libvirt_host.Host) -> list[TrialGuest]:
        """Return all that libvirt has, by their names.

        :raises libvirtError: libvirt can't be asked
        """
        return [cls(host, planning.UnknownInstance(guest.uuid, guest.name),
                    _pool())
                for guest in host.list_guests(only_running=False)
                if guest.name.startswith(PREFIX)]

    def record(self) -> dict[str, ty.Any]:
        return {'pool': self.image.pool if self.image else None}

    @classmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> TrialGuest:
        name = target.instance.name
        if not name.startswith(PREFIX):
            raise exception.JournalRecordError(
                reason=f'the journal of the trials names {name!r}, which is '
                       f'no guest of a trial. Nothing of it is touched')
        return cls(driver._host, target.instance, record['pool'])

    def check_storage(self) -> None:
        """Check that its disk can be created, used, and removed again.

        :raises CephError: Nova's user may not write to the pool
        :raises UnexpectedState: QEMU would have no key for Ceph
        """
        if self.image is None:
            return
        if CONF.libvirt.rbd_user and not CONF.libvirt.rbd_secret_uuid:
            raise exception.UnexpectedState(
                reason='[libvirt]rbd_user is set, and [libvirt]'
                       'rbd_secret_uuid is not: QEMU has no key for Ceph')
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
            ceph.create_image(self.image, len(content), content)
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
        if guest is not None and guest.isActive():
            guest.destroy()
        if self.image is not None:
            ceph.remove_image(self.image)
        if os.path.isdir(self.directory):
            work_directory.remove_tree(self.directory)
        # Last: without a journal, it is found by its definition.
        if guest is not None:
            guest.undefineFlags(UNDEFINE)
        LOG.debug('The trial guest %s is removed', self.instance.name)

    def _domain(self) -> ty.Any:
        """Return libvirt's domain; None if there is none.

        :raises libvirtError: libvirt can't be asked
        :raises UnexpectedState: the uuid is that of another guest
        """
        try:
            guest = self._host.get_connection().lookupByUUIDString(
                self.instance.uuid)
        except libvirt.libvirtError as error:
            if domain.is_gone(error):
                return None
            raise
        if not guest.name().startswith(PREFIX):
            raise exception.UnexpectedState(
                reason=f'the guest {guest.name()} has the uuid of a guest of '
                       f'a trial, {self.instance.uuid}. Nothing of it is '
                       f'touched')
        return guest


def _pool() -> str | None:
    """Return the pool of the disks of this host; None if they are files."""
    if CONF.libvirt.images_type != 'rbd':
        return None
    return str(CONF.libvirt.images_rbd_pool)
