# SPDX-License-Identifier: Apache-2.0
"""Read a disk to nowhere, in a process of its own, and say what it took.

    python -m devbench.drain KIND URI

The image encoder and the reader are the product's; only what they give goes
nowhere. Loading them is not counted.
"""

import json
import os
import pathlib
import resource
import sys
import time

from devbench import process

#: What is read: nothing but the disk, or an image, with these options.
KINDS = {
    'reader': None,
    'raw': ('raw', {}),
    'qcow2': ('qcow2', {'find_zeros': 'never'}),
    'qcow2, zeros found': ('qcow2', {'find_zeros': 'always'}),
    'qcow2, compressed': ('qcow2', {'compress': True}),
}


def main(kind: str, uri: str) -> None:
    from nova_snapext import conf
    from nova_snapext import encode
    from nova_snapext import read

    conf.CONF([], project='nova')
    process.forget_peak(os.getpid())
    idle = process.memory(os.getpid())
    before, begin = _cpu(), time.monotonic()
    with read.Disk(uri) as disk:
        if KINDS[kind] is None:
            found, planned = _read(disk)
        else:
            found, planned = _encode(disk, conf, encode, *KINDS[kind])
    print(json.dumps({
        **found, 'wall': time.monotonic() - begin,
        'planning': planned - begin, 'cpu': _cpu() - before,
        'memory': process.memory(os.getpid(), 'VmHWM') - idle}))


def _read(disk):
    runs = [(extent.offset, extent.length)
            for extent in disk.extents() if extent.data]
    planned = time.monotonic()
    for _offset, _piece in disk.read(runs):
        pass
    return {'read': disk.bytes_read, 'sent': 0}, planned


def _encode(disk, conf, encode, image_format, options):
    conf.CONF.set_override('find_zeros', options.get('find_zeros', 'auto'),
                           group='snapext')
    conf.CONF.set_override('snapshot_compression',
                           options.get('compress', False), group='libvirt')
    conf.CONF.set_override('snapshots_directory',
                           str(pathlib.Path.cwd()), group='libvirt')
    with encode.encoder(image_format, disk) as encoder:
        planned = time.monotonic()
        sent = sum(map(len, encoder.stream()))
        return {'read': encoder.bytes_read, 'sent': sent}, planned


def _cpu():
    """Give CPU seconds, children included."""
    used = [resource.getrusage(who) for who in (
        resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == '__main__':
    main(*sys.argv[1:])
