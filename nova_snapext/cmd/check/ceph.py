# SPDX-License-Identifier: Apache-2.0
"""What :mod:`nova_snapext.cmd.check_ceph` finds, as items."""

from __future__ import annotations

from collections.abc import Iterator

from nova_snapext.cmd.check import item
from nova_snapext.cmd import check_ceph


def ceph(host: item.Host) -> Iterator[item.Item]:
    """Check Ceph, if the disks of this host are there."""
    local = None
    if host.driver is not None:
        local = {guest.uuid for guest in
                 host.driver._host.list_guests(only_running=False)}
    for passed, text in check_ceph.ceph_findings(local):
        yield (item.ok if passed else item.failed)('ceph', text)
