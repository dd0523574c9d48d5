# SPDX-License-Identifier: Apache-2.0
"""A small NBD server whose replies no real server would send.

Source: doc/proto.md of https://github.com/NetworkBlockDevice/nbd, fixed
newstyle with structured replies.
"""

import contextlib
import importlib
import os
import struct

import fixtures

from nova_snapext import cancel
from nova_snapext import compat

OPTION_REPLY = 0x3e889045565a9
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_SET_META_CONTEXT = 10
REP_ACK = 1
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERR_UNSUP = 1 << 31 | 1

CMD_READ = 0
CMD_BLOCK_STATUS = 7
REPLY_OFFSET_DATA = 1
REPLY_BLOCK_STATUS = 5
FLAG_DONE = 1


# libnbd waits in a native thread: the server can't be in a green one.
threading = cancel.native_threading()
socket = importlib.import_module('socket')
if eventlet := compat.get_eventlet():
    socket = eventlet.patcher.original('socket')


class FakeServer(fixtures.Fixture):
    """Serves one client, on its own thread.

    :param size: of the export, in bytes
    :param extents: returns, for an offset and a length, the lengths and flags
        of the reply to a block status request
    :param read: returns, for an offset and a length, the content to send
    """

    def __init__(self, size, extents=None, read=None):
        self._size = size
        self._extents = extents or (lambda offset, length: [length, 0])
        self._read = read or (lambda offset, length: bytes(length))

    def _setUp(self):
        directory = self.useFixture(fixtures.TempDir()).path
        self.socket = os.path.join(directory, 'nbd')
        self._listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(self._listener.close)
        self._listener.bind(self.socket)
        self._listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        self.addCleanup(self.thread.join, 10)
        # Ends a thread that is still waiting for its client.
        self.addCleanup(self._listener.shutdown, socket.SHUT_RDWR)

    def _serve(self):
        with contextlib.suppress(OSError, EOFError):
            self._client, _address = self._listener.accept()
            with self._client:
                self._negotiate()
                self._transmit()

    def _receive(self, layout):
        content = b''
        while len(content) < struct.calcsize(layout):
            more = self._client.recv(struct.calcsize(layout) - len(content))
            if not more:
                raise EOFError
            content += more
        return struct.unpack(layout, content)

    def _negotiate(self):
        self._client.sendall(struct.pack('>8s8sH', b'NBDMAGIC', b'IHAVEOPT',
                                         3))
        self._receive('>I')
        option = None
        while option != OPT_GO:
            _magic, option, length = self._receive('>8sII')
            self._receive(f'>{length}s')
            if option == OPT_SET_META_CONTEXT:
                self._reply(option, REP_META_CONTEXT,
                            struct.pack('>I', 1) + b'base:allocation')
            elif option == OPT_GO:
                self._reply(option, REP_INFO,
                            struct.pack('>HQH', 0, self._size, 3))
            elif option != OPT_STRUCTURED_REPLY:
                self._reply(option, REP_ERR_UNSUP)
                continue
            self._reply(option, REP_ACK)

    def _reply(self, option, kind, content=b''):
        self._client.sendall(struct.pack(
            '>QIII', OPTION_REPLY, option, kind, len(content)) + content)

    def _transmit(self):
        while True:
            _magic, _flags, command, cookie, offset, length = (
                self._receive('>IHHQQI'))
            if command == CMD_READ:
                kind = REPLY_OFFSET_DATA
                content = (struct.pack('>Q', offset) +
                           self._read(offset, length))
            elif command == CMD_BLOCK_STATUS:
                kind = REPLY_BLOCK_STATUS
                reply = self._extents(offset, length)
                content = struct.pack(f'>I{len(reply)}I', 1, *reply)
            else:
                return
            self._client.sendall(struct.pack(
                '>IHHQI', 0x668e33ef, FLAG_DONE, kind, cookie,
                len(content)) + content)
