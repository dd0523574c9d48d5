# SPDX-License-Identifier: Apache-2.0
"""The journal: what each running snapshot has created on this host.

Each snapshot has one small file, and its image has another. They are removed
at its end. A file that is there when nova-compute starts was left by a crash;
:mod:`nova_snapext.recovery` then releases what it records.

The journal never contains a secret.
"""

from nova_snapext.journal.directory import is_locked_by_another
from nova_snapext.journal.directory import locked
from nova_snapext.journal.directory import locked_since
from nova_snapext.journal.directory import remove_if_empty
from nova_snapext.journal.file import entries
from nova_snapext.journal.file import find
from nova_snapext.journal.file import find_all
from nova_snapext.journal.file import finish_writes
from nova_snapext.journal.file import JournalEntry
from nova_snapext.journal.file import JournalRecord
from nova_snapext.journal.file import new_entry
from nova_snapext.journal.file import require_usable
from nova_snapext.journal.file import set_aside_files
from nova_snapext.journal.file import set_aside_unreadable
from nova_snapext.journal.file import unusable
from nova_snapext.journal.file import UnusableFile
from nova_snapext.journal.image import has_image
from nova_snapext.journal.image import ImageEntry
from nova_snapext.journal.image import images
from nova_snapext.journal.image import new_image
from nova_snapext.journal.resource import Resource
from nova_snapext.journal.schema import VERSION
from nova_snapext.journal.stack import ReleaseStack

__all__ = [
    'VERSION',
    'ImageEntry',
    'JournalEntry',
    'JournalRecord',
    'ReleaseStack',
    'Resource',
    'UnusableFile',
    'entries',
    'find',
    'find_all',
    'finish_writes',
    'has_image',
    'images',
    'is_locked_by_another',
    'locked',
    'locked_since',
    'new_entry',
    'new_image',
    'remove_if_empty',
    'require_usable',
    'set_aside_files',
    'set_aside_unreadable',
    'unusable',
]
