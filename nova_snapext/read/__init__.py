# SPDX-License-Identifier: Apache-2.0
"""Fourth stage: read the frozen disk over NBD."""

from nova_snapext.read.buffers import BufferPool
from nova_snapext.read.extent import Extent
from nova_snapext.read.extent import ExtentMap
from nova_snapext.read.nbd import Disk
from nova_snapext.read.nbd import is_zero
from nova_snapext.read.nbd import unix_export
from nova_snapext.read.nbd import unix_uri

__all__ = ['BufferPool', 'Disk', 'Extent', 'ExtentMap', 'is_zero',
           'unix_export', 'unix_uri']
