# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a Glance in which the quotas of a project are full."""

from collections.abc import Iterator
import contextlib
import http.server
import json
import threading

ANSWERS = {
    '/v2/images?limit=1': {'images': []},
    '/v2/info/usage': {'usage': {
        'image_count_total': {'limit': 5, 'usage': 5},
        'image_size_total': {'limit': 1000, 'usage': 899}}}}


class _Handler(http.server.BaseHTTPRequestHandler):

    def log_message(self, *_args):
        """Log nothing."""

    def do_GET(self):
        body = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Run it, on a free port.

    :yields: its URL
    """
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}'
        finally:
            server.shutdown()
            thread.join()
