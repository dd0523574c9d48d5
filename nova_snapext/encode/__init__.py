# SPDX-License-Identifier: Apache-2.0
"""Fifth stage: make an image of the disk, as one sequential stream."""

from nova_snapext.encode.base import Chunk
from nova_snapext.encode.base import EncodeError
from nova_snapext.encode.base import Encoder
from nova_snapext.encode.qcow2 import Qcow2Encoder
from nova_snapext.encode.raw import RawEncoder
from nova_snapext.encode.reservation import InsufficientStagingSpace
from nova_snapext.encode.staged import StagedEncoder
from nova_snapext.encode.staged import VdiEncoder
from nova_snapext.encode.staged import VmdkEncoder
from nova_snapext import read

__all__ = ['FORMATS', 'Chunk', 'EncodeError', 'Encoder',
           'InsufficientStagingSpace', 'Qcow2Encoder', 'RawEncoder',
           'StagedEncoder', 'VdiEncoder', 'VmdkEncoder', 'encoder']

#: The encoder of each image format, by Glance's disk_format.
FORMATS: dict[str, type[Encoder]] = {
    encoder_class.image_format: encoder_class
    for encoder_class in (Qcow2Encoder, RawEncoder, VdiEncoder, VmdkEncoder)}


def encoder(image_format: str, disk: read.Disk) -> Encoder:
    """Return the encoder of a format. Does no I/O before it is entered.

    :param image_format: one of FORMATS
    """
    return FORMATS[image_format](disk)
