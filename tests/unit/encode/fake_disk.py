# SPDX-License-Identifier: Apache-2.0
"""A disk that needs no server."""

from nova_snapext import read

KIB = 1024


class FakeDisk:
    """Contains ``x`` wherever it has data.

    :param size: in bytes
    :param data: offset and length of each extent of data
    """

    uri = 'nbd+unix:///vda?socket=fake'

    def __init__(self, size, data):
        self.size = size
        self._data = data

    def extents(self):
        position = 0
        for offset, length in self._data:
            if offset > position:
                yield read.Extent(position, offset - position, False)
            yield read.Extent(offset, length, True)
            position = offset + length
        if position < self.size:
            yield read.Extent(position, self.size - position, False)

    def read(self, ranges):
        for offset, length in ranges:
            for begin in range(offset, offset + length, 256 * KIB):
                rest = min(256 * KIB, offset + length - begin)
                yield begin, self.content(begin, rest)

    def check_frozen(self):
        pass

    def content(self, offset, length):
        return memoryview(b'x' * length)
