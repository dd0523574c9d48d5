# SPDX-License-Identifier: Apache-2.0
"""The fifth stage: an image of a disk, as one sequential stream."""

from nova_snapext import conf
from nova_snapext.encode.base import EncodeError
from nova_snapext.encode.base import Encoder
from nova_snapext.encode.base import Piece
from nova_snapext.encode.data import allocated
from nova_snapext.encode.data import nonzero
from nova_snapext.encode.qcow2 import Qcow2Encoder
from nova_snapext.encode.raw import RawEncoder
from nova_snapext.encode.room import NoRoom
from nova_snapext.encode.staged import CompressedQcow2Encoder
from nova_snapext.encode.staged import StagedEncoder
from nova_snapext.encode.staged import VdiEncoder
from nova_snapext.encode.staged import VmdkEncoder
from nova_snapext import read

__all__ = ['FORMATS', 'CompressedQcow2Encoder', 'EncodeError', 'Encoder',
           'NoRoom', 'Piece', 'Qcow2Encoder', 'RawEncoder', 'StagedEncoder',
           'VdiEncoder', 'VmdkEncoder', 'allocated', 'encoder', 'nonzero']

CONF = conf.CONF

#: By Glance's disk_format: all that can be made.
FORMATS: dict[str, type[Encoder]] = {
    'qcow2': Qcow2Encoder,
    'raw': RawEncoder,
    'vdi': VdiEncoder,
    'vmdk': VmdkEncoder,
}


def encoder(image_format: str, disk: read.Disk) -> Encoder:
    """Give the encoder of a format, as the options want it.

    :param image_format: one of FORMATS
    """
    chosen = FORMATS[image_format]
    # As in Nova, the option is for qcow2 alone.
    if image_format == 'qcow2' and CONF.libvirt.snapshot_compression:
        chosen = CompressedQcow2Encoder
    return chosen(disk, nonzero if CONF.snapext.find_zeros else allocated)
