# SPDX-License-Identifier: Apache-2.0
"""The journal: what each running snapshot has created on this host.

Each snapshot has one small file, which is removed at its end. A file that is
there when nova-compute starts was left by a crash;
:mod:`nova_snapext.recovery` then releases what it records.

The journal never contains a secret.
"""

from nova_snapext.journal.file import entries
from nova_snapext.journal.file import find
from nova_snapext.journal.file import finish_writes
from nova_snapext.journal.file import JournalEntry
from nova_snapext.journal.file import JournalRecord
from nova_snapext.journal.file import locked
from nova_snapext.journal.file import new_entry
from nova_snapext.journal.file import VERSION
from nova_snapext.journal.resource import Resource
from nova_snapext.journal.stack import ReleaseStack

__all__ = [
    'VERSION',
    'JournalEntry',
    'JournalRecord',
    'ReleaseStack',
    'Resource',
    'entries',
    'find',
    'finish_writes',
    'locked',
    'new_entry',
]
