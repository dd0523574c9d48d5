# SPDX-License-Identifier: Apache-2.0
"""The fourth stage: what a frozen disk holds, read over NBD."""

from nova_snapext.read.extents import Extent as Extent
from nova_snapext.read.extents import coalesced as coalesced
from nova_snapext.read.nbd import Disk as Disk
from nova_snapext.read.nbd import is_zero as is_zero
from nova_snapext.read.nbd import unix_uri as unix_uri
