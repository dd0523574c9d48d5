# SPDX-License-Identifier: Apache-2.0

import contextlib
import datetime
import ipaddress
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import threading

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography import x509
from cryptography.x509 import oid
import fixtures
from keystoneauth1 import exceptions as ks_exceptions
from nova import context as nova_context

from nova_snapext import abort
from nova_snapext.upload import connection
from tests.unit import base

PIECE = bytes(128 * 1024)


# In a process of its own: eventlet's patches are for good. What uploads is a
# native thread there, as in nova-compute, and what trips a green one.
TRIP = """
from nova import monkey_patch
monkey_patch.patch(backend={backend!r})
import sys
import threading
from nova import utils
from nova_snapext import abort
from nova_snapext import conf
from nova_snapext.upload import connection

conf.CONF([], default_config_files=[])
switch = abort.Switch()

def trip():
    # The server has told that it takes no more.
    utils.tpool_wrap(sys.stdin.readline)()
    switch.trip(ZeroDivisionError())

def body():
    while True:
        yield bytes(128 * 1024)

def put(url):
    session = connection._session(switch)
    try:
        session.put(url, data=body(), authenticated=False)
    except ZeroDivisionError as error:
        return type(error).__name__

thread = threading.Thread(target=trip)
thread.start()
print(utils.tpool_wrap(put)(sys.argv[1]))
thread.join()
"""


class GivenUp(Exception):
    pass


class Server:
    """Takes what is sent, and never answers.

    :ivar silent: set when it has taken so many bytes
    :ivar ended: set when the client has shut the connection down
    """

    def __init__(self, takes, context=None):
        self.takes = takes
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
        self.listener.close()
        self.thread.join()

    def serve(self):
        while True:
            try:
                taken, _address = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError), taken:
                self.take(taken)

    def take(self, taken):
        left = self.takes
        while left > 0:
            left -= len(taken.recv(left))
        self.silent.set()
        while taken.recv(len(PIECE)):
            pass
        self.ended.set()


class StalledServer(Server):
    """Takes some bytes of what is sent, and then no more of it."""

    def take(self, taken):
        with (self.context.wrap_socket(taken, server_side=True)
              if self.context else taken) as served:
            served.recv(self.takes)
            self.silent.set()
            self.ended.wait()


class ConnectionTest(base.TestCase):

    def setUp(self):
        super().setUp()
        self.switch = abort.Switch()
        self.flags(upload_stall_timeout=60, group='snapext')

    def session(self):
        session = connection._session(self.switch)
        self.addCleanup(session.session.close)
        return session

    def put(self, server, session=None, taken=None):
        def body():
            while True:
                if taken is not None:
                    taken.append(PIECE)
                yield PIECE

        (session or self.session()).put(server.url, data=body(),
                                        authenticated=False)

    def trip_when(self, event):
        def trip():
            event.wait()
            self.switch.trip(GivenUp())

        thread = threading.Thread(target=trip)
        thread.start()
        self.addCleanup(thread.join)

    def stalled(self, context=None):
        server = self.enterContext(StalledServer(len(PIECE), context))
        self.addCleanup(server.ended.set)
        return server

    def test_an_upload_that_glance_does_not_take_ends_with_the_cause(self):
        server = self.stalled()
        self.trip_when(server.silent)
        self.assertRaises(GivenUp, self.put, server)

    def test_an_answer_that_does_not_come_is_not_waited_for(self):
        server = self.enterContext(Server(10))
        self.trip_when(server.silent)
        self.assertRaises(GivenUp, self.session().get, server.url,
                          authenticated=False)

    def test_the_other_end_is_told(self):
        server = self.enterContext(Server(10))
        self.trip_when(server.silent)
        self.assertRaises(GivenUp, self.session().get, server.url,
                          authenticated=False)
        self.assertTrue(server.ended.wait(60))

    def test_nothing_is_sent_once_it_has_tripped(self):
        server = self.enterContext(Server(10))
        self.switch.trip(GivenUp())
        self.assertRaises(GivenUp, self.put, server)
        self.assertEqual(0, server.connections)

    def test_tls_is_ended_too_in_the_middle_of_a_record(self):
        context, certificate = self.tls_context()
        server = self.stalled(context)
        self.trip_when(server.silent)
        session = self.session()
        session.verify = certificate
        self.assertRaises(GivenUp, self.put, server, session)

    def test_it_ends_in_both_of_nova_s_modes(self):
        environment = {name: value for name, value in os.environ.items()
                       if name != 'OS_NOVA_DISABLE_EVENTLET_PATCHING'}
        for backend in ('threading', 'eventlet'):
            server = self.stalled()
            process = self.enterContext(subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c',
                 TRIP.format(backend=backend), server.url], text=True,
                env=environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE))
            server.silent.wait()
            self.assertEqual('ZeroDivisionError\n',
                             process.communicate('\n', timeout=60)[0])

    def test_a_stalled_upload_breaks_off_by_itself(self):
        self.flags(upload_stall_timeout=1, group='snapext')
        self.assertRaises(ks_exceptions.ConnectFailure, self.put,
                          self.stalled())

    def test_little_waits_in_the_kernel_before_it_may_be_sent(self):
        self.flags(upload_stall_timeout=1, group='snapext')
        server, taken = self.stalled(), []
        # The other end has no room for more.
        server.listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, len(PIECE))
        self.assertRaises(ks_exceptions.ConnectFailure, self.put, server,
                          taken=taken)
        self.assertLess(len(taken), 8)

    def test_an_answer_that_does_not_come_in_time_is_given_up(self):
        self.flags(upload_stall_timeout=1, group='snapext')
        server = self.enterContext(Server(10))
        self.assertRaises(ks_exceptions.ConnectTimeout, self.session().get,
                          server.url, authenticated=False)

    def test_nova_s_own_timeout_of_glance_counts_where_it_is_set(self):
        self.flags(timeout=7, group='glance')
        self.assertEqual(7, self.session().timeout)

    def test_a_closed_session_leaves_nothing_to_shut_down(self):
        server = self.enterContext(Server(10))
        self.trip_when(server.silent)
        session = self.session()
        self.assertRaises(GivenUp, session.get, server.url,
                          authenticated=False)
        self.assertEqual([], self.switch._callbacks)

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
    """A client's own authentication."""

    def setUp(self):
        super().setUp()
        self.context = nova_context.RequestContext(
            'user', 'project', auth_token='token')
        self.load = self.useFixture(fixtures.MockPatchObject(
            connection.loading, 'load_auth_from_conf_options')).mock

    def auth(self, client):
        return client._own_auth(self.context)

    def test_the_service_s_token_is_sent_where_nova_sends_it(self):
        self.flags(send_service_user_token=True, group='service_user')
        client = connection.AbortableClient(abort.Switch())
        self.assertIs(self.load.return_value, self.auth(client).service_auth)
        self.assertEqual('token', self.auth(client).get_token(None))
        self.load.assert_called_once()

    def test_it_is_not_sent_where_nova_does_not(self):
        self.flags(send_service_user_token=False, group='service_user')
        client = connection.AbortableClient(abort.Switch())
        self.assertEqual('token', self.auth(client).get_token(None))
        self.load.assert_not_called()

    def test_no_two_clients_share_a_lock(self):
        self.flags(send_service_user_token=True, group='service_user')
        self.load.side_effect = lambda *_args: object()
        self.assertIsNot(*(
            self.auth(connection.AbortableClient(abort.Switch())).service_auth
            for _client in range(2)))
