# SPDX-License-Identifier: Apache-2.0
"""Connections to Glance that end at once when there is a reason to give up."""

from __future__ import annotations

import contextlib
import socket
import typing as ty

from keystoneauth1 import loading
from keystoneauth1 import service_token
from keystoneauth1 import session as ks_session
from nova import context as nova_context
from nova.image import glance
from nova import utils

from nova_snapext import abort
from nova_snapext import conf

CONF = conf.CONF

# Seconds for a connection to come about, which nothing can interrupt.
CONNECT_TIMEOUT = 20.0

# Of tcp(7); the socket module has it since Python 3.12.
TCP_NOTSENT_LOWAT = 25

# The most bytes that wait in the kernel before they may be sent. Without a
# limit these are megabytes where Glance is slower than the disk, which push
# out of the CPUs' caches what Glance, on the same host, has just been sent:
# it takes 5 % more CPU. What is on its way is not limited by it.
UNSENT = 128 * 1024


class AbortableClient(glance.GlanceClientWrapper):
    """Nova's Glance client, on connections that a switch ends.

    And on which no silence lasts for ever. What fails because the switch has
    tripped raises its cause, which Nova's client does not try again after.
    """

    def __init__(self, switch: abort.Switch):
        super().__init__()
        self._switch = switch
        self._session: ks_session.Session | None = None
        self._service_auth: ty.Any = None

    def _create_onetime_client(self, context: nova_context.RequestContext,
                               version: int) -> ty.Any:
        client = super()._create_onetime_client(context, version)
        # Nova's own is everybody's, and has connections of others.
        client.http_client.session = self._own_session()
        if not utils.concurrency_mode_threading():
            client.http_client.auth = self._own_auth(context)
        return client

    def _own_session(self) -> ks_session.Session:
        if self._session is None:
            self._session = _session(self._switch)
        return self._session

    def _own_auth(self, context: nova_context.RequestContext) -> ty.Any:
        """Give what Nova's service_auth would, but for this client alone.

        The plugin of the service user has a lock, which under eventlet
        greenlets of different native threads can't wait for: the upload is in
        one, and looks at the image in another. Elsewhere Nova's own spares
        Keystone a password for each snapshot.
        """
        user_auth = context.get_auth_plugin()
        if not CONF.service_user.send_service_user_token:
            return user_auth
        if self._service_auth is None:
            self._service_auth = loading.load_auth_from_conf_options(
                CONF, 'service_user')
        return service_token.ServiceTokenAuthWrapper(
            user_auth=user_auth, service_auth=self._service_auth)

    def close(self) -> None:
        """Close its connections, unless something uses them still."""
        if self._session is not None:
            self._session.session.close()


def _session(switch: abort.Switch) -> ks_session.Session:
    """Make a session as the [glance] options want it, with a switch."""
    session = loading.load_session_from_conf_options(CONF, 'glance')
    if session.timeout is None:
        session.timeout = CONF.snapext.upload_stall_timeout
    for scheme, adapter in list(session.session.adapters.items()):
        session.session.mount(scheme, _Adapter(switch, adapter))
    return session


class _Adapter(ks_session.TCPKeepAliveAdapter):
    """keystoneauth's adapter, with a switch for its connections."""

    def __init__(self, switch: abort.Switch,
                 original: object):
        self._switch = switch
        # These came with keystoneauth1 5.14.
        super().__init__(**{
            name: getattr(original, name)
            for name in ('tls_ciphers', 'tls_min_version')
            if hasattr(original, name)})

    def init_poolmanager(self, *args: ty.Any, **kwargs: ty.Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._take_over(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: ty.Any) -> ty.Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            self._take_over(manager)
        return manager

    def _take_over(self, manager: ty.Any) -> None:
        manager.pool_classes_by_scheme = {
            scheme: _with_switch(pool, self._switch)
            for scheme, pool in manager.pool_classes_by_scheme.items()}

    def send(self, *args: ty.Any, **kwargs: ty.Any) -> ty.Any:
        self._switch.check()
        with self._switch.in_charge():
            return super().send(*args, **kwargs)


def _with_switch(pool: ty.Any, switch: abort.Switch) -> ty.Any:
    """Derive a class of connection pools whose connections a switch ends.

    :param pool: urllib3's class
    """

    class Connection(pool.ConnectionCls):
        timeout: float | None
        _abortable: contextlib.ExitStack | None = None

        def _new_conn(self) -> socket.socket:
            # The timeout of connecting is the one of each sending too.
            patience, self.timeout = self.timeout, _shorter(self.timeout)
            try:
                connected: socket.socket = super()._new_conn()
            finally:
                self.timeout = patience
            connected.settimeout(patience)
            connected.setsockopt(
                socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT)
            self._abortable = _abortable(connected, switch)
            return connected

        def close(self) -> None:
            super().close()
            if self._abortable is not None:
                self._abortable.close()

    return type(pool.__name__, (pool,), {'ConnectionCls': Connection})


def _shorter(timeout: float | None) -> float:
    return CONNECT_TIMEOUT if timeout is None else min(timeout,
                                                       CONNECT_TIMEOUT)


def _abortable(connected: socket.socket,
               switch: abort.Switch) -> contextlib.ExitStack:
    """Have a connection shut down when a switch trips.

    :returns: what to close with the connection
    """
    with contextlib.ExitStack() as stack:
        # A descriptor of its own: TLS takes the connection's over, and must
        # not be met in the middle of something.
        own = stack.enter_context(connected.dup())

        def shut_down() -> None:
            with contextlib.suppress(OSError):
                own.shutdown(socket.SHUT_RDWR)

        stack.enter_context(switch.on_trip(shut_down))
        return stack.pop_all()
