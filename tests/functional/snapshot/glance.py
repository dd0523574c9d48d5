# SPDX-License-Identifier: Apache-2.0
"""A Glance in a process of its own, so that the test's has no part of it.

The id of an image begins with the way that its upload ends, see WAYS. As a
program this module serves on a free port, and prints the port::

    python -m tests.functional.snapshot.glance
"""

import collections
import contextlib
import hashlib
from http import server
import json
import select
import socket
import subprocess
import sys
import typing as ty
import uuid

#: What follows a hyphen in an id is unique.
WAYS = (
    'stored',
    'refused',     # with HTTP 403, after the last byte
    'cut',         # the first attempt, after CUT_AFTER bytes
    'deleted',     # while it uploads: nothing more is read
    'corrupted',   # the digest is of other data
)

CUT_AFTER = 1024 * 1024

# Bytes of an upload that the kernel takes before anything reads them: a client
# has to notice when nothing does.
RECEIVE_BUFFER = 256 * 1024


def image_id(way):
    """Return the id of a new image."""
    if way not in WAYS:
        raise ValueError(way)
    return f'{way}-{uuid.uuid4()}'


class GlanceProcess:
    """The process. A context manager.

    :ivar url: where it serves
    """

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, '-m', __name__], stdout=subprocess.PIPE,
            text=True)
        self.url = f'http://127.0.0.1:{self._process.stdout.readline()}'
        self.url = self.url.strip()
        return self

    def __exit__(self, *_exc):
        self._process.kill()
        self._process.communicate()


class _Handler(server.BaseHTTPRequestHandler):

    protocol_version = 'HTTP/1.1'
    #: Bytes of the data of each image that is stored.
    sizes: ty.ClassVar[dict[str, int]] = {}
    digests: ty.ClassVar[dict[str, str]] = {}
    #: Number of uploads of each image.
    uploads: ty.ClassVar[collections.Counter[str]] = collections.Counter()

    def log_message(self, *_args):
        pass

    def handle(self):
        # A client may close its connection at any time.
        with contextlib.suppress(ConnectionError):
            super().handle()

    @property
    def image(self):
        return self.path.split('/')[3]

    @property
    def way(self):
        return self.image.partition('-')[0]

    def respond(self, status=200, content=b''):
        self.send_response(status)
        self.send_header('Content-Type', 'application/json' if content
                         else 'text/html; charset=UTF-8')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        image = self.image
        if self.way == 'deleted' and self.uploads[image]:
            self.respond(404)
            return
        self.respond(content=json.dumps({
            'id': image, 'name': 'snap', 'size': self.sizes.get(image),
            'status': 'active' if image in self.sizes else 'queued',
            'os_hash_algo': 'sha512',
            'os_hash_value': self.digests.get(image)}).encode())

    def do_PATCH(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.respond(content=b'{}')

    def do_DELETE(self):
        self.respond(204)

    def do_PUT(self):
        self.uploads[self.image] += 1
        digest, size = hashlib.sha512(), 0
        for chunk in self.chunks():
            digest.update(chunk)
            size += len(chunk)
            if size >= CUT_AFTER and (
                    self.way == 'cut' and self.uploads[self.image] == 1):
                self.close_connection = True
                return
            if self.way == 'deleted':
                self.close_connection = True
                # Nothing is read until the client has closed the connection.
                hung_up = select.poll()
                hung_up.register(self.connection, select.POLLRDHUP)
                hung_up.poll()
                return
        if self.way == 'refused':
            self.respond(403)
            return
        if self.way == 'corrupted':
            digest.update(b'other data')
        self.digests[self.image] = digest.hexdigest()
        self.sizes[self.image] = size
        self.respond(204)

    def chunks(self):
        while (line := self.rfile.readline()) != b'0\r\n':
            if not line:
                raise ConnectionResetError()
            yield self.rfile.read(int(line, 16))
            self.rfile.readline()
        self.rfile.readline()


def main():
    glance = server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    glance.socket.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    print(glance.server_port, flush=True)
    glance.serve_forever()


if __name__ == '__main__':
    main()
