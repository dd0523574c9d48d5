# SPDX-License-Identifier: Apache-2.0

import contextlib
import datetime
import gc
import ipaddress
import pathlib
import socket
import ssl
import subprocess
import sys
import threading
from unittest import mock
import weakref

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography import x509
from cryptography.x509 import oid
import fixtures
from keystoneauth1 import exceptions as ks_exceptions
from nova import context as nova_context
from nova.image import glance as nova_glance
from nova import service_auth

from nova_snapext import cancel
from nova_snapext import compat
from nova_snapext.upload import connection
from tests import concurrency
from tests.unit import base
from tests.unit.upload import http_glance

CHUNK = bytes(128 * 1024)


# In a process of its own, because eventlet's patches can't be undone. As in
# nova-compute, a native thread uploads, and a green thread cancels.
UPLOAD = """
from nova_snapext import cancel
from nova_snapext import compat
from nova_snapext import conf
from nova_snapext.upload import connection
import sys
import threading

conf.CONF([], default_config_files=[])
token = cancel.CancelToken()

def cancel_upload():
    # The test has seen that the server receives no more.
    compat.tpool_wrap(sys.stdin.readline)()
    token.cancel(ZeroDivisionError())

def body():
    while True:
        yield bytes(128 * 1024)

def put(url):
    session = connection.cancellable_session(token)
    try:
        session.put(url, data=body(), authenticated=False)
    except ZeroDivisionError as error:
        return type(error).__name__

thread = threading.Thread(target=cancel_upload)
thread.start()
print(compat.tpool_wrap(put)(sys.argv[1]))
thread.join()
"""


class SnapshotAborted(Exception):
    pass


class Server:
    """Receives data, and never responds.

    :param limit: bytes to receive until ``silent`` is set
    :ivar ended: set when the client has shut the connection down
    """

    def __init__(self, limit, context=None):
        self.limit = limit
        self.context = context
        self.silent = threading.Event()
        self.ended = threading.Event()
        self.connections = 0
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.thread = threading.Thread(target=self.serve)

    def __enter__(self):
        self.thread.start()
        scheme = 'https' if self.context else 'http'
        self.url = f'{scheme}://127.0.0.1:{self.listener.getsockname()[1]}'
        return self

    def __exit__(self, *_args):
        self.listener.shutdown(socket.SHUT_RDWR)
        # A green thread does not notice that its socket is closed.
        self.thread.join()
        self.listener.close()

    def serve(self):
        while True:
            try:
                accepted, _address = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError), accepted:
                self.receive(accepted)

    def receive(self, accepted):
        left = self.limit
        while left > 0:
            left -= len(accepted.recv(left))
        self.silent.set()
        while accepted.recv(len(CHUNK)):
            pass
        self.ended.set()


class StalledServer(Server):
    """Receives some bytes, and then no more."""

    def receive(self, accepted):
        with (self.context.wrap_socket(accepted, server_side=True)
              if self.context else accepted) as served:
            served.recv(self.limit)
            self.silent.set()
            self.ended.wait()


class RefusingServer(Server):
    """Responds to the head of a request, and closes the connection.

    In a native thread: a green one would do both while the client does not
    run, which would find no connection.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.thread = cancel.native_threading().Thread(target=self.serve)

    def receive(self, accepted):
        with (self.context.wrap_socket(accepted, server_side=True)
              if self.context else accepted) as served:
            head = b''
            while b'\r\n\r\n' not in head:
                head += served.recv(self.limit)
            served.sendall(b'HTTP/1.1 413 Too Large\r\n'
                           b'Content-Length: 0\r\nConnection: close\r\n\r\n')


class ConnectionTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.token = cancel.CancelToken()
        self.flags(upload_stall_timeout=60, group='snapext')

    def session(self):
        session = connection.cancellable_session(self.token)
        self.addCleanup(session.session.close)
        return session

    def put(self, server, session=None, sent=None):
        def body():
            while True:
                if sent is not None:
                    sent.append(CHUNK)
                yield CHUNK

        (session or self.session()).put(server.url, data=body(),
                                        authenticated=False)

    def cancel_when(self, event):
        def wait_and_cancel():
            event.wait()
            self.token.cancel(SnapshotAborted())

        thread = threading.Thread(target=wait_and_cancel)
        thread.start()
        self.addCleanup(thread.join)

    def stalled(self, context=None):
        server = self.enterContext(StalledServer(len(CHUNK), context))
        self.addCleanup(server.ended.set)
        return server

    def test_closed_session_leaves_no_connection_though_an_error_stays(self):
        server = self.enterContext(http_glance.HttpGlance())
        session = self.session()
        session.get(f'{server.url}/v2/images/i', authenticated=False)
        # An error refers to the pool in the same way.
        pools = session.session.get_adapter(server.url).poolmanager.pools
        [pool] = map(pools.get, pools.keys())
        self.assertEqual(1, len(self.token._callbacks))
        session.session.close()
        self.assertEqual([], self.token._callbacks)
        self.assertEqual(1, pool.num_connections)

    def test_closed_session_keeps_no_token(self):
        # The collector would free it too, some time later, and with it all
        # that its cause refers to.
        gc.disable()
        self.addCleanup(gc.enable)
        server = self.enterContext(http_glance.HttpGlance())
        token = cancel.CancelToken()
        session = connection.cancellable_session(token)
        session.get(f'{server.url}/v2/images/i', authenticated=False)
        session.session.close()
        found = weakref.ref(token)
        del token, session
        self.assertIsNone(found())

    def test_cancelled_upload_that_glance_does_not_receive_raises_cause(self):
        server = self.stalled()
        self.cancel_when(server.silent)
        self.assertRaises(SnapshotAborted, self.put, server)

    def test_cancelled_wait_for_response_raises_cause(self):
        server = self.enterContext(Server(10))
        self.cancel_when(server.silent)
        self.assertRaises(SnapshotAborted, self.session().get, server.url,
                          authenticated=False)

    def test_cancellation_shuts_connection_down(self):
        server = self.enterContext(Server(10))
        self.cancel_when(server.silent)
        self.assertRaises(SnapshotAborted, self.session().get, server.url,
                          authenticated=False)
        self.assertTrue(server.ended.wait(60))

    def test_cancelled_token_prevents_new_connection(self):
        server = self.enterContext(Server(10))
        self.token.cancel(SnapshotAborted())
        self.assertRaises(SnapshotAborted, self.put, server)
        self.assertEqual(0, server.connections)

    def test_cancelled_tls_connection_ends_within_record(self):
        context, certificate = self.tls_context()
        server = self.stalled(context)
        self.cancel_when(server.silent)
        session = self.session()
        session.verify = certificate
        self.assertRaises(SnapshotAborted, self.put, server, session)

    def test_cancelled_upload_ends_in_both_concurrency_modes(self):
        for backend in concurrency.BACKENDS:
            server = self.stalled()
            process = self.enterContext(subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c',
                 concurrency.beginning(backend) + UPLOAD, server.url],
                text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE))
            server.silent.wait()
            self.assertEqual('ZeroDivisionError\n',
                             process.communicate('\n', timeout=60)[0])

    def test_refusal_of_an_upload_is_read_before_its_end(self):
        for context, certificate in ((None, True), self.tls_context()):
            server = self.enterContext(RefusingServer(len(CHUNK), context))
            session = self.session()
            session.verify = certificate
            # A kernel that closes the connection may drop the response that
            # it has not sent yet. An upload is tried several times, too.
            for _attempt in range(20):
                try:
                    self.put(server, session)
                except ks_exceptions.RequestEntityTooLarge:
                    break
                except ks_exceptions.ConnectFailure:
                    continue
            else:
                self.fail('no response was read')

    def test_stalled_upload_times_out(self):
        self.flags(upload_stall_timeout=1, group='snapext')
        self.assertRaises(ks_exceptions.ConnectFailure, self.put,
                          self.stalled())

    def test_stalled_upload_buffers_little_in_kernel(self):
        self.flags(upload_stall_timeout=1, group='snapext')
        server, sent = self.stalled(), []
        # A small receive buffer at the other end.
        server.listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, len(CHUNK))
        self.assertRaises(ks_exceptions.ConnectFailure, self.put, server,
                          sent=sent)
        self.assertLess(len(sent), 8)

    def test_missing_response_times_out(self):
        self.flags(upload_stall_timeout=1, group='snapext')
        server = self.enterContext(Server(10))
        self.assertRaises(ks_exceptions.ConnectTimeout, self.session().get,
                          server.url, authenticated=False)

    def test_timeout_of_glance_options_has_precedence(self):
        self.flags(timeout=7, group='glance')
        self.assertEqual(7, self.session().timeout)

    def test_ended_connection_leaves_no_callback(self):
        server = self.enterContext(Server(10))
        self.cancel_when(server.silent)
        session = self.session()
        self.assertRaises(SnapshotAborted, session.get, server.url,
                          authenticated=False)
        self.assertEqual([], self.token._callbacks)

    def tls_context(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, 'g')])
        now = datetime.datetime.now(datetime.UTC)
        certificate = x509.CertificateBuilder(
            name, name, key.public_key(), 1, now,
            now + datetime.timedelta(days=1)).add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]),
                critical=False).sign(key, hashes.SHA256())
        (directory / 'pem').write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption()) +
            certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / 'pem')
        return context, str(directory / 'pem')


class AuthTest(base.TestCase):
    """The authentication of one client alone."""

    def setUp(self):
        super().setUp()
        self.context = nova_context.RequestContext(
            'user', 'project', auth_token='token')
        self.load = self.useFixture(fixtures.MockPatchObject(
            connection.loading, 'load_auth_from_conf_options')).mock

    def auth(self, client):
        return client._own_auth(self.context)

    def test_service_token_is_sent_if_nova_sends_it(self):
        self.flags(send_service_user_token=True, group='service_user')
        self.load.return_value.get_token.return_value = 'service'
        client = connection.CancellableClient(cancel.CancelToken())
        self.assertEqual('token', self.auth(client).get_token(None))
        self.assertEqual(
            {'X-Auth-Token': 'token', 'X-Service-Token': 'service'},
            self.auth(client).get_headers(mock.Mock()))
        self.load.assert_called_once()

    def test_service_token_is_not_sent_if_nova_does_not(self):
        self.flags(send_service_user_token=False, group='service_user')
        client = connection.CancellableClient(cancel.CancelToken())
        self.assertEqual('token', self.auth(client).get_token(None))
        self.load.assert_not_called()

    def test_missing_service_user_sends_user_s_token_as_nova_does(self):
        self.flags(send_service_user_token=True, group='service_user')
        self.load.return_value = None
        client = connection.CancellableClient(cancel.CancelToken())
        self.assertEqual('token', self.auth(client).get_token(None))

    def test_lock_that_a_request_of_nova_holds_is_not_waited_for(self):
        self.flags(send_service_user_token=True, group='service_user')
        self.flags(api_servers=['http://glance'], group='glance')
        self.addCleanup(service_auth.reset_globals)
        self.load.side_effect = lambda *_args, **_group: object()
        client = connection.CancellableClient(cancel.CancelToken())
        for is_threading in (True, False):
            with mock.patch.object(compat, 'concurrency_mode_threading',
                                   return_value=is_threading):
                auth = client._create_onetime_client(
                    self.context, 2).http_client.auth
            self.assertIsNot(
                nova_glance._session_and_auth(self.context)[1].service_auth,
                auth.service_auth)

    def test_clients_do_not_share_service_plugin_and_its_lock(self):
        self.flags(send_service_user_token=True, group='service_user')
        self.load.side_effect = lambda *_args: object()
        self.assertIsNot(*(
            self.auth(connection.CancellableClient(
                cancel.CancelToken())).service_auth
            for _client in range(2)))
