"""Model name -> backend, with what is true for every request: admission while draining, metrics.

A local model is leased from the pool, a remote one asked through its provider; either may have
others that stand in for it, until its first event.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from llmserve.auth.keyring import Keyring
from llmserve.auth.keys import Key
from llmserve.config.load import compare, load_config
from llmserve.config.schema import Config, ConfigChange, ModelSpec
from llmserve.core import EmbeddingRequest, Embeddings, EventStream, Request, Started
from llmserve.deadline import limited, within
from llmserve.engine.interface import Engine
from llmserve.errors import (
    ConfigError,
    InvalidRequestError,
    LlmserveError,
    ModelFileError,
    ModelLoadingError,
    ModelNotFoundError,
    ProviderAuthError,
    ProviderError,
    ProviderModelError,
    QueueFullError,
    RequestLostError,
    TooLargeError,
    UnavailableError,
    shutting_down,
)
from llmserve.hub.locate import check_files
from llmserve.pool.model import State
from llmserve.pool.pool import Pool
from llmserve.remote.remotes import Remotes
from llmserve.retries import Retries
from llmserve.telemetry.metrics import Metrics
from llmserve.telemetry.observer import Watch
from llmserve.telemetry.request_record import current_record

if TYPE_CHECKING:
    from llmserve.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# Unreachable, over its limits, out of time, cannot be loaded: others may stand in.
_REPLACEABLE = (UnavailableError, QueueFullError, ProviderError)
# A wrong key or name in the config is for the operator to see, not to be covered up.
_MISCONFIGURED = (ProviderAuthError, ProviderModelError)


class Gateway:
    """The one way to a model, whatever the dialect of the request."""

    def __init__(
        self,
        config: Config,
        pool: Pool,
        remotes: Remotes,
        metrics: Metrics,
        *,
        keyring: Keyring | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.config = config
        self.keyring = keyring or Keyring()
        self.metrics = metrics
        self.tracing = tracing
        self.pool = pool
        self.remotes = remotes
        self.created_s = int(time.time())  # unix time; constant, for what has to have an age
        self._num_active = 0
        self._is_draining = False
        self._reloading = asyncio.Lock()  # or one that read an older file could win
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_active(self) -> int:
        """Requests that are being answered, or wait for it."""
        return self._num_active

    def check_ready(self) -> None:
        """Raises an `UnavailableError` that says why, unless the default model can answer.

        A model that was unloaded to save memory can: the next request loads it again. So can a
        remote one, as far as this server knows.
        """
        self._check_draining()
        if self.config.default.remote:
            return
        model = self.pool.look(self.config.default)
        if model.error:
            raise model.error
        if model.state is State.LOADING and not model.last_used_s:
            raise ModelLoadingError(
                f"the default model {model.spec.name!r} is still loading", retry_after_s=1
            )

    def render_metrics(self) -> bytes:
        self.remotes.observe()
        return self.metrics.render()

    async def reload(self) -> ConfigChange:
        """Read the config file and that of the keys again. Raises `ConfigError`, and then nothing
        has changed.

        Models that were removed or changed finish their requests first. `[server]` stays.
        """
        async with self._reloading:
            old = self.config
            new, keys = await asyncio.to_thread(_load_anew, old, self.keyring)
            self.config = msgspec.structs.replace(new, server=old.server)
            self.keyring.replace(keys)
            self.pool.retain(new.models)
            await self.remotes.retain(new.models)
        change = compare(old, new)
        log.info("reloaded %s: %s", new.path, change)
        return change

    def start(self) -> None:
        """Load the default model in the background, unless the config says not to."""
        for spec in self.config.models:
            if spec.remote:
                self.remotes.model(spec)  # imports what it needs, before a request waits for it
        if self.config.server.preload and not self.config.default.remote:
            self.pool.preload(self.config.default)

    async def generate(self, request: Request) -> EventStream:
        """The events of `request`. Leaving early cancels it.

        Raises `LlmserveError`s; all but `EngineError` and `ProviderError` come before the first
        event.
        """
        with Watch(request, self.metrics, self.tracing) as watch:
            spec = self.resolve(request.model)
            watch.resolved(spec)
            stream = self._answer(spec, request, watch.trace_headers)
            stream = limited(stream, *self._limits_s(request))
            async with self._counted(), contextlib.aclosing(stream) as events:
                async for event in events:
                    watch.see(event)
                    yield event

    async def _answer(
        self, spec: ModelSpec, request: Request, trace_headers: Mapping[str, str]
    ) -> EventStream:
        """The events of the first model of `spec`'s chain that begins to answer."""
        first_error: LlmserveError | None = None
        for candidate in self._chain(spec, request):
            is_begun = False
            if first_error:
                self.metrics.fallbacks.labels(spec.name, candidate.name).inc()
                log.info("%s; asking %s", first_error.log_message, candidate.name)
            try:
                stream = self._backend(candidate, request, trace_headers)
                async with contextlib.aclosing(stream) as events:
                    async for event in events:
                        is_begun = True
                        yield event
                return
            except LlmserveError as error:
                if is_begun or not self._is_replaceable(error, is_first=first_error is None):
                    raise
                first_error = first_error or error
        assert first_error
        raise first_error

    def _chain(self, spec: ModelSpec, request: Request) -> list[ModelSpec]:
        """Token ids mean something to one model only, so it has no fallback."""
        if request.prompt_tokens is not None or request.sampling.logit_bias:
            return [spec]
        return self.config.chain(spec)

    def _is_replaceable(self, error: LlmserveError, *, is_first: bool) -> bool:
        """Whether the next model of the chain may try."""
        if self._is_draining:
            return False
        if is_first:
            return isinstance(error, _REPLACEABLE) and not isinstance(error, _MISCONFIGURED)
        # What a stand-in cannot do is no fault of the request: the first error is told.
        return isinstance(error, (*_REPLACEABLE, InvalidRequestError, TooLargeError))

    def _backend(
        self, spec: ModelSpec, request: Request, trace_headers: Mapping[str, str]
    ) -> EventStream:
        """The events of this very model."""
        if spec.remote:
            return self.remotes.model(spec).generate(request, trace_headers)
        return self._local(spec, request)

    async def _local(self, spec: ModelSpec, request: Request) -> EventStream:
        """As `_backend`. What waited in a process that died waits again in the next one."""
        is_started = False
        retries = Retries()
        while True:
            try:
                async with (
                    self.pool.lease(spec) as engine,
                    contextlib.aclosing(engine.generate(request)) as events,
                ):
                    async for event in events:
                        if not isinstance(event, Started):
                            yield event
                        elif not is_started:
                            is_started = True
                            request = msgspec.structs.replace(request, seed=event.seed)
                            yield event
                    return
            except RequestLostError as error:
                retries.note(error)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """A vector for each input. Raises `LlmserveError`s; to be cancelled cancels the work.

        There is no fallback: vectors of two models cannot be compared.
        """
        with Watch(request, self.metrics, self.tracing) as watch:
            spec = self.resolve(request.model)
            watch.resolved(spec)
            async with self._counted():
                work = self._embed(spec, request, watch.trace_headers)
                embeddings = await within(work, *self._limits_s(request))
            watch.see_embeddings(embeddings)
            return embeddings

    async def _embed(
        self, spec: ModelSpec, request: EmbeddingRequest, trace_headers: Mapping[str, str]
    ) -> Embeddings:
        if spec.remote:
            return await self.remotes.model(spec).embed(request, trace_headers)
        retries = Retries()
        while True:
            try:
                async with self.pool.lease(spec) as engine:
                    return await engine.embed(request)
            except RequestLostError as error:
                retries.note(error)

    @asynccontextmanager
    async def engine(self, model: str | None) -> AsyncIterator[Engine]:
        """The loaded model, for what is no generation. Raises `LlmserveError`s as `generate`."""
        spec = self.local(model)
        async with self._counted(), self.pool.lease(spec) as engine:
            yield engine

    def resolve(self, name: str | None) -> ModelSpec:
        """The model called or aliased `name`; the default model for None."""
        if record := current_record():
            record.model = name
        if name is None:
            return self.config.default
        spec = self.config.names.get(name)
        if spec is None:
            known = ", ".join(sorted(self.config.names))
            raise ModelNotFoundError(f"no model {name!r}; there are: {known}", param="model")
        return spec

    def local(self, name: str | None) -> ModelSpec:
        """As `resolve`, for what only a model in this process can do."""
        spec = self.resolve(name)
        if spec.remote:
            raise InvalidRequestError(
                f"model {spec.name!r} is at a remote provider, which cannot do this; name a model"
                " that runs here",
                param="model",
            )
        return spec

    def _limits_s(self, request: Request | EmbeddingRequest) -> tuple[float | None, float | None]:
        return self.config.server.request_timeout, request.timeout_s

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests; return when the running ones are done, at most after `grace_s`."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)

    async def close(self) -> None:
        """End all models; what still runs ends as cancelled."""
        self._is_draining = True
        await self.remotes.close()
        await self.pool.close()

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._check_draining()
        self._num_active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_active -= 1
            if self._num_active == 0:
                self._idle.set()

    def _check_draining(self) -> None:
        if self._is_draining:
            raise shutting_down()


def _load_anew(old: Config, keyring: Keyring) -> tuple[Config, dict[str, Key]]:
    """The config and the keys as they are now.

    Raises `ConfigError`, also for a new model without its file.
    """
    new = load_config(old.path)
    try:
        check_files(spec for spec in new.models if spec not in old.models)
    except ModelFileError as error:
        raise ConfigError(f"{new.path}: {error.message}") from error
    return new, keyring.sources.read(new.names)
