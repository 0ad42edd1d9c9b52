"""Prefixes on llama.cpp: computed once, and the answers as without them, whatever the model.

Logits move a little with the batch that computed them. So an answer is compared with that of the
same tokens computed alone, one after the other, up to where two tokens are about equally likely.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from llmserve.core import Finished, SamplingParams
from llmserve.engine.input.pins import Pin
from llmserve.engine.kvcache.disk_store import DiskOptions
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.runtime import Chunk, OutOfCellsError
from llmserve.engine.worker.worker import Worker
from llmserve.errors import EngineError
from tests.engine.worker.test_worker import Bench
from tests.fakes import FakeRuntime
from tests.policies import policy
from tests.smollm2 import MODEL
from tests.tiny_models import write_gemma3, write_lfm2, write_llama, write_mamba

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
MARGIN = 1.5  # logits; what the same token's differed by at most between batches: 1.3


class LlamaBench(Bench):
    """A worker on llama.cpp, stepped by hand, that knows what was said and computed."""

    def __init__(self, runtime: LlamaRuntime, *, prefix_cache_bytes: int = 1 << 28) -> None:
        super().__init__(cast(FakeRuntime, runtime), prefix_cache_bytes=prefix_cache_bytes)
        self.llama = runtime
        self.num_computed = 0

        self.state_sizes = [self.state_size(2, num_tokens) for num_tokens in (1, 2)]

    def state_size(self, slot: int, num_tokens: int | None = None) -> int:
        """Bytes by llama.cpp's own count; with `num_tokens` after these, in an empty slot."""
        if num_tokens:
            self.llama.decode([Chunk(slot, 0, [5] * num_tokens, False)])
        size = int(lib.llama_state_seq_get_size(self.llama._context, slot))
        if num_tokens:
            self.llama.trim(slot, 0)
        return size

    def check_books(self) -> None:
        """Ours, and against llama.cpp's: first and last position, and how much is in a state."""
        self.worker._kv.check_integrity()
        if not self.llama.limits.can_cut:
            return
        one, two = self.state_sizes
        for sequence in self.worker._roster.running:
            assert sequence.slot is not None
            assert lib.llama_memory_seq_pos_min(self.llama._cells._memory, sequence.slot) in (-1, 0)
            if num_more := sequence.num_computed - 1:
                expected = one + num_more * (two - one)
                assert self.state_size(sequence.slot) == expected

    def ask(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """All at once; what was generated for each."""
        sequences = []
        for prompt in prompts:
            request_id = self.submit(prompt, num_tokens, sampling=GREEDY)
            command = self.worker._inbox.get()
            self.worker._handle(cast(Any, command))
            sequences.append(self.worker._roster.waiting[-1])
            assert sequences[-1].id == request_id
        self.run()
        self.num_computed = sum(stats.num_prefilled for stats in self.stats)
        self.stats.clear()
        assert all(isinstance(self.ends[s.id], Finished) for s in sequences)
        self.cached = [s.num_cached for s in sequences]
        return [s.tokens[s.prompt_len :] for s in sequences]


def num_agreed(runtime: LlamaRuntime, prompt: list[int], answer: list[int], margin: float) -> int:
    """How far `answer` is what the model says alone; asserts that it is, but for close calls."""
    eog = list(runtime.info.eog_tokens)
    tokens = list(prompt)
    try:
        for index, token in enumerate(answer):
            start = runtime.num_tokens(0)
            row = runtime.decode([Chunk(0, start, tokens[start:], True)])[0].copy()
            row[eog] = -np.inf
            second, first = np.sort(row)[-2:]
            if first - second < margin and row.argmax() != token:
                return index
            assert row.argmax() == token, (index, first - second)
            tokens.append(token)
        return len(answer)
    finally:
        runtime.trim(0, 0)


# -- the embedded model --------------------------------------------------------------------------

TEXT = (
    "Nets, boats and the price of herring: what the harbour talks about on a morning in May. " * 12
)


@pytest.fixture(scope="module")
def loaded() -> Iterator[LlamaRuntime]:
    runtime = LlamaRuntime(
        MODEL, LlamaParams(context_length=1024, max_sequences=4, max_outputs=16, num_threads=1)
    )
    yield runtime
    runtime.close()


@pytest.fixture
def runtime(loaded: LlamaRuntime) -> LlamaRuntime:
    for slot in range(loaded.limits.num_slots):
        loaded.trim(slot, 0)
    return loaded


@pytest.fixture
def prefix(runtime: LlamaRuntime) -> list[int]:
    return runtime.tokenize(TEXT, add_special=True)[:80]


def test_a_cold_prefix_of_many_is_computed_once(runtime: LlamaRuntime, prefix: list[int]) -> None:
    """More requests than slots; afterwards it is warm, and only last tokens are computed."""
    prompts = [[*prefix, 1000 + n, 28, 30] for n in range(6)]
    bench = LlamaBench(runtime)
    for cached in ([0] + [len(prefix)] * 5, [len(prefix) + 2] * 6):
        answers = bench.ask(prompts, 4)
        assert bench.cached == cached
        assert bench.num_computed <= sum(map(len, prompts)) - sum(cached)
        assert num_agreed(runtime, prompts[5], answers[5], MARGIN) > 0


def test_saved_cells_are_those_that_were_computed(runtime: LlamaRuntime, prefix: list[int]) -> None:
    """In pieces or shared, they are the same bytes, and the next logits the same bits."""
    size = len(prefix) - 2
    starts = range(0, size, 32)
    runtime.decode([Chunk(0, 0, prefix[:size], False)])
    pieces = [runtime.save(0, start, min(start + 32, size)) for start in starts]
    whole = runtime.save(0, 0, size)
    expected = runtime.decode([Chunk(0, size, prefix[size:], True)])[0].copy()
    runtime.trim(0, 0)
    for start, piece in zip(starts, pieces, strict=True):
        runtime.load(0, piece, min(start + 32, size))
    assert np.array_equal(runtime.save(0, 0, size), whole)
    assert np.array_equal(runtime.decode([Chunk(0, size, prefix[size:], True)])[0], expected)
    runtime.share(0, 1, 50)
    runtime.trim(0, 0)
    assert [runtime.num_tokens(slot) for slot in (0, 1)] == [0, 50]
    runtime.share(1, 0, 40)
    runtime.trim(1, 0)
    assert np.array_equal(runtime.save(0, 0, 32), pieces[0])
    runtime.load(0, pieces[1], 55)
    other = runtime.decode([Chunk(0, 55, prefix[55:], True)])[0]
    assert np.abs(other - expected).max() < MARGIN, "in another batch: the bits may differ"
    runtime.trim(0, 0)
    assert lib.llama_state_seq_get_size(runtime._context, 0) < 1000, "nothing is left"


def test_a_state_of_another_model_is_refused(runtime: LlamaRuntime, tmp_path: Path) -> None:
    runtime.decode([Chunk(0, 0, [1, 2, 3], False)])
    state = runtime.save(0, 0, 3)
    runtime.trim(0, 0)
    other = LlamaRuntime(
        write_llama(tmp_path / "tiny.gguf"),
        LlamaParams(context_length=256, max_sequences=16, max_outputs=16),
    )
    try:
        with pytest.raises((OutOfCellsError, EngineError)):
            other.load(0, state, 3)
        assert other.num_tokens(0) == 0
        for cut in (0, 10, len(state) // 2):
            with pytest.raises((OutOfCellsError, EngineError)):
                runtime.load(0, state[:cut], 3)
            assert runtime.num_tokens(0) == 0
    finally:
        other.close()


def test_preempted_sequences_go_on_from_what_was_parked() -> None:
    small = LlamaRuntime(
        MODEL, LlamaParams(context_length=256, max_sequences=3, max_outputs=16, num_threads=1)
    )
    try:
        prompts = [small.tokenize(f"{n} {TEXT[:40]}", add_special=True) for n in range(3)]
        bench = LlamaBench(small)
        bench.worker._planner.lengths.observe(1)  # expects short answers, and lets all of them in
        for prompt in prompts:
            bench.submit(prompt, 90, sampling=GREEDY)
        bench.run()
        assert len(bench.ends) == 3
        assert any(load.num_waiting and load.num_running for load in bench.loads)
        num_prefilled = sum(stats.num_prefilled for stats in bench.stats)
        assert num_prefilled <= sum(map(len, prompts)) + 3, "nothing was computed twice"
    finally:
        small.close()


def test_a_window_is_cut_only_where_all_that_is_seen_is_there(tmp_path: Path) -> None:
    path = write_gemma3(tmp_path / "tiny.gguf", window=32)
    runtime = LlamaRuntime(
        path, LlamaParams(context_length=512, max_sequences=2, max_outputs=16, num_threads=1)
    )
    tokens = random.Random(0).choices(range(3, 259), k=200)
    try:
        assert not runtime.limits.can_cut
        runtime.decode([Chunk(0, 0, tokens[:150], False)])
        state = runtime.save(0, 0, 150)
        kept = runtime.decode([Chunk(0, 150, tokens[150:], True)])[0].copy()
        runtime.trim(0, 0)
        runtime.load(0, state, 150)
        with pytest.raises(EngineError, match="is gone"):
            runtime.trim(0, 149)  # the state has what token 150 sees, and no more
        runtime.trim(0, 0)
        runtime.load(0, state, 150)
        loaded = runtime.decode([Chunk(0, 150, tokens[150:], True)])[0]
        assert np.array_equal(loaded, kept)
        runtime.trim(0, 199)  # as after an aborted step
    finally:
        runtime.close()


# -- whatever the model --------------------------------------------------------------------------

ARCHITECTURES: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "full attention": (write_llama, {}),
    "window": (write_gemma3, {"window": 32}),
    "larger window": (write_gemma3, {"window": 100}),
    "recurrent": (write_mamba, {}),
    "hybrid": (write_lfm2, {}),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_conversations_are_answered_as_without_a_cache(name: str, tmp_path: Path) -> None:
    write, arguments = ARCHITECTURES[name]
    path = write(tmp_path / "tiny.gguf", **arguments)
    runtime = LlamaRuntime(
        path, LlamaParams(context_length=1024, max_sequences=4, max_outputs=16, num_threads=1)
    )
    assert runtime.limits.can_cut == (name == "full attention")
    rng = random.Random(name)
    bench = LlamaBench(runtime)
    system = rng.choices(range(3, 259), k=60)
    conversations = [list(system) for _ in range(4)]
    num_cached = num_compared = num_generated = 0
    try:
        for _ in range(4):
            for conversation in conversations:
                conversation += rng.choices(range(3, 259), k=rng.randint(1, 30))
            if rng.random() < 0.5:  # somebody goes back and asks something else
                rng.choice(conversations)[rng.randint(40, 80) :] = rng.choices(range(3, 259), k=9)
            answers = bench.ask(conversations, 12)
            num_cached += sum(bench.cached)
            for conversation, answer in zip(conversations, answers, strict=True):
                num_compared += num_agreed(runtime, conversation, answer, margin=0.05)
                num_generated += len(answer)
                conversation += answer
        assert num_cached > 4 * 3 * 60
        assert num_compared > num_generated / 2, "too many close calls to say anything"
    finally:
        runtime.close()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pinned_prompts_outlive_the_worker(name: str, tmp_path: Path) -> None:
    """A checkpoint at their very end, where the model cannot be cut."""
    write, arguments = ARCHITECTURES[name]
    path = write(tmp_path / "tiny.gguf", **arguments)
    runtime = LlamaRuntime(
        path, LlamaParams(context_length=1024, max_sequences=4, max_outputs=16, num_threads=1)
    )
    rng = random.Random(name)
    system = rng.choices(range(3, 259), k=150)
    prompts = [[*system, *rng.choices(range(3, 259), k=9)] for _ in range(2)]
    disk = DiskOptions(tmp_path / "pinned", 1 << 28, "this")
    try:
        for is_known in (False, True):
            bench = LlamaBench(runtime)
            bench.worker = Worker(
                runtime,
                bench._note,
                prefix_cache_bytes=1 << 28,
                pinned_disk=disk,
                policy=policy(speculation=False),
            )
            bench.worker._kv.open()
            bench.worker._pinning.open([Pin("it", system)])
            assert bench.worker._pinning.has_work == (not is_known)
            while bench.worker._pinning.has_work:
                bench.worker._pinning.step()
                bench.check_books()
            bench.step()  # takes in that something came from disk
            answers = bench.ask(prompts, 12)
            assert bench.cached == [150, 150]
            for prompt, answer in zip(prompts, answers, strict=True):
                num_agreed(runtime, prompt, answer, margin=0.05)
            bench.worker._kv.close()
    finally:
        runtime.close()
