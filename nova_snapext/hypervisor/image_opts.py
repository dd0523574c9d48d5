# SPDX-License-Identifier: Apache-2.0
"""Images as block nodes, in the syntax of QEMU's programs.

A program that gets a node and not a name never takes a path for a protocol's
URL, and opens no backing file but the one in the node.
https://www.qemu.org/docs/master/system/qemu-block-drivers.html
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import json
import typing as ty

from nova_snapext.hypervisor import image_header

#: A driver and its options; an option may be another node.
Node = dict[str, ty.Any]

# QEMU's protocol drivers for libvirt's types of storage.
PROTOCOL_DRIVERS = {'file': 'file', 'block': 'host_device'}


def node(path: str, image_format: str, storage: str = 'file',
         **options: str) -> Node:
    """Return the block node of an image.

    :param storage: libvirt's type of the image's storage
    :param options: of the protocol driver
    """
    return {'driver': image_format,
            'file': {'driver': PROTOCOL_DRIVERS[storage], 'filename': path,
                     **options}}


def alone(path: str, storage: str = 'file') -> Node:
    """Return the block node of a qcow2 without its backing file.

    :param storage: libvirt's type of the image's storage
    """
    return {**node(path, 'qcow2', storage), 'backing': None}


def chain(images: Sequence[image_header.Image], **options: str) -> Node:
    """Return the block node of a backing chain, with a node for each image.

    :param images: the topmost first
    :param options: of the protocol driver of each image
    """
    image, *below = images
    result = node(*image, **options)
    if image.format == 'qcow2':
        result['backing'] = chain(below, **options) if below else None
    return result


def filename(node: Node) -> str:
    """Return a block node as the name of an image.

    Unlike the argument of --image-opts, it can say that there is no backing
    file.
    """
    return f'json:{json.dumps(node)}'


def join(node: Node) -> str:
    """Return a block node as the argument of --image-opts."""
    # QEMU reads a doubled comma as a comma of the value.
    return ','.join(f'{name}={value.replace(",", ",,")}'
                    for name, value in _flat(node))


def _flat(node: Node, prefix: str = '') -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{name}.')
        else:
            yield prefix + name, value
