"""A loaded model in a child process, as an `engine.interface.Engine`.

Everything here runs on the event loop. What the child does of its own accord (steps, load) goes to
the metrics; what it says of a request goes to whoever asked.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import msgspec

from llmserve.core import (
    EmbeddingRequest,
    Embeddings,
    Event,
    EventStream,
    Finished,
    FinishReason,
    Queued,
    Request,
    Started,
)
from llmserve.engine.interface import Crash
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.runtime import ModelInfo, RuntimeLimits
from llmserve.errors import (
    InvalidRequestError,
    LlmserveError,
    RequestLostError,
    shutting_down,
)
from llmserve.process.channel import ChannelError
from llmserve.process.child_process import ChildProcess, End, crashed
from llmserve.process.messages import (
    METHODS,
    Answer,
    Call,
    Cancel,
    Entered,
    Failure,
    FromChild,
    Generate,
    Question,
    Ready,
    Reply,
    Result,
    Stop,
)
from llmserve.process.watchdog import Watchdog

STOP_S = 10.0  # for its orderly end, in which it may write prefixes to disk


class _Asked:
    """A request that the child has, and what it has said so far."""

    def __init__(self, question: Question, watch: Watchdog) -> None:
        self.question = question
        self.news: asyncio.Queue[Event | Answer | LlmserveError] = asyncio.Queue()
        self.is_accepted = False  # `Started` was told
        self.is_running = False  # it has, or had, a slot
        self._watch = watch
        watch.begin()

    def pass_to(self, watch: Watchdog) -> None:
        """Whose signs of life count from now on."""
        self._watch.end()
        watch.begin()
        self._watch = watch

    def close(self) -> None:
        self._watch.end()


class ProcessEngine:
    """As `LocalEngine`, over the child that has said `ready`."""

    def __init__(
        self,
        process: ChildProcess,
        ready: Ready,
        *,
        stall_timeout_s: float,
        on_step: Callable[[StepStats], None],
        on_load: Callable[[Load], None],
    ) -> None:
        """`process` is the engine's from now on."""
        self._process = process
        self._ready = ready
        self._on_step = on_step
        self._on_load = on_load
        self._ids = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._closing: asyncio.Task[None] | None = None
        self._crash: Crash | None = None
        self._on_crash: Callable[[Crash], None] = lambda crash: None
        self._has_answered = False
        self._begin_s = asyncio.get_running_loop().time()
        # The worker may hang while texts are still tokenized, or the other way round.
        self._working, self._preparing = (
            Watchdog(stall_timeout_s, self._on_stall) for _ in range(2)
        )
        process.on_message = self._receive
        process.ended.add_done_callback(self._on_end)

    @property
    def name(self) -> str:
        return self._process.name

    @property
    def info(self) -> ModelInfo:
        return self._ready.info

    @property
    def limits(self) -> RuntimeLimits:
        return self._ready.limits

    @property
    def is_alive(self) -> bool:
        return self._closing is None and not self._process.ended.done()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def watch(self, on_crash: Callable[[Crash], None]) -> None:
        self._on_crash = on_crash
        if self._crash:
            on_crash(self._crash)

    # -- requests ---------------------------------------------------------------------------

    async def generate(self, request: Request) -> EventStream:
        """As `LocalEngine.generate`; beside its errors `EngineCrashedError`."""
        with self._ask(Generate(next(self._ids), request)) as asked:
            while not isinstance(event := await _next(asked), Finished):
                yield cast(Event, event)
            yield event

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        embeddings: Embeddings = await self._call("embed", request=request)
        return embeddings

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        tokens: list[int] = await self._call("tokenize", text=text, add_special=add_special)
        return tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        text: str = await self._call("detokenize", tokens=list(tokens))
        return text

    async def render(self, request: Request) -> str:
        text: str = await self._call("render", request=request)
        return text

    async def _call(self, method: str, **args: Any) -> Any:
        with self._ask(Call(next(self._ids), method, args)) as asked:
            answer = await _next(asked)
        assert isinstance(answer, Result)
        return METHODS[method].returned(answer.value)

    @contextlib.contextmanager
    def _ask(self, question: Question) -> Iterator[_Asked]:
        """Leaving before the last word cancels the request."""
        if self._closing:
            raise shutting_down(f"model {self.name!r}")
        if self._process.ended.done():
            raise self._lost()
        try:
            self._process.send(question)
        except ChannelError as error:
            field = _unsendable(question)
            raise InvalidRequestError(f"{field or 'the text'} {error}", param=field) from error
        asked = self._asked[question.id] = _Asked(question, self._preparing)
        try:
            yield asked
        finally:
            if self._forget(question.id):
                self._process.send(Cancel(question.id))

    def _forget(self, request_id: int) -> bool:
        """Whether somebody still waited for it."""
        asked = self._asked.pop(request_id, None)
        if asked:
            asked.close()
        return asked is not None

    # -- what the child says ----------------------------------------------------------------

    def _receive(self, message: FromChild) -> None:
        match message:
            case Reply(request_id, event):
                if asked := self._asked.get(request_id):
                    self._tell(asked, event)
            case Entered(request_id):
                self._working.sign()
                if asked := self._asked.get(request_id):
                    asked.is_running = True
            case StepStats():
                self._working.sign()
                self._preparing.sign()
                self._on_step(message)
            case Load():
                self._on_load(message)
            case Result() | Failure():
                self._end(message)
            case _:
                raise AssertionError(f"unexpected {type(message).__name__}")

    def _tell(self, asked: _Asked, event: Event) -> None:
        asked.news.put_nowait(event)
        match event:
            case Started():
                asked.is_accepted = True
                self._preparing.sign()
                asked.pass_to(self._working)
            case Queued():
                pass
            case Finished(reason):
                self._working.sign()
                self._has_answered |= reason is not FinishReason.CANCELLED
                self._forget(asked.question.id)
            case _:
                self._working.sign()
                asked.is_running = True

    def _end(self, answer: Answer) -> None:
        if not isinstance(answer, Failure):  # refusals need nothing that can hang
            self._preparing.sign()
        if asked := self._asked.get(answer.id):
            self._has_answered |= isinstance(answer, Result) and _computes(asked.question)
            asked.news.put_nowait(answer)
            self._forget(answer.id)

    # -- the end ----------------------------------------------------------------------------

    async def close(self) -> None:
        """End the child, and so give its memory back; what still runs ends as cancelled."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._stop())
        await asyncio.shield(self._closing)

    async def _stop(self) -> None:
        self._process.send(Stop())
        if await self._process.wait(STOP_S) is None:
            self._process.kill(f"did not end within {STOP_S:.0f} s")
            await self._process.wait()

    def _on_stall(self) -> None:
        timeout_s = self._working.timeout_s
        self._process.kill(f"showed no sign of life for {timeout_s:g} s (stall_timeout): killed")

    def _on_end(self, ended: "asyncio.Future[End]") -> None:
        """Nobody may wait for it any longer."""
        end = ended.result()
        self._working.close()
        self._preparing.close()
        self._on_load(Load())
        for asked in self._asked.values():
            asked.news.put_nowait(self._error(asked, end))
            asked.close()
        self._asked.clear()
        if self._closing is None:
            lived_s = asyncio.get_running_loop().time() - self._begin_s
            message = crashed(self.name, end).message
            self._crash = Crash(message, end.log_lines, self._has_answered, lived_s)
            self._on_crash(self._crash)

    def _error(self, asked: _Asked, end: End) -> LlmserveError:
        if self._closing:
            return shutting_down(f"model {self.name!r}")
        # Of embeddings nobody tells when they begin. To repeat them does no harm.
        if asked.is_running or not _computes(asked.question):
            return crashed(self.name, end)
        return self._lost(is_suspect=not asked.is_accepted)

    def _lost(self, *, is_suspect: bool = False) -> RequestLostError:
        message = crashed(self.name, self._process.ended.result()).message
        error = RequestLostError(message, retry_after_s=1)
        error.is_suspect = is_suspect
        return error


async def _next(asked: _Asked) -> Event | Result:
    news = await asked.news.get()
    if isinstance(news, LlmserveError):
        raise news
    if isinstance(news, Failure):
        raise news.fault.error()
    return news


def _computes(question: Question) -> bool:
    """Whether the worker answers; if not, it is done in a moment."""
    return isinstance(question, Generate) or METHODS[question.method].computes


def _unsendable(question: Question) -> str | None:
    """The field of a request because of which it cannot be sent."""
    request = question.request if isinstance(question, Generate) else question.args.get("request")
    for field in request.__struct_fields__ if request is not None else ():
        try:
            msgspec.msgpack.encode(getattr(request, field))
        except (UnicodeEncodeError, OverflowError, RecursionError, TypeError):
            return field
    return None
