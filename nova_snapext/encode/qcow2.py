# SPDX-License-Identifier: Apache-2.0
"""The encoder of qcow2 images, and the selection of their layout."""

from __future__ import annotations

from collections.abc import Iterator
import os
import typing as ty

from oslo_log import log as logging
from oslo_utils import units

from nova_snapext import conf
from nova_snapext.encode import base
from nova_snapext.encode import clusters
from nova_snapext.encode import codec as codecs
from nova_snapext.encode import plain
from nova_snapext.encode import sizes
from nova_snapext.encode import streaming
from nova_snapext import read

CONF = conf.CONF
LOG = logging.getLogger(__name__)

# Bytes of the buffer of an image that is compressed, however large it is.
MIN_BUFFER_SIZE = units.Mi


class Qcow2Image(ty.Protocol):
    """A qcow2 image of a disk, in a certain layout."""

    @property
    def size(self) -> int | None:
        """See :attr:`base.Encoder.size`."""

    @property
    def expected_size(self) -> int:
        """See :attr:`base.Encoder.expected_size`."""

    def chunks(self) -> Iterator[base.Chunk]:
        """See :meth:`base.Encoder.chunks`."""


class Qcow2Encoder(base.Encoder):
    """A qcow2 version 3 image.

    Entering the encoder reads the extents and a sample of the disk, and
    selects the layout.
    """

    image_format = 'qcow2'

    _image: Qcow2Image

    def __enter__(self) -> ty.Self:
        """Select the layout of the image.

        :raises DiskReadError: the disk can't be read
        """
        self._image = select_image(self.disk)
        return self

    @property
    def size(self) -> int | None:
        return self._image.size

    @property
    def expected_size(self) -> int:
        return self._image.expected_size

    def chunks(self) -> Iterator[base.Chunk]:
        return self._image.chunks()


def select_image(disk: read.Disk) -> Qcow2Image:
    """Return a disk's image in the layout that options and sample suggest.

    :raises DiskReadError: the disk can't be read
    """
    data_clusters = clusters.ClusterMap.of_disk(disk)
    estimate = None
    # As in Nova, the option applies to qcow2 only.
    if CONF.libvirt.snapshot_compression:
        name = codecs.type_in_use()
        codec = codecs.CODECS[name](CONF.snapext.compression_level)
        estimate = streaming.estimate_size(disk, data_clusters, codec)
        if saves_enough(estimate):
            LOG.debug('The qcow2 image of %(disk)s is compressed with '
                      '%(type)s: in the sample this saves %(saving).0f %% of '
                      'the data',
                      {'disk': disk.uri, 'saving': 100 * estimate.saving,
                       'type': name})
            return _streaming_image(
                disk, data_clusters, codec, estimate,
                threads=(CONF.snapext.compression_threads or
                         len(os.sched_getaffinity(0))))
        LOG.info('The image of %(disk)s is not compressed: compression would '
                 'save %(saving).0f %% of the data, less than '
                 '[snapext]compression_min_saving_percent: %(min)d',
                 {'disk': disk.uri, 'saving': 100 * estimate.saving,
                  'min': CONF.snapext.compression_min_saving_percent})
    zeros = 'was not searched for zeros'
    if CONF.snapext.detect_zeroes != 'never':
        codec = codecs.NoCompression()
        estimate = (estimate.uncompressed() if estimate else
                    streaming.estimate_size(disk, data_clusters, codec))
        zeros = f'has {estimate.sizes.count(0)} clusters of zeros'
        if estimate.has_zeros or CONF.snapext.detect_zeroes == 'always':
            LOG.debug('The qcow2 image of %(disk)s is not compressed, and '
                      'zeros are left out: the sample of %(count)d clusters '
                      '%(zeros)s ([snapext]detect_zeroes: %(detect)s)',
                      {'disk': disk.uri, 'count': len(estimate.sizes),
                       'zeros': zeros,
                       'detect': CONF.snapext.detect_zeroes})
            return _streaming_image(disk, data_clusters, codec, estimate,
                                    threads=0)
    LOG.debug('The qcow2 image of %(disk)s has all %(count)d allocated '
              'clusters: the sample %(zeros)s ([snapext]detect_zeroes: '
              '%(detect)s)',
              {'disk': disk.uri, 'count': len(data_clusters), 'zeros': zeros,
               'detect': CONF.snapext.detect_zeroes})
    return plain.PlainQcow2Image(disk, data_clusters)


def saves_enough(estimate: streaming.Estimate) -> bool:
    """Return whether an image is compressed, if the options ask for it."""
    return bool(100 * estimate.saving >=
                CONF.snapext.compression_min_saving_percent)


def _streaming_image(
    disk: read.Disk, data_clusters: clusters.ClusterMap, codec: codecs.Codec,
    estimate: streaming.Estimate, threads: int,
) -> streaming.StreamingQcow2Image:
    buffer_size = CONF.snapext.qcow2_buffer_mb * units.Mi
    if not isinstance(codec, codecs.NoCompression):
        # So buffer and sizes together take no more memory, up to 1 TiB of data
        # with the default.
        buffer_size = max(MIN_BUFFER_SIZE, buffer_size -
                          sizes.BYTES_PER_SIZE * len(data_clusters))
    return streaming.StreamingQcow2Image(
        disk, data_clusters, codec, estimate, buffer_size, threads)
