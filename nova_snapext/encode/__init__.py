# SPDX-License-Identifier: Apache-2.0
"""The fifth stage: an image of a disk, as one sequential stream."""

from nova_snapext.encode.base import EncodeError
from nova_snapext.encode.base import Encoder
from nova_snapext.encode.base import Piece
from nova_snapext.encode.data import allocated
from nova_snapext.encode.data import nonzero
from nova_snapext.encode.qcow2 import Qcow2Encoder
from nova_snapext.encode.raw import RawEncoder

__all__ = ['FORMATS', 'EncodeError', 'Encoder', 'Piece', 'Qcow2Encoder',
           'RawEncoder', 'allocated', 'nonzero']

# By Glance's disk_format. What is missing here needs seeking while it is
# written, and can't be streamed.
FORMATS: dict[str, type[Encoder]] = {
    'qcow2': Qcow2Encoder,
    'raw': RawEncoder,
}
