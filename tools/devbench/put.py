# SPDX-License-Identifier: Apache-2.0
"""Put a ready-made file into an image of Glance's, with its own client.

    python put.py ENDPOINT IMAGE FILE PIECE_SIZE

The token comes on standard input. It runs with the Python of the cloud, which
has python-glanceclient, and prints what it took as JSON. A piece size of 0
leaves it to the client how much it asks for at once.
"""

import json
import resource
import sys
import time

import glanceclient


class Pieces:
    """A file that gives no more than so many bytes at once."""

    def __init__(self, file, size):
        self._file = file
        self._size = size

    def read(self, _size=-1):
        return self._file.read(self._size)


def main(endpoint, image, path, piece_size):
    client = glanceclient.Client('2', endpoint, token=sys.stdin.read().strip())
    with open(path, 'rb', buffering=0) as file:
        body = Pieces(file, int(piece_size)) if int(piece_size) else file
        # Loads the schema, which is not the upload's time.
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
