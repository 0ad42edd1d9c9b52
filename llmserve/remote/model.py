"""One remote model: the same `generate` as a local engine, over one or several addresses.

Until the first part of an answer everything is bounded by one deadline: waiting for a slot, all
attempts and the pauses between them. Afterwards nothing is tried again.
"""

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from llmserve.chat.mode import resolve_mode
from llmserve.config.provider import Provider
from llmserve.config.schema import ModelSpec
from llmserve.core import (
    EmbeddingRequest,
    Embeddings,
    EventStream,
    Finished,
    FinishReason,
    Mode,
    Priority,
    Request,
    Started,
    Timings,
    Usage,
    Vectors,
)
from llmserve.errors import (
    ProviderAuthError,
    ProviderTimeoutError,
    QueueFullError,
    shutting_down,
)
from llmserve.remote import retry
from llmserve.remote.addresses import Address, Addresses
from llmserve.remote.anthropic import AnthropicProtocol
from llmserve.remote.breaker import BreakerState
from llmserve.remote.client import Link, OpenAnswer, fetch
from llmserve.remote.concurrency import Slots
from llmserve.remote.errors import Asked, AttemptError, BrokenAnswerError, broken
from llmserve.remote.openai import embeddings
from llmserve.remote.openai.request import OpenAIProtocol
from llmserve.remote.protocol import Call, ProviderProtocol, not_honoured

T = TypeVar("T")
log = logging.getLogger(__name__)

_USABLE_KEY = re.compile(r"[\x21-\x7e]+")
_NO_USAGE = Usage(0, 0, 0)
_NO_HEADERS: Mapping[str, str] = {}

Connect = Callable[[Provider, dict[str, str]], Awaitable[Link]]


class RemoteModel:
    """Lives on one event loop. `close` ends what runs; `retire` lets it finish first."""

    def __init__(
        self,
        spec: ModelSpec,
        environment: Mapping[str, str],
        connect: Connect,
        on_attempt: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        assert spec.remote
        self.spec = spec
        self.provider = spec.remote
        self.addresses = Addresses(self.provider.urls, on_attempt)
        self.num_active = 0  # requests that are answered, or wait for it
        self.last_used_s = 0.0  # unix time
        self._key = environment.get(self.provider.api_key_env or "", "").strip() or None
        self.remote_model = self.provider.remote_model or spec.name
        self._protocol = _make_protocol(self.provider, self.remote_model)
        self._connect = connect
        self._link: Link | None = None
        self._linking = asyncio.Lock()
        self._slots = Slots(spec.max_concurrency)
        self._opening: set[asyncio.Timeout] = set()
        self._answers: set[OpenAnswer] = set()
        self._is_closed = False
        self._is_retired = False

    @property
    def state(self) -> str:
        """ready, or the state of the best address's breaker."""
        state = self.addresses.state
        return "ready" if state is BreakerState.CLOSED else state

    @property
    def num_waiting(self) -> int:
        """Requests that have no slot yet."""
        return self._slots.num_waiting

    async def generate(
        self, request: Request, trace_headers: Mapping[str, str] = _NO_HEADERS
    ) -> EventStream:
        """`Started`, parts, `Finished`. Leaving early ends the request at the provider.

        `trace_headers` go with it. Raises `LlmserveError`; after the first event only
        `ProviderError`s.
        """
        mode = resolve_mode(request, self.spec.default_mode, has_template=True)
        call = self._protocol.encode(request, mode)._replace(headers=trace_headers)
        self._check_key()
        clock = _Clock()
        async with self._counted(), AsyncExitStack() as held:
            async with self._deadline() as deadline:
                await self._take_slot(request.priority, held)
                clock.slot_s = time.monotonic()
                answer = await self._open(request, mode, call, deadline, held)
            clock.first_s = time.monotonic()
            yield Started(self.spec.name, None, request.seed)
            async with contextlib.aclosing(answer.parts()) as parts:
                async for part in parts:
                    yield part
            ending = answer.ending()
            if ending is None:
                yield Finished(FinishReason.CANCELLED, None, _NO_USAGE, clock.timings(0))
            else:
                timings = clock.timings(ending.usage.generated_tokens)
                yield Finished(ending.reason, ending.stop_sequence, ending.usage, timings)

    async def embed(
        self, request: EmbeddingRequest, trace_headers: Mapping[str, str] = _NO_HEADERS
    ) -> Embeddings:
        """A vector for each input. Raises `LlmserveError`."""
        if self.provider.protocol != "openai":
            raise not_honoured(
                "model",
                f"the {self.provider.protocol} protocol: it has no embeddings",
                "name another",
            )
        call = embeddings.encode(request, self.remote_model)._replace(headers=trace_headers)
        self._check_key()

        async def attempt(link: Link, address: Address) -> tuple[Vectors, int]:
            asked = self.asked(address, call.path)
            body = await fetch(link, address.url, call, asked)
            try:
                return await asyncio.to_thread(embeddings.decode, body, request)
            except BrokenAnswerError as error:
                raise broken(asked, error) from error

        async with self._counted(), AsyncExitStack() as held, self._deadline() as deadline:
            await self._take_slot("interactive", held)
            _, (vectors, num_tokens) = await self._try(attempt, deadline)
        return Embeddings(self.spec.name, vectors, num_tokens)

    async def link(self) -> Link:
        """The connection; made when it is first wanted."""
        async with self._linking:
            if self._link is None:
                self._check_key()
                self._link = await self._connect(self.provider, self._headers())
            return self._link

    def asked(self, address: Address, path: str) -> Asked:
        variable = self.provider.api_key_env
        return Asked(self.spec.name, address.host, path, variable, self._key)

    async def retire(self) -> None:
        """No longer in the config: requests under way finish first."""
        self._is_retired = True
        await self._close_if_unused()

    async def close(self) -> None:
        """What still runs ends as cancelled, what has not begun is refused."""
        self._is_closed = self._is_retired = True
        for deadline in self._opening:
            if not deadline.expired():
                deadline.reschedule(0)
        for answer in self._answers:
            answer.cancel()
        await self._close_if_unused()

    async def _close_if_unused(self) -> None:
        if self._is_retired and not self.num_active and self._link:
            link, self._link = self._link, None
            await link.close()

    def _headers(self) -> dict[str, str]:
        return {
            "user-agent": "llmserve",
            "accept": "text/event-stream, application/json",
            "accept-encoding": "identity",  # a stream of small events; and no bombs
            "content-type": "application/json",
            **self._protocol.headers(self._key),
            **dict(self.provider.headers),
        }

    def _check_key(self) -> None:
        """Raises `ProviderAuthError` for a key that cannot be sent."""
        variable = self.provider.api_key_env
        if variable is None or (self._key and _USABLE_KEY.fullmatch(self._key)):
            return
        what = "has characters that no key has" if self._key else "is not set"
        raise ProviderAuthError(
            f"model {self.spec.name!r}: the environment variable {variable} {what}; put the"
            " provider's key into it and start the server again"
        )

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self.num_active += 1
        self.last_used_s = time.time()
        try:
            yield
        finally:
            self.num_active -= 1
            self.last_used_s = time.time()
            await self._close_if_unused()

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[asyncio.Timeout]:
        """Until the first part. Raises `ProviderTimeoutError`, or `ShuttingDownError`."""
        if self._is_closed:
            raise shutting_down()
        timeout_s = self.provider.timeout
        deadline: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                self._opening.add(deadline)
                yield deadline
        except TimeoutError as error:
            if self._is_closed:
                raise shutting_down() from error
            raise ProviderTimeoutError(
                f"model {self.spec.name!r}: no answer began within {timeout_s:g} s"
            ) from error
        finally:
            if deadline:
                self._opening.discard(deadline)

    async def _take_slot(self, priority: Priority, held: AsyncExitStack) -> None:
        """Raises `QueueFullError`."""
        if self._slots.is_full and self.num_waiting >= self.spec.max_queue:
            raise QueueFullError(
                f"model {self.spec.name!r} answers {self.spec.max_concurrency} requests at a time"
                f" and {self.num_waiting} more are waiting; try again later",
                retry_after_s=1,
            )
        await held.enter_async_context(self._slots.slot(priority))

    async def _open(
        self,
        request: Request,
        mode: Mode,
        call: Call,
        deadline: asyncio.Timeout,
        held: AsyncExitStack,
    ) -> OpenAnswer:
        """The first answer that begins; `held` closes it. Raises `LlmserveError`."""

        async def begin(link: Link, address: Address) -> OpenAnswer:
            decoder = self._protocol.decoder(request, mode)
            return await OpenAnswer.begin(
                link, address.url, call, decoder, self.asked(address, call.path)
            )

        address, answer = await self._try(begin, deadline)
        held.enter_context(self.addresses.busy(address))
        held.push_async_callback(self._end, answer)
        self._answers.add(answer)
        return answer

    async def _try(
        self, attempt: Callable[[Link, Address], Awaitable[T]], deadline: asyncio.Timeout
    ) -> tuple[Address, T]:
        """The first attempt that succeeds, and where. Raises `LlmserveError`."""
        link = await self.link()
        failed: list[Address] = []
        last: AttemptError | None = None
        while address := self.addresses.choose(failed):
            try:
                with self.addresses.attempt(address, deadline):
                    return address, await attempt(link, address)
            except AttemptError as error:
                last = error
                failed.append(address)
                wait_s = self._pause_s(error, failed, deadline)
                if wait_s is None:
                    break
                log.info("%s; trying again in %.1f s", error.error.log_message, wait_s)
                await asyncio.sleep(wait_s)
        raise last.error if last else self.addresses.spared()

    async def _end(self, answer: OpenAnswer) -> None:
        self._answers.discard(answer)
        await answer.close()

    def _pause_s(
        self, error: AttemptError, failed: list[Address], deadline: asyncio.Timeout
    ) -> float | None:
        other = self.addresses.choose(failed)
        until_s = deadline.when()
        assert until_s is not None
        return retry.pause_s(
            self.provider.retry,
            len(failed),
            error.failure,
            left_s=until_s - asyncio.get_running_loop().time(),
            jitter=random.random(),  # noqa: S311
            is_elsewhere=other is not None and other not in failed,
        )


class _Clock:
    """When things happened to one request, by the monotonic clock."""

    def __init__(self) -> None:
        self.accepted_s = self.slot_s = self.first_s = time.monotonic()

    def timings(self, num_tokens: int) -> Timings:
        decode_s = time.monotonic() - self.first_s
        return Timings(
            queue_s=self.slot_s - self.accepted_s,
            prefill_s=self.first_s - self.slot_s,
            ttft_s=self.first_s - self.accepted_s,
            decode_s=decode_s,
            tokens_per_s=(num_tokens - 1) / decode_s if num_tokens > 1 and decode_s else 0.0,
        )


def _make_protocol(provider: Provider, remote_model: str) -> ProviderProtocol:
    if provider.protocol == "anthropic":
        return AnthropicProtocol(remote_model)
    return OpenAIProtocol(provider, remote_model)
