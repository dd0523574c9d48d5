# SPDX-License-Identifier: Apache-2.0
"""A Glance that fails: a proxy before the real one."""

import contextlib
import http.client
import http.server
import socket
import threading
import urllib.parse

# Bytes that are passed on at once.
PIECE = 64 * 1024


class Faults:
    """What happens to uploads on their way.

    :ivar cut_after: numbers of bytes, one an upload, after which it is cut
        off; uploads after the last of them go through
    :ivar hold_after: numbers of bytes, one an upload, after which no more of
        it is taken until ``release`` is set; uploads after the last of them
        are not held
    :ivar held: set while one is held
    :ivar answers: status codes, one an upload, by which it is answered in
        Glance's stead; uploads after the last of them come to Glance
    :ivar corrupt_at: offset of a byte that arrives as another one, in every
        upload
    :ivar before_begin: called with the path of each upload, before Glance is
        told of it
    :ivar before_end: called when an upload is through, before Glance and the
        client are told
    :ivar uploads: how many bytes of each upload came in
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
    """Serves on a port of its own, until it is closed.

    :param target: URL of the real Glance
    :ivar faults: what happens to the uploads that begin from now on
    """

    def __init__(self, target):
        address = urllib.parse.urlsplit(target)
        handler = type('Handler', (_Handler,), {
            'target': (address.hostname, address.port), 'proxy': self})
        self.faults = Faults()
        self._server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), handler)
        # A small one: whoever is held is to notice. The client's own may hold
        # some MiB still.
        self._server.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * PIECE)
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
    pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_args):
        """Say nothing."""

    def handle(self):
        # Clients that are done, or give up, need not say so.
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
                    self.passed_on())
            self.answer(upstream.getresponse())
        except (_Cut, ConnectionError):
            # Neither side is told: the connections end. Or one has ended.
            self.close_connection = True
        finally:
            upstream.close()

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = forward

    def passed_on(self):
        return {name: value for name, value in self.headers.items()
                if name.lower() not in ('host', 'connection',
                                        'transfer-encoding')}

    def refuse(self, status):
        """Answer an upload in Glance's stead."""
        # When it is through: what is sent to a connection that is closed can
        # lose the answer.
        self.proxy.faults.uploads.append(sum(map(len, self.pieces())))
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
        for name, value in self.passed_on().items():
            upstream.putheader(name, value)
        upstream.putheader('Transfer-Encoding', 'chunked')
        upstream.endheaders()
        refused = False
        for piece in self.pieces():
            received = faults.uploads[-1]
            if cut_after is not None and received >= cut_after:
                raise _Cut()
            if hold_after is not None and received >= hold_after:
                hold_after = None
                faults.held.set()
                faults.release.wait()
                faults.held.clear()
            piece = corrupted(piece, received, faults.corrupt_at)
            faults.uploads[-1] += len(piece)
            if not refused:
                refused = not sent(
                    upstream, b'%x\r\n%b\r\n' % (len(piece), piece))
        faults.before_end()
        if not refused:
            sent(upstream, b'0\r\n\r\n')

    def pieces(self):
        while size := self.chunk_size():
            while size:
                piece = self.rfile.read(min(size, PIECE))
                if not piece:
                    raise _Cut()
                size -= len(piece)
                yield piece
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
    """Send to Glance, unless it has answered and closed the connection."""
    try:
        upstream.send(content)
    except ConnectionError:
        return False
    return True


def corrupted(piece, offset, at):
    """Change the byte at an offset of an upload, if it is in this piece."""
    if at is None or not offset <= at < offset + len(piece):
        return piece
    changed = bytearray(piece)
    changed[at - offset] ^= 0xff
    return bytes(changed)
