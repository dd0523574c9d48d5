# SPDX-License-Identifier: Apache-2.0
"""What a check finds, and what all checks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import enum
import typing as ty

if ty.TYPE_CHECKING:
    from nova_snapext.cmd import compute_config


class Status(enum.StrEnum):
    """What an item says, the best first."""

    OK = 'ok'
    #: Snapshots work, but not as they could, or not for every guest.
    WARNING = 'warning'
    #: It could not be seen.
    UNKNOWN = 'unknown'
    #: Snapshots, or a part of them, do not work.
    FAILED = 'failed'


@dataclasses.dataclass(frozen=True)
class Item:
    """One finding.

    :ivar name: the same in each run, for scripts
    :ivar text: a sentence
    :ivar remedy: what to do; empty if there is nothing to do
    """

    name: str
    status: Status
    text: str
    remedy: str = ''


def ok(name: str, text: str) -> Item:
    return Item(name, Status.OK, text)


def warning(name: str, text: str, remedy: str = '') -> Item:
    return Item(name, Status.WARNING, text, remedy)


def unknown(name: str, text: str, remedy: str = '') -> Item:
    return Item(name, Status.UNKNOWN, text, remedy)


def failed(name: str, text: str, remedy: str = '') -> Item:
    return Item(name, Status.FAILED, text, remedy)


@dataclasses.dataclass
class Host:
    """What the checks know of this host so far.

    :ivar options: of the command line
    :ivar source: where Nova's configuration is; None if it could not be read
    :ivar is_nova: this process has the user that nova-compute has
    :ivar libvirt: libvirtd responds to this user
    :ivar root_helper: root's part of the driver can be started
    :ivar qemu: ids of the user and the group that guests' QEMU has; None if
        unknown
    :ivar service_user: Keystone gives a token to the user of [service_user],
        or was not asked yet
    :ivar driver: Nova's driver; None if it could not be created
    """

    options: argparse.Namespace
    source: compute_config.Source | None = None
    is_nova: bool = False
    libvirt: bool = False
    root_helper: bool = False
    qemu: tuple[int, int] | None = None
    service_user: bool = True
    driver: ty.Any = None


Check = Callable[[Host], Iterator[Item]]
