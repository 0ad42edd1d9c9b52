"""Drafting changes when tokens are computed, never which: on a fake that mostly repeats itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core import Delta, Finished, FinishReason, Mode, Request, SamplingParams
from llmserve.engine.engine import LocalEngine
from llmserve.engine.output.text import TextStream
from llmserve.engine.runtime import Logits
from llmserve.engine.sampling.sampler import Sampler
from llmserve.engine.scheduler import scheduler
from llmserve.engine.scheduler.scheduler import Work
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.structured.masks import StepMasks
from llmserve.engine.worker.postprocess import advance
from tests.engine.solo import GREEDY
from tests.fakes import EOS, FakeRuntime
from tests.policies import policy

ENDLESS = SamplingParams(temperature=0, ignore_eos=True)
PERIOD = 12
PROMPT = "abcdefghijkl" * 2


class Parrot(FakeRuntime):
    """Says what it said `PERIOD` tokens ago, but for about one token in eight."""

    def _logits(self, tokens: Seq[int]) -> Logits:
        row = super()._logits(tokens)
        if len(tokens) >= PERIOD and int(abs(row[0]) * 1000) % 8:
            row[tokens[-PERIOD]] += 30
        return row


@pytest.fixture(autouse=True)
def drafts_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guess costs on a fake says nothing."""
    monkeypatch.setattr(scheduler, "best_len", lambda acceptance, max_len, others, step_s: max_len)


class Answer:
    def __init__(self) -> None:
        self.text = ""
        self.num_tokens = 0
        self.reason = FinishReason.CANCELLED


@contextlib.asynccontextmanager
async def engine_on(runtime: FakeRuntime, *, speculation: bool) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine("fake", runtime, policy=policy(max_queue=1000, speculation=speculation))
    try:
        yield engine
    finally:
        await engine.close()


async def ask(engine: LocalEngine, request: Request) -> Answer:
    answer = Answer()
    async for event in engine.generate(request):
        match event:
            case Delta(text):
                answer.text += text
            case Finished(reason, _, usage):
                answer.num_tokens, answer.reason = usage.generated_tokens, reason
    return answer


def answers(requests: Seq[Request], *, speculation: bool) -> tuple[list[Answer], Parrot]:
    """All at once."""
    runtime = Parrot(num_cells=2000, max_outputs=32)

    async def main() -> list[Answer]:
        async with engine_on(runtime, speculation=speculation) as engine:
            return await asyncio.gather(*(ask(engine, request) for request in requests))

    return asyncio.run(asyncio.wait_for(main(), 60)), runtime


def request(prompt: str = PROMPT, max_tokens: int = 60, **fields: object) -> Request:
    return Request(
        prompt=prompt,
        mode=Mode.COMPLETION,
        max_tokens=max_tokens,
        **{"sampling": GREEDY, "seed": 1, **fields},  # type: ignore[arg-type]
    )


def test_a_copy_takes_fewer_steps() -> None:
    ((plain,), slow), ((drafted,), fast) = (
        answers([request(max_tokens=200, sampling=ENDLESS)], speculation=on) for on in (False, True)
    )
    assert drafted.text == plain.text
    assert drafted.num_tokens == plain.num_tokens
    assert len(fast.batch_sizes) < 0.6 * len(slow.batch_sizes)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text("abc", min_size=1, max_size=40),
            st.integers(1, 60),
            st.sampled_from(
                [
                    GREEDY,
                    SamplingParams(temperature=1.0),
                    SamplingParams(temperature=0.9, top_p=0.8, frequency_penalty=1.5),
                    SamplingParams(temperature=0, presence_penalty=2, ignore_eos=True),
                    ENDLESS,
                ]
            ),
            st.lists(st.text("abc", min_size=1, max_size=3), max_size=2),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_answers_are_the_same(
    asked: list[tuple[str, int, SamplingParams, list[str]]],
) -> None:
    requests = [
        request(prompt, max_tokens, sampling=sampling, stop=tuple(stops), seed=index)
        for index, (prompt, max_tokens, sampling, stops) in enumerate(asked)
    ]
    plain, _ = answers(requests, speculation=False)
    drafted, _ = answers(requests, speculation=True)
    for one, other in zip(plain, drafted, strict=True):
        assert (one.text, one.num_tokens, one.reason) == (
            other.text,
            other.num_tokens,
            other.reason,
        )


def test_what_is_drawn_behind_a_guess_has_the_models_distribution() -> None:
    """Two rows of five tokens, of which the first one's guess is right half of the time."""
    runtime = FakeRuntime()
    probabilities = np.array([[0.5, 0.2, 0.15, 0.1, 0.05], [0.4, 0.25, 0.2, 0.1, 0.05]])
    logits = np.full((2, EOS + 1), -np.inf, dtype=np.float32)
    logits[:, :5] = np.log(probabilities)
    first, second = np.zeros(5), np.zeros(5)
    num_drawn = 4000
    for seed in range(num_drawn):
        sequence = waiting_for_one(seed)
        outcome = advance(
            [Work(sequence, 1, draft=(0,))], logits, StepMasks({}, {}), runtime, now_s=0.0
        )
        drawn = sequence.tokens[1:]
        first[drawn[0]] += 1
        assert outcome.num_accepted == (drawn[0] == 0) == len(drawn) - 1
        assert sequence.num_pending == 1
        if len(drawn) == 2:
            second[drawn[1]] += 1
    for counts, expected in zip((first, second), probabilities, strict=True):
        expected = expected * counts.sum()
        assert ((counts - expected) ** 2 / expected).sum() < 23.5  # 4 degrees, p = 1e-4
    assert abs(second.sum() / num_drawn - 0.5) < 0.04


def waiting_for_one(seed: int) -> Sequence:
    """A sequence with one pending token."""
    sampling = SamplingParams(temperature=1.0)
    sampler = Sampler(sampling, seed=seed, vocab_size=EOS + 1, eog_tokens=[EOS])
    return Sequence(
        id=0,
        arrival=0,
        request=Request(),
        tokens=[7],
        max_len=10,
        sampler=sampler,
        text=TextStream(),
        accepted_s=0.0,
    )


@pytest.mark.parametrize("max_tokens", range(1, 30))
def test_the_length_is_exact(max_tokens: int) -> None:
    (answer,), _ = answers(
        [request(max_tokens=max_tokens, sampling=ENDLESS)],
        speculation=True,
    )
    assert answer.num_tokens == max_tokens
    assert answer.reason == FinishReason.LENGTH


def test_no_draft_without_its_conditions() -> None:
    """Deterministic requests, and models that cannot be cut, decode one by one."""
    for runtime, deterministic in (
        (Parrot(num_cells=2000, can_cut=False), False),
        (Parrot(num_cells=2000), True),
    ):

        async def main(runtime: Parrot = runtime, deterministic: bool = deterministic) -> int:
            async with engine_on(runtime, speculation=True) as engine:
                asked = request(sampling=ENDLESS, deterministic=deterministic)
                return (await ask(engine, asked)).num_tokens

        num_tokens = asyncio.run(asyncio.wait_for(main(), 60))
        assert runtime.batch_sizes[-num_tokens + 1 :] == [1] * (num_tokens - 1)
