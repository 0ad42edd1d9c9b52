"""The worker on the fake: log probabilities of prompts, whoever computes beside them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core import Finished, FinishReason, SamplingParams
from llmserve.engine.messages import Failed
from llmserve.engine.runtime import Chunk, Logits
from tests.engine.solo import GREEDY, answer_alone
from tests.engine.worker.test_worker import Bench, expected_logprobs
from tests.fakes import EOS, FakeRuntime

prompts = st.lists(st.integers(0, EOS), min_size=1, max_size=40)


@settings(deadline=None)
@given(
    st.lists(st.tuples(prompts, st.integers(0, 9), st.sampled_from([None, 0, 3])), max_size=6),
    st.integers(50, 120),
    st.integers(1, 4),
    st.integers(4, 32),
    st.integers(1, 40),
)
def test_they_are_what_the_prompt_alone_would_have(
    requests: list[tuple[list[int], int, int | None]],
    num_cells: int,
    num_slots: int,
    max_batch: int,
    max_outputs: int,
) -> None:
    """However it is cut into steps, and however often it is preempted; all the rest as ever."""
    bench = Bench(
        FakeRuntime(
            num_cells=num_cells,
            num_slots=num_slots,
            max_batch=max_batch,
            max_outputs=max_outputs,
        )
    )
    ids = [
        bench.submit(prompt, n, num_logprobs=k, prompt_logprobs=k is not None)
        for prompt, n, k in requests
    ]
    bench.run()
    for request_id, (prompt, max_tokens, num_top) in zip(ids, requests, strict=True):
        if max_tokens:
            assert bench.answer(request_id) == answer_alone(prompt, max_tokens)
        else:
            assert bench.answer(request_id) == ("", FinishReason.LENGTH, None, 0)
        if num_top is None:
            assert request_id not in bench.prompts
            continue
        told = bench.prompts[request_id]
        assert told.first == bench.runtime.detokenize(prompt[:1])
        assert [score.chosen.token for score in told.rest] == prompt[1:]
        assert [score.chosen.logprob for score in told.rest] == pytest.approx(
            expected_logprobs(prompt[:1], prompt[1:]), abs=1e-5
        )
        for index, score in enumerate(told.rest, 1):
            row = bench.runtime._logits(prompt[:index])
            top = np.argsort(-row, kind="stable")[:num_top].tolist()
            assert [token.token for token in score.top] == top
    assert not any(bench.runtime.cells)


def test_a_preempted_prompt_is_told_once_and_whole() -> None:
    """A stream that began before it grows into its cells, and the prompt is computed again."""
    runtime = FakeRuntime(num_cells=90, num_slots=2, max_outputs=2)
    bench = Bench(runtime)
    bench.expect_short_answers()
    endless = SamplingParams(temperature=0, ignore_eos=True)
    bench.submit([1], 70, sampling=endless)
    for _ in range(15):
        bench.step()
    prompt = list(range(40))
    request_id = bench.submit(prompt, 1, num_logprobs=0, prompt_logprobs=True)
    bench.run()
    assert [s.chosen.token for s in bench.prompts[request_id].rest] == prompt[1:]
    assert sum(runtime.batch_sizes) > 1 + 70 + 40, "nothing was preempted: a useless test"


def test_every_generated_token_is_listed_even_the_end() -> None:
    """As lm-eval counts on, which takes the last entry for the generated token."""
    ends = SamplingParams(temperature=0, logit_bias={EOS: 100.0})
    bench = Bench(FakeRuntime())
    scored = bench.submit([1, 2], 1, sampling=ends, num_logprobs=1, prompt_logprobs=True)
    plain = bench.submit([1, 2], 1, sampling=ends, num_logprobs=1)
    bench.run()
    (entry,) = bench.logprobs[scored]
    assert (entry.chosen.token, entry.chosen.data) == (EOS, b"")
    assert entry.chosen.logprob == pytest.approx(expected_logprobs([1, 2], [EOS])[0], abs=1e-5)
    assert bench.logprobs[plain] == []
    assert bench.answer(scored) == bench.answer(plain)


@pytest.mark.parametrize("token", [0x41, 0xC3, 0xFF])
def test_a_part_of_a_character_is_listed_too(token: int) -> None:
    bias = SamplingParams(temperature=0, logit_bias={token: 100.0})
    bench = Bench(FakeRuntime())
    request_id = bench.submit([1], 1, sampling=bias, num_logprobs=1, prompt_logprobs=True)
    bench.run()
    assert [e.chosen.token for e in bench.logprobs[request_id]] == [token]


class SickRuntime(FakeRuntime):
    """Has no usable logits after a token 66."""

    def decode(self, chunks: list[Chunk]) -> Logits:  # type: ignore[override]
        rows = super().decode(chunks)
        ends = np.cumsum([chunk.num_outputs for chunk in chunks])
        for chunk, end in zip(chunks, ends, strict=True):
            if chunk.wants_all and 66 in chunk.tokens:
                rows[end - len(chunk.tokens) + list(chunk.tokens).index(66)] = np.nan
        return rows


def test_a_prompt_without_finite_logits_fails_alone() -> None:
    bench = Bench(SickRuntime())
    sick = bench.submit([65, 66, 67, 68], 3, num_logprobs=1, prompt_logprobs=True)
    sound = bench.submit([65, 67], 3, num_logprobs=1, prompt_logprobs=True)
    bench.run()
    assert bench.ends[sick] == Failed("the model computed no finite logits for this request")
    assert sick not in bench.prompts
    assert isinstance(bench.ends[sound], Finished)
    assert not any(bench.runtime.cells)


def test_a_prompt_that_fills_the_context_can_be_scored_without_an_answer() -> None:
    bench = Bench(FakeRuntime(num_cells=30))
    request_id = bench.submit([7] * 30, 0, num_logprobs=0, prompt_logprobs=True, sampling=GREEDY)
    bench.run()
    assert len(bench.prompts[request_id].rest) == 29
    assert bench.answer(request_id) == ("", FinishReason.LENGTH, None, 0)
