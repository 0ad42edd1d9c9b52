"""Embeddings through the engine, on the fake: validation, queueing, leaving, the end."""

import asyncio
import itertools
import threading
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core import EmbeddingRequest, Embeddings, Vectors
from llmserve.engine.engine import LocalEngine
from llmserve.engine.input import embedding
from llmserve.engine.input.embedding import normalized
from llmserve.engine.runtime import EmbeddingLimits, InputChunk
from llmserve.errors import (
    EngineError,
    InvalidRequestError,
    LlmserveError,
    QueueFullError,
    ShuttingDownError,
    TooLargeError,
)
from tests.engine.test_engine import (
    Gate,
    answer,
    completion,
    engine_on,
    run,
    settle,
    until_decoding,
)
from tests.fakes import EOS, FakeRuntime, fake_vector
from tests.policies import policy

DIM = 8
LIMITS = EmbeddingLimits(DIM, max_len=64, max_batch=32, max_inputs=4, num_cells=64)
WHOLE = EmbeddingLimits(DIM, max_len=64, max_batch=32, max_inputs=4, num_cells=None)


def request(*inputs: str | tuple[int, ...], dimensions: int | None = None) -> EmbeddingRequest:
    return EmbeddingRequest(inputs, dimensions=dimensions)


def expected(inputs: Sequence[str | tuple[int, ...]], dimensions: int = DIM) -> Vectors:
    rows = [list(each.encode()) if isinstance(each, str) else each for each in inputs]
    vectors = np.array([fake_vector(row, DIM)[:dimensions] for row in rows])
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def check(
    found: Embeddings, inputs: Sequence[str | tuple[int, ...]], dimensions: int = DIM
) -> None:
    assert found.model == "fake"
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, expected(inputs, dimensions), atol=1e-6)
    assert found.prompt_tokens == sum(
        len(each.encode()) if isinstance(each, str) else len(each) for each in inputs
    )


# -- vectors -------------------------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=5
    ),
    st.integers(1, 4),
)
def test_normalized(rows: list[list[float]], dimensions: int) -> None:
    vectors = np.array(rows, dtype=np.float32)
    found = normalized(vectors, dimensions)
    assert found.shape == (len(rows), dimensions)
    assert found.dtype == np.float32
    for row, unit in zip(vectors[:, :dimensions].astype(np.float64), found, strict=True):
        length = float(np.linalg.norm(row))
        np.testing.assert_allclose(unit * length, row, atol=1e-6 * max(1, length))
        assert abs(np.linalg.norm(unit) - (length > 0)) < 1e-5


# -- what is asked -------------------------------------------------------------------------------


def test_texts_and_tokens_and_dimensions() -> None:
    async def test() -> None:
        async with engine_on(FakeRuntime(embedding=LIMITS)) as engine:
            check(await engine.embed(request("hello")), ["hello"])
            mixed = ("one", (1, 2, 3), "one", (255,), "x" * 64)
            check(await engine.embed(request(*mixed)), mixed)
            for dimensions in (1, 3, DIM):
                found = await engine.embed(request("a", "b", dimensions=dimensions))
                check(found, ["a", "b"], dimensions)

    run(test)


@pytest.mark.parametrize(
    ("wrong", "kind", "param", "words"),
    [
        (request(), InvalidRequestError, "input", "empty list"),
        (request(""), InvalidRequestError, "input", "input is empty"),
        (request("a", ""), InvalidRequestError, "input[1]", r"input\[1\] is empty"),
        (request(()), InvalidRequestError, "input", "input is empty"),
        (
            request("a", "\ud800"),
            InvalidRequestError,
            "input[1]",
            "is not valid Unicode",
        ),
        (request("\ud800" * 99), InvalidRequestError, "input", "input is not valid Unicode"),
        (request((1, EOS + 1)), InvalidRequestError, "input", "token 257 at index 1"),
        (request("x" * 65), TooLargeError, "input", "input has at least 65 tokens.* 64 at once"),
        (request("a", (1,) * 65), TooLargeError, "input[1]", r"input\[1\] has 65 tokens"),
        (request("a", dimensions=0), InvalidRequestError, "dimensions", "0; this model has 8"),
        (request("a", dimensions=9), InvalidRequestError, "dimensions", "9; this model has 8"),
    ],
)
def test_what_is_wrong_is_named(
    wrong: EmbeddingRequest, kind: type[LlmserveError], param: str, words: str
) -> None:
    async def test() -> None:
        async with engine_on(FakeRuntime(embedding=LIMITS)) as engine:
            with pytest.raises(kind, match=words) as caught:
                await engine.embed(wrong)
            assert caught.value.param == param
            check(await engine.embed(request("and goes on")), ["and goes on"])

    run(test)


def test_a_text_much_too_long_is_refused_by_its_beginning() -> None:
    """As a vocabulary without a bound needs it; and what has few tokens for its length is not."""

    class Folding(FakeRuntime):
        """Runs of spaces have no token."""

        def __init__(self) -> None:
            super().__init__(embedding=WHOLE)
            self.info = msgspec.structs.replace(self.info, max_token_bytes=None)
            self.lengths: list[int] = []

        def tokenize(
            self, text: str, *, add_special: bool, parse_special: bool = True
        ) -> list[int]:
            self.lengths.append(len(text))
            return list(text.replace(" ", "").encode())

    async def test() -> None:
        runtime = Folding()
        async with engine_on(runtime) as engine:
            with pytest.raises(TooLargeError, match="at least 512 tokens"):
                await engine.embed(request("x" * 1_000_000))
            assert runtime.lengths == [512]
            spaced = "a" + " " * 3000 + "b"
            found = await engine.embed(request(spaced))
            np.testing.assert_allclose(found.vectors, expected(["ab"]), atol=1e-6)
            assert runtime.lengths == [512, 512, 1024, 2048, 3002]

    run(test)


def test_all_inputs_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MAX_TOKENS", 100)

    async def test() -> None:
        async with engine_on(FakeRuntime(embedding=LIMITS)) as engine:
            texts = ["x" * 50, "y" * 50]
            check(await engine.embed(request(*texts)), texts)
            with pytest.raises(InvalidRequestError, match="more than 100 tokens"):
                await engine.embed(request(*texts, "z"))

    run(test)


def test_a_model_that_is_not_set_up_says_how() -> None:
    async def test() -> None:
        async with engine_on(FakeRuntime()) as engine:
            with pytest.raises(
                InvalidRequestError, match=r'pooling = "mean".*\[models\.fake\]'
            ) as e:
                await engine.embed(request("a"))
            assert e.value.param == "model"

    run(test)


def test_a_model_for_embeddings_generates_nothing() -> None:
    async def test() -> None:
        async with engine_on(FakeRuntime(embedding=WHOLE, generates=False)) as engine:
            with pytest.raises(InvalidRequestError, match=r"generates no text.*/v1/embeddings"):
                await anext(engine.generate(completion("a")))
            check(await engine.embed(request("a", "b" * 60)), ["a", "b" * 60])

    run(test)


# -- many at once --------------------------------------------------------------------------------


def test_beside_each_other_and_beside_generation() -> None:
    """Everybody gets what they would get alone."""

    async def test() -> None:
        runtime = FakeRuntime(embedding=LIMITS)
        async with engine_on(runtime) as engine:
            alone = await answer(engine, completion("hello", 20))
            asked = [[f"{n}-{i}" * (1 + i % 9) for i in range(n)] for n in (1, 40, 3, 17)]
            embeds = [asyncio.create_task(engine.embed(request(*texts))) for texts in asked]
            answers = await asyncio.gather(*(answer(engine, completion("hello", 20)) for _ in "ab"))
            assert answers == [alone, alone]
            for texts, task in zip(asked, embeds, strict=True):
                check(await task, texts)
        assert runtime.inputs == {}

    run(test)


def test_streams_go_on_while_a_large_request_is_embedded() -> None:
    async def test() -> None:
        gate = Gate()
        runtime = FakeRuntime(embedding=LIMITS, gate=gate.semaphore)
        async with engine_on(runtime) as engine:
            large = asyncio.create_task(engine.embed(request(*["x" * 60] * 100)))
            await until_decoding(runtime)
            stream = asyncio.create_task(answer(engine, completion("hello", 20)))
            await settle(lambda: engine._num_active == 1 and not engine._worker._inbox.empty())
            gate.open(10_000)
            await stream
            check(await large, ["x" * 60] * 100)
        steps = [i for i, size in enumerate(runtime.batch_sizes) if size == 1]
        assert len(steps) > 10
        # Never more than one batch between two of its tokens, and never a large one.
        assert all(after - before <= 2 for before, after in itertools.pairwise(steps))
        assert max(runtime.batch_sizes) <= 32

    run(test)


def test_the_queue_is_bounded() -> None:
    async def test() -> None:
        gate = Gate()
        runtime = FakeRuntime(embedding=LIMITS, gate=gate.semaphore)
        async with engine_on(runtime, policy(max_queue=2)) as engine:
            first = [asyncio.create_task(engine.embed(request(f"{i}"))) for i in range(6)]
            await settle(lambda: engine._num_embedding == 6)
            with pytest.raises(
                QueueFullError, match="embeds for 4 requests at a time and 2 more"
            ) as caught:
                await engine.embed(request("a"))
            assert caught.value.retry_after_s
            generated = asyncio.create_task(answer(engine, completion("a", 1)))  # has its own
            gate.open(1000)
            for i, task in enumerate(first):
                check(await task, [f"{i}"])
            await generated
            check(await engine.embed(request("a")), ["a"])

    run(test)


# -- leaving, and the end ------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [LIMITS, WHOLE])
def test_leaving_interrupts(limits: EmbeddingLimits) -> None:
    """The batch that runs for nobody else ends at once, and nothing is computed after it."""

    async def test() -> None:
        gate = Gate()
        runtime = FakeRuntime(embedding=limits, gate=gate.semaphore)
        async with engine_on(runtime) as engine:
            task = asyncio.create_task(engine.embed(request(*["x" * 60] * 20)))
            await until_decoding(runtime)
            task.cancel()
            await asyncio.wait([task])
            await settle(lambda: not engine._worker._embedder.has_work)
            assert len(runtime.batch_sizes) == 1
            gate.open(100)
            check(await engine.embed(request("next")), ["next"])

    run(test)


def test_the_end_of_the_model_is_told() -> None:
    async def test() -> None:
        runtime = FakeRuntime(embedding=LIMITS, gate=threading.Semaphore(0))
        engine = LocalEngine("fake", runtime, policy=policy())
        tasks = [asyncio.create_task(engine.embed(request("x" * 60))) for _ in range(3)]
        await until_decoding(runtime)
        await engine.close()
        for task in tasks:
            with pytest.raises(ShuttingDownError):
                await task
        with pytest.raises(ShuttingDownError):
            await engine.embed(request("a"))
        assert runtime.closed

    run(test)


def test_a_failure_is_told() -> None:
    class Failing(FakeRuntime):
        def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
            raise EngineError("llama_decode failed with code -3")

    async def test() -> None:
        async with engine_on(Failing(embedding=LIMITS)) as engine:
            with pytest.raises(EngineError, match="code -3"):
                await engine.embed(request("a"))
            await answer(engine, completion("hello", 3))

    run(test)


def test_a_dead_worker_is_told() -> None:
    class Dying(FakeRuntime):
        def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
            raise RuntimeError("a bug")

    async def test() -> None:
        engine = LocalEngine("fake", Dying(embedding=LIMITS), policy=policy())
        with pytest.raises(EngineError, match="the engine failed"):
            await engine.embed(request("a"))
        assert not engine.is_alive
        await engine.close()

    run(test)
