"""Scheduling on the real model: what its steps are made of, and the same bytes under load."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from llmserve.core import Delta, Finished, Mode, Request, SamplingParams
from llmserve.engine.engine import LocalEngine
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.messages import StepStats
from llmserve.engine.runtime import Chunk, Logits
from llmserve.engine.scheduler.scheduler import MIN_PROGRESS, Limits, Outlook, Work, plan_work
from llmserve.engine.scheduler.sequence import Sequence as EngineSequence
from tests.policies import policy
from tests.smollm2 import MODEL

PARAMS = LlamaParams(context_length=1024, max_sequences=4, max_outputs=16, num_threads=1)
TARGET_ITL_S = 0.15
HOT = SamplingParams(temperature=1.0, ignore_eos=True)


class Recording(LlamaRuntime):
    """Notes the sizes of all parts of each step."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        super().__init__(MODEL, PARAMS)
        self.steps.clear()  # without the warm-up

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        logits = super().decode(chunks)
        self.steps.append([len(chunk.tokens) for chunk in chunks])
        return logits


@contextlib.asynccontextmanager
async def engine_on(runtime: LlamaRuntime, stats: list[StepStats]) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(
        "real", runtime, policy=policy(target_itl_s=TARGET_ITL_S), on_step=stats.append
    )
    try:
        yield engine
    finally:
        await engine.close()


async def text_of(engine: LocalEngine, request: Request) -> tuple[str, Finished]:
    text = ""
    async for event in engine.generate(request):
        if isinstance(event, Delta):
            text += event.text
        elif isinstance(event, Finished):
            return text, event
    raise AssertionError("no end")


def completion(text: str, max_tokens: int, **fields: object) -> Request:
    fields = {"sampling": HOT, **fields}
    return Request(prompt=text, mode=Mode.COMPLETION, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]


def test_steps_with_streams_have_no_more_prompt_tokens_than_fit_by_what_was_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed: list[tuple[int, int]] = []  # prompt tokens, and what costs allowed, of mixed steps

    def planning(running: Sequence[EngineSequence], limits: Limits, outlook: Outlook) -> list[Work]:
        work = plan_work(running, limits, outlook)
        num_rows = sum(w.num_tokens == 1 for w in work)
        num_prompt = sum(w.num_tokens for w in work) - num_rows
        if num_rows and num_prompt:
            used = sum(s.num_own_cells for s in running)
            most = outlook.costs.max_prompt_tokens(num_rows, used, TARGET_ITL_S)
            allowed.append((num_prompt, max(MIN_PROGRESS, most)))
        return work

    monkeypatch.setattr("llmserve.engine.worker.planner.plan_work", planning)
    stats: list[StepStats] = []

    async def main() -> None:
        async with engine_on(Recording(), stats) as engine:
            stream = asyncio.create_task(text_of(engine, completion("Once upon a time", 40)))
            while len(stats) < 3:  # noqa: ASYNC110 - turns, until it decodes
                await asyncio.sleep(0)
            long = completion("The quick brown fox jumps over it. " * 16, 2)
            _, end = await text_of(engine, long)
            assert end.usage.prompt_tokens > 120
            await stream

    asyncio.run(main())
    assert len(allowed) > 3, "nothing was computed beside the stream"
    assert all(num_prompt <= most for num_prompt, most in allowed)
    assert all(step.expected_s and step.expected_s > 0 for step in stats)


def test_a_deterministic_request_has_the_same_bytes_under_load() -> None:
    """Alone, beside others that come before, with and after it, and after a cache knows it."""
    runtime = Recording()
    asked = completion("A list of animals: a cat, a dog, " * 8, 8, deterministic=True)
    same_cached = completion("A list of animals: a cat, a dog, " * 8, 2)

    async def main() -> None:
        async with engine_on(runtime, []) as engine:
            alone, end = await text_of(engine, asked)
            assert end.usage.prompt_tokens > 60
            own_steps = list(runtime.steps)
            assert own_steps == [[end.usage.prompt_tokens], *[[1]] * 7]
            others = [completion(f"{n} things about {n}: " * (n + 1), 4 + n) for n in range(5)]
            texts = await asyncio.gather(
                *(text_of(engine, other) for other in others[:3]),
                text_of(engine, same_cached),
                text_of(engine, asked),
                *(text_of(engine, other) for other in others[3:]),
                text_of(engine, asked),
            )
            assert [texts[4][0], texts[-1][0]] == [alone, alone]
            assert texts[4][1].usage.cached_tokens == 0
            places = [n for n in range(len(runtime.steps)) if runtime.steps[n : n + 8] == own_steps]
            assert len(places) == 3, "it was not computed in the same steps, and alone"

    asyncio.run(main())
