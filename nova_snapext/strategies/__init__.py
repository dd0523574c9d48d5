# SPDX-License-Identifier: Apache-2.0
"""Strategies: how a root disk is frozen at one point in time, and released.

A strategy knows nothing of images. All of them return a read-only NBD export
of the frozen disk, except ``native``, which leaves the whole snapshot to Nova.

This module is the whole public interface for strategies of other packages.
"""

from nova_snapext.hypervisor.domain import Domain
from nova_snapext.hypervisor.domain import find as find_domain
from nova_snapext.hypervisor.known_defects import Mechanism
from nova_snapext.journal import ReleaseStack
from nova_snapext.journal import Resource
from nova_snapext.plan import Consistency
from nova_snapext.plan import Plan
from nova_snapext.plan import RootDisk
from nova_snapext.plan import Target
from nova_snapext.reason import UserReason
from nova_snapext.resources.guest_filesystems import GuestFilesystems
from nova_snapext.resources.nbd_export import NbdExport
from nova_snapext.resources.work_directory import WorkDirectory
from nova_snapext.strategies.base import FreezingStrategy
from nova_snapext.strategies.base import FrozenDisk
from nova_snapext.strategies.base import Strategy

__all__ = [
    'Consistency',
    'Domain',
    'FreezingStrategy',
    'FrozenDisk',
    'GuestFilesystems',
    'Mechanism',
    'NbdExport',
    'Plan',
    'ReleaseStack',
    'Resource',
    'RootDisk',
    'Strategy',
    'Target',
    'UserReason',
    'WorkDirectory',
    'find_domain',
]
