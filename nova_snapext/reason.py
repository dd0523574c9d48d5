# SPDX-License-Identifier: Apache-2.0
"""Why a strategy can't take a snapshot, for operators and for users.

A reason is text. Users read why their request is refused, and must not learn
of the host: paths, sizes, addresses, versions, what else is on it. A plain
``str`` is for operators only, so that a reason whose author did not think of
users stays hidden from them.
"""

from __future__ import annotations

import typing as ty

#: What users read in place of a reason that is for operators only.
HIDDEN = 'the host can\'t (ask an operator why)'


class UserReason(str):
    """A reason that users may read, at least in part.

    :ivar for_users: their part of it
    """

    __slots__ = ('for_users',)
    for_users: str

    def __new__(cls, text: str, for_users: str | None = None) -> ty.Self:
        """Create a reason.

        :param text: for operators
        :param for_users: for users; None for the same text
        """
        self = super().__new__(cls, text)
        self.for_users = str(text) if for_users is None else for_users
        return self


class OtherStorageReason(UserReason):
    """The strategy is for disks on storage of another kind.

    ``auto`` has strategies for each kind: that one of them is for another kind
    is no news.
    """

    __slots__ = ()


class NoSpaceReason(UserReason):
    """There is not enough free space on the host.

    :ivar path: a file or directory on the file system. Nova's own snapshot
        does not replace a strategy with this reason if it stages its copies
        on the same one.
    """

    __slots__ = ('path',)
    path: str

    def __new__(cls, text: str, path: str) -> ty.Self:
        self = super().__new__(
            cls, text, 'the host has not enough free space')
        self.path = path
        return self


class UnsafeDiskReason(str):
    """A reason of a disk that none of QEMU's programs may open.

    Nova's own snapshot would open it, and so does not replace a strategy that
    has this reason.
    """

    __slots__ = ()


def for_users(reason: str) -> str:
    """Return what users may read of a reason."""
    return reason.for_users if isinstance(reason, UserReason) else HIDDEN
