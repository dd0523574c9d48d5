# SPDX-License-Identifier: Apache-2.0
"""A Glance with one image, behind HTTP: for the real clients."""

import hashlib
from http import server
import json
import threading


class HttpGlance(server.ThreadingHTTPServer):
    """Serve one image on a port of its own.

    :ivar requests: method and path of each request, in order
    :ivar connections: number of connections that were accepted
    :ivar refused_tokens: users' tokens that have expired
    :ivar status: of each response to a PUT
    :ivar refusals: for the first responses to a PUT or a DELETE, their codes,
        headers and content
    """

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.requests = []
        self.connections = 0
        self.refused_tokens = set()
        self.status = 204
        self.refusals = []
        self.patch = None
        self.content = b''
        self.thread = threading.Thread(target=self.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_exc):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def get_request(self):
        self.connections += 1
        return super().get_request()


class _Handler(server.BaseHTTPRequestHandler):

    protocol_version = 'HTTP/1.1'

    def log_message(self, *_args):
        pass

    def respond(self, content=b''):
        self.server.requests.append(f'{self.command} {self.path}')
        self.send_response(200 if content else 204)
        self.send_header('Content-Type', 'application/json' if content
                         else 'text/html; charset=UTF-8')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self):
        """Send the next refusal, if there is one."""
        if not self.server.refusals:
            return False
        self.server.requests.append(f'{self.command} {self.path}')
        code, headers, content = self.server.refusals.pop(0)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return True

    def do_DELETE(self):
        if not self.refuse():
            self.respond()

    def do_GET(self):
        if self.headers['X-Auth-Token'] in self.server.refused_tokens:
            self.send_error(401)
            return
        digest = hashlib.sha512(self.server.content).hexdigest()
        self.respond(json.dumps({
            'name': 'old', 'requested': 'backup',
            'status': 'active' if self.server.content else 'queued',
            'size': len(self.server.content),
            'os_hash_algo': 'sha512', 'os_hash_value': digest}).encode())

    def do_PATCH(self):
        self.server.patch = json.loads(
            self.rfile.read(int(self.headers['Content-Length'])))
        self.respond(b'{}')

    def do_PUT(self):
        content = b''
        while length := int(self.rfile.readline(), 16):
            content += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        if self.refuse():
            return
        self.server.content = content
        if self.server.status == 204:
            self.respond()
        else:
            self.server.requests.append(f'{self.command} {self.path}')
            self.send_error(self.server.status)
