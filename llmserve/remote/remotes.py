"""All remote models of the config: made when first wanted, closed when no longer offered.

httpx2 and what uses it is imported with the first of them: 0.1 s and 5 MB that a server without
remote models does not need.
"""

import asyncio
import functools
import ssl
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmserve.config.provider import Provider, is_private
from llmserve.config.schema import ModelSpec
from llmserve.remote.protocol import Bounds
from llmserve.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from llmserve.remote.client import Link
    from llmserve.remote.model import RemoteModel


class Remotes:
    """Spec -> model, all on one event loop."""

    def __init__(
        self, environment: Mapping[str, str], metrics: Metrics, bounds: Bounds | None = None
    ) -> None:
        """`environment` has the keys of providers, under the names that the config gives."""
        self._environment = environment
        self._metrics = metrics
        self._bounds = bounds or Bounds()
        self._models: dict[ModelSpec, RemoteModel] = {}
        self._retired: set[RemoteModel] = set()
        self._ssl: asyncio.Task[ssl.SSLContext] | None = None

    def model(self, spec: ModelSpec) -> "RemoteModel":
        found = self._models.get(spec)
        if found is None:
            from llmserve.remote.model import RemoteModel

            on_attempt = functools.partial(self._metrics.count_attempt, spec.name)
            found = RemoteModel(spec, self._environment, self._connect, on_attempt)
            self._models[spec] = found
        return found

    async def retain(self, specs: Collection[ModelSpec]) -> None:
        """Part with every other model, at once or when its requests are done."""
        for spec in [spec for spec in self._models if spec not in specs]:
            model = self._models.pop(spec)
            self._retired = {other for other in self._retired if other.num_active}
            self._retired.add(model)  # `close` has to find it
            await model.retire()

    async def close(self) -> None:
        for model in (*self._models.values(), *self._retired):
            await model.close()
        if self._ssl:
            await asyncio.wait([self._ssl])

    def observe(self) -> None:
        """Bring the metrics up to date, before they are read."""
        self._metrics.forget_breakers()
        for spec, model in self._models.items():
            running = model.num_active - model.num_waiting
            self._metrics.observe_load(spec.name, running, model.num_waiting)
            for address in model.addresses.all:
                self._metrics.observe_breaker(spec.name, address.url, address.state)

    async def _connect(self, provider: Provider, headers: dict[str, str]) -> "Link":
        from llmserve.remote.client import Link

        hosts = [urlsplit(url).hostname or "" for url in provider.urls]
        return Link(
            headers,
            silence_s=provider.timeout,
            ssl_context=await self._ssl_context(provider),
            uses_proxies=not any(map(is_private, hosts)),
            bounds=self._bounds,
        )

    async def _ssl_context(self, provider: Provider) -> ssl.SSLContext:
        """One for all: reading the certificates of the world takes 40 ms."""
        if not any(url.startswith("https:") for url in provider.urls):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and trusts nothing
        if self._ssl is None:
            import httpx2

            self._ssl = asyncio.create_task(asyncio.to_thread(httpx2.create_ssl_context))
        return await asyncio.shield(self._ssl)
