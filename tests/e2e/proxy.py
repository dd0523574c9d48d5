# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of Glance that causes faults of uploads."""

import contextlib
import http.client
import http.server
import socket
import threading
import urllib.parse

# Maximum number of bytes that are read, changed and passed on together.
BLOCK_SIZE = 64 * 1024


class Faults:
    """The faults of uploads.

    A list has one item for each upload, the next one first. Further uploads
    are not affected.

    :ivar cut_after: list of numbers of bytes; after so many, the connections
        of the upload are closed
    :ivar hold_after: list of numbers of bytes; after so many, the proxy reads
        no more of the upload until ``release`` is set
    :ivar held: is set while an upload is held
    :ivar release: an event that ends the hold
    :ivar answers: list of status codes that the proxy responds with, without
        Glance
    :ivar corrupt_at: offset of a byte that is changed in every upload
    :ivar before_begin: function that is called with the path of each upload,
        before Glance receives the request
    :ivar before_end: function that is called when all bytes of an upload have
        come, before Glance and the client receive the end of it
    :ivar uploads: number of received bytes of each upload
    """

    def __init__(self, cut_after=(), corrupt_at=None, hold_after=(),
                 answers=(), before_begin=lambda path: None,
                 before_end=lambda: None):
        self.cut_after = list(cut_after)
        self.hold_after = list(hold_after)
        self.held = threading.Event()
        self.release = threading.Event()
        self.answers = list(answers)
        self.corrupt_at = corrupt_at
        self.before_begin = before_begin
        self.before_end = before_end
        self.uploads = []


class GlanceProxy:
    """A context in which the proxy runs, on a free port.

    :param target: URL of the real Glance
    :ivar url: URL of the proxy
    :ivar faults: faults of the uploads that begin from now on
    """

    def __init__(self, target):
        address = urllib.parse.urlsplit(target)
        handler = type('Handler', (_Handler,), {
            'target': (address.hostname, address.port), 'proxy': self})
        self.faults = Faults()
        self._server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), handler)
        # A small buffer: the client of a held upload has to notice the hold.
        # Its own buffer may still take some MiB.
        self._server.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * BLOCK_SIZE)
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_args):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Cut(Exception):
    """The upload was cut off, by the proxy or by the client."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_args):
        """Log nothing."""

    def handle(self):
        # A client may close its connection at any time.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def forward(self):
        upstream = http.client.HTTPConnection(*self.target, timeout=120)
        answers = self.proxy.faults.answers
        try:
            if self.command == 'PUT' and self.path.endswith('/file'):
                if answers:
                    self.refuse(answers.pop(0))
                    return
                self.forward_upload(upstream)
            else:
                length = int(self.headers.get('Content-Length') or 0)
                upstream.request(
                    self.command, self.path, self.rfile.read(length),
                    self.forwarded_headers())
            self.answer(upstream.getresponse())
        except (_Cut, ConnectionError):
            # Both connections end without a response.
            self.close_connection = True
        finally:
            upstream.close()

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = forward

    def forwarded_headers(self):
        return {name: value for name, value in self.headers.items()
                if name.lower() not in ('host', 'connection',
                                        'transfer-encoding')}

    def refuse(self, status):
        """Respond to an upload instead of Glance."""
        # After the last byte: data that arrives on a closed connection could
        # destroy the response on its way.
        self.proxy.faults.uploads.append(sum(map(len, self.blocks())))
        text = b'refused by the test'
        self.send_response(status)
        self.send_header('Content-Type', 'text/plain')
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def forward_upload(self, upstream):
        faults = self.proxy.faults
        cut_after, hold_after = (
            limits.pop(0) if limits else None
            for limits in (faults.cut_after, faults.hold_after))
        faults.uploads.append(0)
        faults.before_begin(self.path)
        upstream.putrequest(self.command, self.path)
        for name, value in self.forwarded_headers().items():
            upstream.putheader(name, value)
        upstream.putheader('Transfer-Encoding', 'chunked')
        upstream.endheaders()
        refused = False
        for block in self.blocks():
            received = faults.uploads[-1]
            if cut_after is not None and received >= cut_after:
                raise _Cut()
            if hold_after is not None and received >= hold_after:
                hold_after = None
                faults.held.set()
                faults.release.wait()
                faults.held.clear()
            block = corrupted(block, received, faults.corrupt_at)
            faults.uploads[-1] += len(block)
            if not refused:
                refused = not sent(
                    upstream, b'%x\r\n%b\r\n' % (len(block), block))
        faults.before_end()
        if not refused:
            sent(upstream, b'0\r\n\r\n')

    def blocks(self):
        """Yield the bytes of an upload, which HTTP sends in chunks."""
        while size := self.chunk_size():
            while size:
                block = self.rfile.read(min(size, BLOCK_SIZE))
                if not block:
                    raise _Cut()
                size -= len(block)
                yield block
            self.rfile.readline()
        self.rfile.readline()

    def chunk_size(self):
        line = self.rfile.readline()
        if not line:
            raise _Cut()
        return int(line, 16)

    def answer(self, response):
        content = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ('connection', 'content-length',
                                    'transfer-encoding'):
                self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def sent(upstream, content):
    """Send content to Glance.

    :returns: whether it was sent; False if Glance has already responded and
        closed the connection
    """
    try:
        upstream.send(content)
    except ConnectionError:
        return False
    return True


def corrupted(block, offset, at):
    """Return a block of an upload with one byte changed.

    :param offset: offset of the block in the upload
    :param at: offset of the byte in the upload; None: change nothing
    """
    if at is None or not offset <= at < offset + len(block):
        return block
    changed = bytearray(block)
    changed[at - offset] ^= 0xff
    return bytes(changed)
