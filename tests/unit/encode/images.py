# SPDX-License-Identifier: Apache-2.0
"""Encoders of qcow2 images whose layout is chosen by the test."""

from unittest import mock

from nova_snapext import encode
from nova_snapext.encode import clusters
from nova_snapext.encode import plain
from nova_snapext.encode import qcow2


def encoder_of(disk, image):
    """Return an encoder that is entered and has selected an image."""
    with mock.patch.object(qcow2, 'select_image', return_value=image):
        return encode.Qcow2Encoder(disk).__enter__()


def plain_encoder(disk):
    return encoder_of(disk, plain.PlainQcow2Image(
        disk, clusters.ClusterMap.of_disk(disk)))
