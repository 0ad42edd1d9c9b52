"""A model in a real child process, on the fake: the same outcomes, and whatever can end a child."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llmserve.core import (
    Constraint,
    EmbeddingRequest,
    Finished,
    FinishReason,
    Message,
    Mode,
    Queued,
    Request,
    SamplingParams,
    Started,
    Tool,
    ToolUse,
)
from llmserve.engine.interface import Crash
from llmserve.engine.runtime import EmbeddingLimits
from llmserve.errors import (
    EngineCrashedError,
    InvalidRequestError,
    LlmserveError,
    QueueFullError,
    RequestLostError,
    ShuttingDownError,
)
from tests.policies import policy
from tests.process.backend import Script
from tests.process.children import (
    ENDLESS,
    Seen,
    Stream,
    child,
    collect,
    completion,
    open_child,
    open_thread,
    until,
)

pytestmark = pytest.mark.anyio
EMBEDDING = EmbeddingLimits(num_dimensions=4, max_len=64, max_batch=16, max_inputs=2, num_cells=64)
ONE_SLOT = {"num_slots": 1, "num_cells": 256}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# -- the same as in threads ----------------------------------------------------------------------

CHAT = (Message("system", "be kind"), Message("user", "hä?"))
TOOLS = ToolUse((Tool("f", "does", '{"type": "object"}'),), "required")
CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "greedy": lambda e: collect(e.generate(completion("hello"))),
    "sampled": lambda e: collect(
        e.generate(completion("hello", sampling=SamplingParams(temperature=1.5), seed=5))
    ),
    "stop": lambda e: collect(e.generate(completion("abc", 60, stop=("e", "t", "a")))),
    "tokens": lambda e: collect(
        e.generate(Request(prompt_tokens=(1, 2), max_tokens=3, sampling=ENDLESS, seed=1))
    ),
    "logprobs": lambda e: collect(
        e.generate(completion("hi", num_logprobs=2, prompt_logprobs=True, seed=1))
    ),
    "constraint": lambda e: collect(
        e.generate(completion("x", 30, constraint=Constraint("regex", "[ab]{3}c"), seed=1))
    ),
    "schema": lambda e: collect(
        e.generate(completion("x", 40, constraint=Constraint("json_schema", '{"enum": [1, 2]}')))
    ),
    "chat": lambda e: collect(e.generate(Request(messages=CHAT, max_tokens=5, sampling=ENDLESS))),
    "tools": lambda e: collect(
        e.generate(Request(messages=CHAT, max_tokens=60, tool_use=TOOLS, seed=1))
    ),
    "variables": lambda e: e.render(
        Request(messages=CHAT, mode=Mode.CHAT, template_variables={"x": [1, {"y": None}]})
    ),
    "embed": lambda e: e.embed(EmbeddingRequest(("one", (1, 2, 3)), dimensions=3)),
    "tokenize": lambda e: e.tokenize("wörter", add_special=True),
    "detokenize": lambda e: e.detokenize([104, 228, 105, 256]),
    "render": lambda e: e.render(Request(messages=CHAT)),
    # what is refused
    "surrogate": lambda e: e.tokenize("\ud800", add_special=True),
    "no token": lambda e: e.detokenize([999]),
    "too long": lambda e: collect(e.generate(completion("x" * 500))),
    "bad regex": lambda e: collect(
        e.generate(completion("x", constraint=Constraint("regex", "(", "field")))
    ),
    "bad bias": lambda e: collect(
        e.generate(completion("x", sampling=SamplingParams(logit_bias={5000: 1.0})))
    ),
    "too much to embed": lambda e: e.embed(EmbeddingRequest(("x" * 100,))),
}


def plain(outcome: Any) -> Any:
    """`outcome` without what is another one every time."""
    if isinstance(outcome, LlmserveError):
        return type(outcome), outcome.message, outcome.param, outcome.retry_after_s
    if isinstance(outcome, list):
        return [
            (event.reason, event.stop_sequence, event.usage)
            if isinstance(event, Finished)
            else (event.prompt_tokens if isinstance(event, Started) else event)
            for event in outcome
            if not isinstance(event, Queued)
        ]
    if hasattr(outcome, "vectors"):
        return outcome.model, outcome.vectors.tolist(), outcome.prompt_tokens
    return outcome


async def outcome_of(call: Callable[[Any], Awaitable[Any]], engine: Any) -> Any:
    try:
        return plain(await call(engine))
    except LlmserveError as error:
        return plain(error)


async def test_every_call_has_the_outcome_that_it_has_in_threads(tmp_path: Path) -> None:
    script = Script(options={"num_cells": 256}, embedding=EMBEDDING)
    thread = await open_thread(tmp_path, script)
    async with child(tmp_path, script) as process:
        assert (process.name, process.info, process.limits) == (
            thread.name,
            thread.info,
            thread.limits,
        )
        for name, call in CALLS.items():
            expected = await outcome_of(call, thread)
            assert await outcome_of(call, process) == expected, name
        together = await asyncio.gather(*(outcome_of(call, process) for call in CALLS.values()))
        assert together == [await outcome_of(call, thread) for call in CALLS.values()]
    await thread.close()


async def test_a_refusal_by_the_queue_has_its_time(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = Script(options=ONE_SLOT, gate=str(gate))
    async with child(tmp_path, script, policy=policy(max_queue=0)) as engine:
        running = Stream(engine, completion("a"))
        await until(lambda: running.is_accepted)
        with pytest.raises(QueueFullError) as refused:
            await collect(engine.generate(completion("b")))
        assert refused.value.retry_after_s
        gate.touch()
        await running.task


async def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    async with child(tmp_path) as engine:
        request = completion("x", template_variables={"n": 1 << 70})
        with pytest.raises(InvalidRequestError, match="template_variables cannot be handed on"):
            await collect(engine.generate(request))
        with pytest.raises(InvalidRequestError, match="stop is not valid Unicode") as refused:
            await collect(engine.generate(completion("x", stop=("\ud800",))))
        assert refused.value.param == "stop"
        assert isinstance((await collect(engine.generate(completion("x"))))[-1], Finished)


async def test_steps_and_load_are_told(tmp_path: Path) -> None:
    seen = Seen()
    async with child(tmp_path, seen=seen) as engine:
        await collect(engine.generate(completion("hello", 4)))
        await until(lambda: seen.loads and seen.loads[-1].num_running == 0)
    assert sum(step.num_prefilled + step.num_decoded for step in seen.steps) >= 8
    assert max(load.num_running for load in seen.loads) == 1


async def test_leaving_early_frees_the_slot(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = Script(options=ONE_SLOT, gate=str(gate))
    async with child(tmp_path, script) as engine:
        first, second = Stream(engine, completion("a", 200)), Stream(engine, completion("b"))
        await until(lambda: first.is_accepted and second.is_accepted)
        first.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first.task
        gate.touch()
        await second.task
        assert isinstance(second.events[-1], Finished)


async def test_closing_ends_what_runs_as_cancelled(tmp_path: Path) -> None:
    async with child(tmp_path, Script(gate=str(tmp_path / "never"))) as engine:
        stream = Stream(engine, completion("a", 200))
        await until(lambda: stream.is_accepted)
        await engine.close()
        await stream.task
        assert stream.events[-1].reason is FinishReason.CANCELLED  # type: ignore[union-attr]
        for ask in (collect(engine.generate(completion("b"))), engine.render(Request())):
            with pytest.raises(ShuttingDownError):
                await ask


async def test_a_child_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmserve.process.client.STOP_S", 0.1)
    async with child(tmp_path, Script(gate=str(tmp_path / "never"))) as engine:
        stream = Stream(engine, completion("a", 200))
        await until(lambda: stream.is_accepted)
        os.kill(engine.pid, signal.SIGSTOP)
        await engine.close()
        with pytest.raises(ShuttingDownError):
            await stream.task


# -- a child that dies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "words"),
    [
        (signal.SIGKILL, r"was killed by signal 9 \(out of memory\?\)"),
        (signal.SIGSEGV, "was killed by signal 11"),
        (signal.SIGABRT, "was killed by signal 6"),
    ],
)
async def test_who_runs_fails_and_who_waits_is_lost(
    signum: signal.Signals, words: str, tmp_path: Path
) -> None:
    crashes: list[Crash] = []
    seen = Seen()
    script = Script(options=ONE_SLOT, gate=str(tmp_path / "never"))
    async with child(tmp_path, script, seen=seen) as engine:
        engine.watch(crashes.append)
        running, waiting = Stream(engine, completion("a")), Stream(engine, completion("b"))
        await until(lambda: running.is_accepted and waiting.is_accepted)
        await until(lambda: sum(each.is_running for each in engine._asked.values()) == 1)
        os.kill(engine.pid, signum)
        with pytest.raises(EngineCrashedError, match=words) as crashed:
            await running.task
        assert type(crashed.value) is EngineCrashedError
        assert (crashed.value.status, crashed.value.retry_after_s) == (503, 1)
        with pytest.raises(RequestLostError, match=words) as lost:
            await waiting.task
        assert not lost.value.is_suspect
        assert not engine.is_alive
        with pytest.raises(RequestLostError):
            await collect(engine.generate(completion("c")))
    assert [crash.has_answered for crash in crashes] == [False]
    assert seen.loads[-1].num_running == 0, "the metrics forget it"
    if signum == signal.SIGSEGV:
        assert any("Segmentation fault" in line for line in crashes[0].log_lines)


async def test_a_crash_is_told_also_to_who_comes_late(tmp_path: Path) -> None:
    crashes: list[Crash] = []
    async with child(tmp_path) as engine:
        assert isinstance((await collect(engine.generate(completion("x"))))[-1], Finished)
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: not engine.is_alive)
        engine.watch(crashes.append)
    assert [crash.has_answered for crash in crashes] == [True]


async def test_who_is_being_prepared_is_a_suspect(tmp_path: Path) -> None:
    async with child(tmp_path) as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        asking = Stream(engine, completion("a"))
        rendering = asyncio.create_task(engine.render(Request(messages=CHAT)))
        await until(lambda: len(engine._asked) == 2)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(RequestLostError) as lost:
            await asking.task
        assert lost.value.is_suspect
        with pytest.raises(EngineCrashedError):
            await rendering


async def test_a_bug_in_the_worker_is_as_a_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with child(tmp_path, Script(breaks=True)) as engine:
        with pytest.raises(EngineCrashedError, match="ended with exit code 70"):
            await collect(engine.generate(completion("a", 20)))
    assert "fake: the worker failed" in caplog.text
    (record,) = [each for each in caplog.records if each.message == "fake: the worker failed"]
    assert "ZeroDivisionError" in record.__dict__["fields"]["exception"]


async def test_a_child_that_stalls_is_killed(tmp_path: Path) -> None:
    async with child(tmp_path, patience_s=0.5) as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(
            EngineCrashedError, match=r"no sign of life for 0.5 s \(stall_timeout\)"
        ):
            await engine.render(Request(messages=CHAT))


async def test_a_worker_that_hangs_is_noticed_while_others_are_refused(tmp_path: Path) -> None:
    """Tokenizing goes on, and so do refusals: neither is a sign of the worker's life."""
    script = Script(options=ONE_SLOT, gate=str(tmp_path / "never"))
    async with child(tmp_path, script, patience_s=0.5, policy=policy(max_queue=1)) as engine:
        hanging = [Stream(engine, completion("a")), Stream(engine, completion("b"))]
        await until(lambda: all(each.is_accepted for each in hanging))
        while engine.is_alive:
            with contextlib.suppress(QueueFullError, RequestLostError):
                await collect(engine.generate(completion("c")))
            with contextlib.suppress(LlmserveError):
                await engine.tokenize("x", add_special=False)
        for each in hanging:
            with pytest.raises(EngineCrashedError, match="no sign of life"):
                await each.task


async def test_nonsense_from_a_child_is_its_end(tmp_path: Path) -> None:
    async with child(tmp_path) as engine:
        engine._process._connection.data_received(b"\x05\0\0\0nope!")
        with pytest.raises(LlmserveError, match="sent an invalid message"):
            await collect(engine.generate(completion("a")))


async def test_its_log_is_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script = Script(options={"chat_template": "{% bad"})
    async with child(tmp_path, script):
        pass
    assert any(
        record.name.startswith("llmserve.") and record.message.startswith("fake: ")
        for record in caplog.records
    ), caplog.text


async def test_signals_for_the_whole_group_are_ours(tmp_path: Path) -> None:
    async with child(tmp_path) as engine:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(engine.pid, signum)
        assert isinstance((await collect(engine.generate(completion("x"))))[-1], Finished)


async def test_descriptors_and_processes_do_not_add_up(tmp_path: Path) -> None:
    path = Script().write(tmp_path / "model")

    async def load() -> int:
        engine = await open_child(path)
        await engine.close()
        return len(os.listdir("/proc/self/fd"))

    first = await load()
    assert [await load() for _ in range(3)] == [first] * 3
