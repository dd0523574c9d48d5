# SPDX-License-Identifier: Apache-2.0
"""Read a disk in a separate process, discard it, and report the cost.

    python -m devbench.drain KIND URI

The reader and the encoders are those of nova_snapext; their output is
discarded. The time to import them is not counted.
"""

import json
import os
import pathlib
import resource
import sys
import time

from devbench import process

#: Kinds of output: None for the raw data, or an image format with options.
KINDS = {
    'reader': None,
    'raw': ('raw', {}),
    'qcow2': ('qcow2', {'detect_zeroes': 'never'}),
    'qcow2, zeros found': ('qcow2', {'detect_zeroes': 'always'}),
    'qcow2, compressed': ('qcow2', {'compress': True}),
}


def main(kind: str, uri: str) -> None:
    from nova_snapext import conf
    from nova_snapext import encode
    from nova_snapext import read

    conf.CONF([], project='nova')
    process.reset_peak(os.getpid())
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
    ranges = [(extent.offset, extent.length)
              for extent in disk.extents() if extent.data]
    planned = time.monotonic()
    for _offset, _chunk in disk.read(ranges):
        pass
    return {'read': disk.bytes_read, 'sent': 0}, planned


def _encode(disk, conf, encode, image_format, options):
    conf.CONF.set_override('detect_zeroes',
                           options.get('detect_zeroes', 'auto'),
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
    """Return the CPU seconds used, by child processes too."""
    used = [resource.getrusage(who) for who in (
        resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == '__main__':
    main(*sys.argv[1:])
