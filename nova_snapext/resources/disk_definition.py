# SPDX-License-Identifier: Apache-2.0
"""The root disk in the definitions of a guest, and how it is exchanged.

libvirt has up to three definitions of a guest: the live one, the persistent
one for the next start, and, if its memory is saved, the one in the saved
memory.
"""

from __future__ import annotations

import libvirt
from lxml import etree
from oslo_log import log as logging

from nova_snapext import exception
from nova_snapext.hypervisor import chain
from nova_snapext.hypervisor import domain
from nova_snapext import plan as planning

LOG = logging.getLogger(__name__)


def live_chain(guest: domain.Domain, target: str) -> list[str | None]:
    """Return the backing chain in the live definition, the active path first.

    :param target: the guest's name of the disk, such as ``vda``
    """
    return chain.paths_of(chain.find_disk(guest.get_xml_desc(), target))


def next_start_disks(guest: domain.Domain,
                     target: str) -> list[etree._Element]:
    """Return the disk in each definition that the next start may use.

    :param target: the guest's name of the disk, such as ``vda``
    """
    definitions = [guest.get_xml_desc(dump_inactive=True),
                   saved_definition(guest)]
    return [chain.find_disk(definition, target)
            for definition in definitions if definition is not None]


def saved_definition(guest: domain.Domain,
                     with_secrets: bool = False) -> str | None:
    """Return the definition in a guest's saved memory.

    :returns: None if there is no saved memory, or only a part of it, as after
        a loss of power. libvirt starts the guest without that part.
    """
    if not guest.has_managed_save():
        return None
    try:
        return guest.managed_save_xml(with_secrets)
    except libvirt.libvirtError as error:
        # "save image is incomplete", "failed to read qemu header", "image
        # magic is incorrect": qemuSaveImageOpen() of libvirt.
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_FAILED:
            raise
        LOG.warning('The saved memory of guest %(guest)s can\'t be used, and '
                    'is ignored: %(error)s',
                    {'guest': guest.name, 'error': error})
        return None


def check_guest_uses(disk: planning.RootDisk, guest: domain.Domain) -> None:
    """Check that a guest uses a disk, now and at its next start.

    :raises UnexpectedState: it uses another one
    """
    for when, inactive in (('now', False), ('at its next start', True)):
        path = chain.path_of(chain.find_disk(
            guest.get_xml_desc(dump_inactive=inactive), disk.target))
        if path != disk.path:
            raise exception.UnexpectedState(
                reason=f'the guest uses {path} as {disk.target} {when}, and '
                       f'should use {disk.path}')


def move_persistent(guest: domain.Domain, old: planning.RootDisk,
                    new: planning.RootDisk) -> None:
    """Replace the disk in the persistent definition, if it is the old one."""
    disk = chain.find_disk(guest.get_xml_desc(dump_inactive=True), old.target)
    path = chain.path_of(disk)
    # libvirt may have replaced it already, with the backing chain of the live
    # definition. A chain in the persistent definition can become wrong.
    has_chain = path == new.path and disk.find('backingStore') is not None
    if path != old.path and not has_chain:
        return
    chain.set_source(disk, new)
    _update(guest, disk)


def move_saved_memory(guest: domain.Domain, old: planning.RootDisk,
                      new: planning.RootDisk) -> bool:
    """Replace the disk in the saved memory, if it is the old one.

    :returns: whether it was replaced
    """
    definition = saved_definition(guest, with_secrets=True)
    if definition is None:
        return False
    disk = chain.find_disk(definition, old.target)
    if chain.path_of(disk) != old.path:
        return False
    chain.set_source(disk, new)
    guest.define_managed_save(
        etree.tostring(disk.getroottree(), encoding='unicode'))
    return True


def remove_chain(guest: domain.Domain, target: str, path: str) -> None:
    """Remove the chain from the persistent definition, if a path is in it.

    libvirt finds the chain again when the guest starts.

    :param target: the guest's name of the disk, such as ``vda``
    """
    disk = chain.find_disk(guest.get_xml_desc(dump_inactive=True), target)
    if path in chain.paths_of(disk):
        for store in disk.findall('backingStore'):
            disk.remove(store)
        _update(guest, disk)


def _update(guest: domain.Domain, disk: etree._Element) -> None:
    # Unlike defining the domain, this can't bring back a domain that is being
    # undefined at the same time.
    guest.update_persistent_device(
        etree.tostring(disk, encoding='unicode', with_tail=False))
