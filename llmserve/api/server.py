"""uvicorn around the application, with an orderly end.

The first SIGTERM or SIGINT drains: new requests get 503, running ones may finish within the
grace period, then the process exits with 0. The second signal cuts the grace period short.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator

import uvicorn

from llmserve.api.app import create_app
from llmserve.gateway import Gateway

log = logging.getLogger(__name__)

_FLUSH_S = 2  # for the last bytes of cancelled answers


def serve(gateway: Gateway) -> None:
    """Run until a signal ends the server. Exits with 1 if the address cannot be bound."""
    server = gateway.config.server
    config = uvicorn.Config(
        create_app(gateway),
        host=server.host,
        port=server.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    _Server(config, gateway).run()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again at the end, which makes the exit code 143.
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        else:
            self._ending.cancel()

    async def _end(self) -> None:
        grace_s = self._gateway.config.server.shutdown_grace_s
        log.info("shutting down: running requests may go on for %.0f s", grace_s)
        try:
            await self._gateway.drain(grace_s)
        finally:
            await self._gateway.close()
            self.should_exit = True
