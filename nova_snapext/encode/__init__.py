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
from nova_snapext.encode import packed
from nova_snapext.encode.packed import PackedQcow2Encoder
from nova_snapext.encode.qcow2 import Qcow2Encoder
from nova_snapext.encode.raw import RawEncoder
from nova_snapext.encode.room import NoRoom
from nova_snapext.encode.staged import StagedEncoder
from nova_snapext.encode.staged import VdiEncoder
from nova_snapext.encode.staged import VmdkEncoder
from nova_snapext import read

__all__ = ['FORMATS', 'EncodeError', 'Encoder', 'NoRoom',
           'PackedQcow2Encoder', 'Piece', 'Qcow2Encoder', 'RawEncoder',
           'StagedEncoder', 'VdiEncoder', 'VmdkEncoder', 'encoder']

CONF = conf.CONF
LOG = logging.getLogger(__name__)

_OTHERS: dict[str, type[Encoder]] = {
    'raw': RawEncoder,
    'vdi': VdiEncoder,
    'vmdk': VmdkEncoder,
}

#: Glance's disk_formats: all that can be made.
FORMATS = frozenset({'qcow2', *_OTHERS})


def encoder(image_format: str, disk: read.Disk) -> Encoder:
    """Give the encoder of a format, as the options want it.

    :param image_format: one of FORMATS
    :raises DiskReadError: the disk can't be read
    """
    if image_format != 'qcow2':
        return _OTHERS[image_format](disk)
    data_clusters = clusters.ClusterMap.of(disk)
    estimated = None
    # As in Nova, the option is for qcow2 alone.
    if CONF.libvirt.snapshot_compression:
        codec = codecs.CODECS[CONF.snapext.compression_type](
            CONF.snapext.compression_level)
        estimated = packed.estimate(disk, data_clusters, codec)
        if _is_worthwhile(disk, estimated):
            return _packed(disk, data_clusters, codec, estimated,
                           threads=(CONF.snapext.compression_threads or
                                    len(os.sched_getaffinity(0))))
    if CONF.snapext.find_zeros != 'never':
        codec = codecs.Plain()
        estimated = (estimated.uncompressed() if estimated else
                     packed.estimate(disk, data_clusters, codec))
        if estimated.has_zeros or CONF.snapext.find_zeros == 'always':
            return _packed(disk, data_clusters, codec, estimated, threads=0)
    return Qcow2Encoder(disk, data_clusters)


def _is_worthwhile(disk: read.Disk, estimated: packed.Estimate) -> bool:
    saving = 100 * estimated.saving
    if saving >= CONF.snapext.compression_min_saving:
        return True
    LOG.info('The image of %(disk)s is not compressed: that would save '
             '%(saving).0f %% of the data ([snapext]compression_min_saving: '
             '%(least)d)',
             {'disk': disk.uri, 'saving': saving,
              'least': CONF.snapext.compression_min_saving})
    return False


def _packed(disk: read.Disk, data_clusters: clusters.ClusterMap,
            codec: codecs.Codec, estimated: packed.Estimate,
            threads: int) -> PackedQcow2Encoder:
    return PackedQcow2Encoder(
        disk, data_clusters, codec, estimated,
        store=CONF.snapext.qcow2_store * units.Mi, threads=threads)
