# SPDX-License-Identifier: Apache-2.0
"""The fifth stage: an image of a disk, as one sequential stream."""

import os

from oslo_log import log as logging
from oslo_utils import units

from nova_snapext import conf
from nova_snapext.encode.base import EncodeError
from nova_snapext.encode.base import Encoder
from nova_snapext.encode.base import Piece
from nova_snapext.encode import clusters
from nova_snapext.encode import codec as codecs
from nova_snapext.encode.compressed import CompressedQcow2Encoder
from nova_snapext.encode.compressed import estimate
from nova_snapext.encode.data import allocated
from nova_snapext.encode.data import FIND
from nova_snapext.encode.data import nonzero
from nova_snapext.encode.data import sampled
from nova_snapext.encode.qcow2 import Qcow2Encoder
from nova_snapext.encode.raw import RawEncoder
from nova_snapext.encode.room import NoRoom
from nova_snapext.encode.staged import StagedEncoder
from nova_snapext.encode.staged import VdiEncoder
from nova_snapext.encode.staged import VmdkEncoder
from nova_snapext import read

__all__ = ['FORMATS', 'CompressedQcow2Encoder', 'EncodeError', 'Encoder',
           'NoRoom', 'Piece', 'Qcow2Encoder', 'RawEncoder', 'StagedEncoder',
           'VdiEncoder', 'VmdkEncoder', 'allocated', 'encoder', 'estimate',
           'nonzero', 'sampled']

CONF = conf.CONF
LOG = logging.getLogger(__name__)

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
    :raises DiskReadError: the disk can't be read
    """
    if image_format != 'qcow2':
        return FORMATS[image_format](disk)
    # As in Nova, the option is for qcow2 alone.
    if CONF.libvirt.snapshot_compression:
        compressed = _compressed(disk)
        if compressed is not None:
            return compressed
    return Qcow2Encoder(disk, FIND[CONF.snapext.find_zeros])


def _compressed(disk: read.Disk) -> CompressedQcow2Encoder | None:
    """Give the encoder that compresses, where it is worth it."""
    codec = codecs.CODECS[CONF.snapext.compression_type](
        CONF.snapext.compression_level)
    data_clusters = clusters.ClusterMap.of(disk.size, allocated(disk))
    estimated = estimate(disk, data_clusters, codec)
    saving = 100 * estimated.saving
    if saving < CONF.snapext.compression_min_saving:
        LOG.info('The image of %(disk)s is not compressed: that would save '
                 '%(saving).0f %% of the data ([snapext]'
                 'compression_min_saving: %(least)d)',
                 {'disk': disk.uri, 'saving': saving,
                  'least': CONF.snapext.compression_min_saving})
        return None
    return CompressedQcow2Encoder(
        disk, data_clusters, codec, estimated,
        store=CONF.snapext.compression_store * units.Mi,
        threads=(CONF.snapext.compression_threads or
                 len(os.sched_getaffinity(0))))
