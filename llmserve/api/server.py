"""uvicorn around the application, with an orderly end.

The first SIGTERM or SIGINT drains: new requests get 503, running ones may finish within the
grace period, then the process exits with 0. The second signal cuts the grace period short, the
third waits for nothing.
"""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn

from llmserve.api.app import create_app
from llmserve.api.http.connection import Connection
from llmserve.api.http.connection_limits import Admission, allowed_connections
from llmserve.auth.keyring import check_exposure
from llmserve.errors import ConfigError
from llmserve.gateway import Gateway

log = logging.getLogger(__name__)

_FLUSH_S = 2  # for the last bytes of cancelled answers
_BACKLOG = 2048  # connections that the kernel holds for us; uvicorn's default


def serve(gateway: Gateway, *, insecure_no_auth: bool = False) -> None:
    """Run until a signal ends the server.

    Raises `ConfigError` if the address is not free, or is open to others and no key is asked for.
    """
    server = gateway.config.server
    with listen(server.host, server.port) as listener:
        check_exposure(  # of the address itself: what a name or "" means only the system knows
            listener.getsockname()[0],
            has_keys=not gateway.keyring.is_open,
            is_insecure_meant=insecure_no_auth,
        )
        Server(gateway, listener).run()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: clients that come before the application is up wait in its queue."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named, which `create_server` does not:
    # every answer on a kept connection would wait 40 ms for the client's delayed ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_who_vanished(listener)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that no name can be
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from error
    return listener


def _notice_who_vanished(listener: socket.socket) -> None:
    """Its connections end some 90 s after their client lost its network or its power.

    Nothing else tells while an answer is computed and nothing is sent.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Server(uvicorn.Server):
    def __init__(self, gateway: Gateway, listener: socket.socket) -> None:
        server = gateway.config.server
        self.admission = Admission(allowed_connections(server.max_connections))
        config = uvicorn.Config(
            create_app(gateway),
            http=functools.partial(Connection, self.admission, server),  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=_FLUSH_S,
        )
        super().__init__(config)
        self._gateway = gateway
        self._listener = listener
        self._ending: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None  # held, or it could be collected

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets is None
        await super().serve([self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self._listener.getsockname()[:2]
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again at the end, which makes the exit code 143.
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        yield

    def _on_signal(self) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
            # Not at the task's end: the second signal may cancel it before it begins.
            self._ending.add_done_callback(self._on_ended)
        elif not self._ending.cancel():  # it has ended: only uvicorn still waits
            self.force_exit = True

    def _on_hangup(self) -> None:
        self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        try:
            await self._gateway.reload()
        except ConfigError as error:
            log.error("not reloaded, nothing has changed: %s", error.message)

    async def _end(self) -> None:
        grace_s = self._gateway.config.server.shutdown_grace_s
        log.info("shutting down: running requests may go on for %.0f s", grace_s)
        try:
            await self._gateway.drain(grace_s)
        finally:
            await self._gateway.close()

    def _on_ended(self, ending: asyncio.Task[None]) -> None:
        self.should_exit = True
        if not ending.cancelled() and (error := ending.exception()):
            log.error("the shutdown failed", exc_info=error)
