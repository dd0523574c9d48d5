# SPDX-License-Identifier: Apache-2.0
"""Connections to Glance that end as soon as a snapshot is cancelled."""

from __future__ import annotations

import contextlib
import errno
import functools
import http
import socket
import ssl
import typing as ty

import glanceclient.exc
from keystoneauth1 import exceptions as ks_exceptions
from keystoneauth1 import loading
from keystoneauth1 import service_token
from keystoneauth1 import session as ks_session
from nova import context as nova_context
from nova.image import glance

from nova_snapext import cancel
from nova_snapext import conf
from nova_snapext.upload import service_login

CONF = conf.CONF

# Seconds to connect. Nothing can interrupt an attempt to connect.
CONNECT_TIMEOUT = 20.0

# See tcp(7). The socket module defines it since Python 3.12.
TCP_NOTSENT_LOWAT = 25

# Maximum of bytes in the kernel that may not be sent yet. Without a limit,
# megabytes wait there if Glance is slower than the disk, and push out of the
# CPU caches the data that a Glance on the same host has just received: that
# takes 5 % more CPU. Bytes in flight are not limited by it.
UNSENT = 128 * 1024


class CancellableClient(glance.GlanceClientWrapper):
    """Nova's Glance client, with connections that a CancelToken closes.

    None of them waits indefinitely for Glance. A request that fails because
    of the token raises the token's cause, and Nova's client does not retry
    that.
    """

    def __init__(self, token: cancel.CancelToken):
        super().__init__()
        self._token = token
        self._session: ks_session.Session | None = None
        self._service_auth: ty.Any = None

    def _create_onetime_client(self, context: nova_context.RequestContext,
                               version: int) -> ty.Any:
        client = super()._create_onetime_client(context, version)
        # All of Nova shares Nova's session, and its connections.
        client.http_client.session = self._own_session()
        client.http_client.auth = self._own_auth(context)
        return client

    def call(self, *args: ty.Any, **kwargs: ty.Any) -> ty.Any:
        # requests reads a response when its adapter has returned it.
        with self._token.prefer_cause():
            return super().call(*args, **kwargs)

    def _own_session(self) -> ks_session.Session:
        if self._session is None:
            self._session = cancellable_session(self._token)
        return self._session

    def _own_auth(self, context: nova_context.RequestContext) -> ty.Any:
        """Return the same as Nova's service_auth, but for this client alone.

        See :class:`service_login.ServiceLogin`.
        """
        user_auth = context.get_auth_plugin()
        if not CONF.service_user.send_service_user_token:
            return user_auth
        if self._service_auth is None:
            self._service_auth = service_login.load()
        if self._service_auth is None:
            # [service_user]auth_type is not set. Nova has logged that.
            return user_auth
        return service_token.ServiceTokenAuthWrapper(
            user_auth=user_auth, service_auth=self._service_auth)

    def close(self) -> None:
        """Close its connections, except those still in use."""
        if self._session is not None:
            self._session.session.close()


def cancellable_session(token: cancel.CancelToken,
                        group: str = 'glance') -> ks_session.Session:
    """Create a session that a token cancels.

    :param group: of the options: ``glance`` or ``service_user``
    """
    session = loading.load_session_from_conf_options(CONF, group)
    if session.timeout is None:
        session.timeout = CONF.snapext.upload_stall_timeout
    for scheme, adapter in list(session.session.adapters.items()):
        session.session.mount(scheme, _Adapter(token, adapter))
    return session


class _Adapter(ks_session.TCPKeepAliveAdapter):
    """keystoneauth's adapter, with connections that a token closes."""

    def __init__(self, token: cancel.CancelToken,
                 original: object):
        self._token = token
        # keystoneauth1 has these since 5.14.
        super().__init__(**{
            name: getattr(original, name)
            for name in ('tls_ciphers', 'tls_min_version')
            if hasattr(original, name)})

    def init_poolmanager(self, *args: ty.Any, **kwargs: ty.Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._make_cancellable(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: ty.Any) -> ty.Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            self._make_cancellable(manager)
        return manager

    def close(self) -> None:
        """Close its connections, except those still in use."""
        # requests drops the pools. urllib3 closes their connections when
        # nothing refers to a pool any more, but errors do.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in tuple(manager.pools.keys()):
                manager.pools[key].close()
        super().close()

    def _make_cancellable(self, manager: ty.Any) -> None:
        manager.pool_classes_by_scheme = {
            scheme: functools.partial(_cancellable_pool(pool), self._token)
            for scheme, pool in manager.pool_classes_by_scheme.items()}

    def send(self, *args: ty.Any, **kwargs: ty.Any) -> ty.Any:
        self._token.raise_if_cancelled()
        with self._token.prefer_cause():
            response = super().send(*args, **kwargs)
            if response.status_code == http.HTTPStatus.GATEWAY_TIMEOUT:
                # A proxy has waited for too long. python-glanceclient has no
                # class for this, and it tells no more than no response.
                response.close()
                raise ks_exceptions.ConnectTimeout(
                    f'504 {response.reason}: {response.url}')
            if not response.ok:
                _make_readable(response)
            return response


def _make_readable(response: ty.Any) -> None:
    """Let python-glanceclient read an error of a proxy in front of Glance.

    It fails at JSON and at content types that no service of OpenStack sends.
    A code that it has no class for is treated as the first one of its
    hundred: RFC 9110, 15. After too many requests a later one succeeds.
    """
    code = response.status_code
    if code == http.HTTPStatus.TOO_MANY_REQUESTS:
        response.status_code = http.HTTPStatus.SERVICE_UNAVAILABLE
    elif type(glanceclient.exc.from_response(response)) is (
            glanceclient.exc.HTTPException):
        response.status_code = code // 100 * 100
    try:
        glanceclient.exc.from_response(response, response.content)
    except (AttributeError, KeyError, TypeError, ValueError):
        response.headers['Content-Type'] = 'text/plain; charset=utf-8'
        response._content = response.text.encode()


# A class refers to itself, and only the garbage collector frees it: with one
# for each token, it would keep the token and all that this refers to.
@functools.cache
def _cancellable_pool(pool: ty.Any) -> ty.Any:
    """Derive a class of connection pools with connections a token closes.

    :param pool: urllib3's class
    :returns: a class with the token as an additional first argument
    """

    class Connection(pool.ConnectionCls):
        timeout: float | None
        _on_close: contextlib.ExitStack | None = None

        def __init__(self, token: cancel.CancelToken, *args: ty.Any,
                     **kwargs: ty.Any) -> None:
            self._token = token
            super().__init__(*args, **kwargs)

        def _new_conn(self) -> socket.socket:
            # urllib3 uses one timeout to connect and to send.
            timeout, self.timeout = self.timeout, _shorter(self.timeout)
            try:
                connected: socket.socket = super()._new_conn()
            finally:
                self.timeout = timeout
            connected.settimeout(timeout)
            connected.setsockopt(
                socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT)
            self._on_close = _shut_down_on_cancel(connected, self._token)
            return connected

        def send(self, data: ty.Any) -> None:
            try:
                super().send(data)
            except ssl.SSLEOFError as error:
                # Of a server that has closed the connection, as Glance does
                # when it refuses an image before its end. After a
                # BrokenPipeError urllib3 reads the response, as it does
                # without TLS.
                raise BrokenPipeError(errno.EPIPE, str(error)) from error

        def close(self) -> None:
            super().close()
            if self._on_close is not None:
                self._on_close.close()

    class Pool(pool):
        def __init__(self, token: cancel.CancelToken, *args: ty.Any,
                     **kwargs: ty.Any) -> None:
            self.ConnectionCls = functools.partial(Connection, token)
            super().__init__(*args, **kwargs)

    return Pool


def _shorter(timeout: float | None) -> float:
    return CONNECT_TIMEOUT if timeout is None else min(timeout,
                                                       CONNECT_TIMEOUT)


def _shut_down_on_cancel(connected: socket.socket,
                         token: cancel.CancelToken) -> contextlib.ExitStack:
    """Shut a connection down when a token is cancelled.

    :returns: must be closed with the connection
    """
    with contextlib.ExitStack() as stack:
        # A duplicate, as TLS takes over the connection's own descriptor, and
        # must not be interrupted in the middle of a call.
        duplicate = stack.enter_context(connected.dup())

        def shut_down() -> None:
            with contextlib.suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)

        stack.enter_context(token.on_cancel(shut_down))
        return stack.pop_all()
