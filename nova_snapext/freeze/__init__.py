# SPDX-License-Identifier: Apache-2.0
"""The third stage: one instant of the root disk, held still for reading.

A strategy knows how to freeze and to release, and nothing of images. All of
them hand over the same thing, a read-only NBD export; but for ``native``,
which hands the whole snapshot to Nova.
"""

from nova_snapext.freeze.base import Consistency
from nova_snapext.freeze.base import FreezingStrategy
from nova_snapext.freeze.base import FrozenDisk
from nova_snapext.freeze.base import Strategy

__all__ = ['Consistency', 'FreezingStrategy', 'FrozenDisk', 'Strategy']
