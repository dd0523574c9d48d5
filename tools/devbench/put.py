# SPDX-License-Identifier: Apache-2.0
"""Upload a ready-made file as an image's data, with python-glanceclient.

    python put.py ENDPOINT IMAGE FILE CHUNK_SIZE

Reads the token from standard input, and prints times as JSON. It runs with the
Python of the cloud, which has python-glanceclient. With a chunk size of 0, the
client decides.
"""

import json
import resource
import sys
import time

import glanceclient


class Chunks:
    """A file that returns at most a fixed number of bytes at once."""

    def __init__(self, file, size):
        self._file = file
        self._size = size

    def read(self, _size=-1):
        return self._file.read(self._size)


def main(endpoint, image, path, chunk_size):
    client = glanceclient.Client('2', endpoint, token=sys.stdin.read().strip())
    with open(path, 'rb', buffering=0) as file:
        body = Chunks(file, int(chunk_size)) if int(chunk_size) else file
        # Load the schema before the measurement.
        client.images.get(image)
        before, clock = resource.getrusage(resource.RUSAGE_SELF), time.time()
        begin = time.monotonic()
        client.images.upload(image, body)
        wall = time.monotonic() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        'begin': begin, 'clock': clock, 'wall': wall,
        'cpu': (after.ru_utime + after.ru_stime
                - before.ru_utime - before.ru_stime)}))


if __name__ == '__main__':
    main(*sys.argv[1:])
