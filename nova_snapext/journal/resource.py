# SPDX-License-Identifier: Apache-2.0
"""A resource: anything that a crash during a snapshot would leave behind."""

from __future__ import annotations

import abc
from collections.abc import Callable
import typing as ty

from nova.virt.libvirt import driver as libvirt_driver

from nova_snapext import exception
from nova_snapext.journal import schema
from nova_snapext import plan as planning


def _not_recorded() -> None:
    """Do nothing: the resource is not in the journal yet."""


class Resource(abc.ABC):
    """Something that a snapshot creates and has to release.

    The journal records a resource before it is created, so that it can be
    restored and released after a crash.

    :cvar kind: the name of this class in the journal; no two classes may
        share one
    :cvar blocks_start: whether a guest would lose data if it were started or
        moved before this resource is released
    :cvar blocks_snapshot: whether it excludes another snapshot of the
        instance. What is neither in the guest, nor in libvirt, nor on the
        guest's disk has no reason to.
    :cvar record_schema: JSON schema of what record() returns, see
        :mod:`nova_snapext.journal.schema`
    :cvar moves_with_disk: whether the resource is stored with the disks of
        the instance, and so belongs to the host that the instance is on
    """

    kind: ty.ClassVar[str]
    blocks_start: ty.ClassVar[bool] = False
    blocks_snapshot: ty.ClassVar[bool] = True
    record_schema: ty.ClassVar[schema.Schema] = schema.OBJECT
    moves_with_disk: ty.ClassVar[bool] = False

    #: Write :meth:`record` to the journal again. Call it before a change that
    #: a release must know of. It does nothing while the resource is not in
    #: the journal.
    save: Callable[[], None] = staticmethod(_not_recorded)

    @abc.abstractmethod
    def record(self) -> dict[str, ty.Any]:
        """Return all that :meth:`restore` needs, in types that JSON has.

        It must not contain a secret.
        """

    @classmethod
    @abc.abstractmethod
    def restore(cls, driver: libvirt_driver.LibvirtDriver,
                target: planning.Target,
                record: dict[str, ty.Any]) -> ty.Self:
        """Create an object that can be released from its record.

        :param driver: the driver of this nova-compute
        :param target: the target of the interrupted snapshot
        :param record: what :meth:`record` returned, see
            :meth:`check_record`
        """

    @classmethod
    def check_record(cls, record: dict[str, ty.Any]) -> None:
        """Check that a record has the types that :meth:`restore` expects.

        :raises JournalRecordError: it has not
        """
        reason = schema.mismatch(record, cls.record_schema)
        if reason is not None:
            raise exception.JournalRecordError(
                reason=f'what the journal records of it makes no sense: '
                       f'{reason}')

    @abc.abstractmethod
    def release(self) -> None:
        """Release the resource, in whatever state it is, if it exists at all.

        It may be called again, also in another process, and also after a
        call that was interrupted.

        :raises SnapextError: the resource can't be released, and is unchanged
        """

    def __str__(self) -> str:
        return self.kind
