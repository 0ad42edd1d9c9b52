"""Shipped fakes, for fast tests of everything above them. Never used by the server itself."""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from llmserve.engine.runtime import (
    AbortedError,
    Chunk,
    InfillTokens,
    Logits,
    ModelInfo,
    OutOfCellsError,
    RuntimeLimits,
    State,
)
from llmserve.errors import EngineError

EOS = 256
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class FakeRuntime:
    """A byte-level model in memory, as strict about its KV cells as llama.cpp.

    The next token is a function of the whole sequence, read back from the cells, so that any
    mistake in positions, slots or reuse changes the text. `gate`, where set, holds every decode
    until released: tests drive steps without sleeping. Without `can_cut` it is like a recurrent
    model: a sequence can only be emptied, saved whole, or continued at its end.
    """

    def __init__(
        self,
        *,
        num_cells: int = 256,
        num_slots: int = 4,
        max_batch: int = 32,
        max_outputs: int = 8,
        context_length: int | None = None,
        chat_template: str | None = TEMPLATE,
        can_cut: bool = True,
        infill: InfillTokens | None = None,
        gate: threading.Semaphore | None = None,
    ) -> None:
        self.info = ModelInfo(
            description="fake",
            vocab_size=EOS + 1,
            eog_tokens=frozenset([EOS]),
            bos_text="",
            eos_text="",
            chat_template=chat_template,
            max_token_bytes=1,
            infill=infill,
        )
        self.limits = RuntimeLimits(
            num_cells,
            num_slots,
            max_batch,
            context_length or num_cells,
            max(max_outputs, num_slots),
            can_cut,
        )
        self.cells: list[list[int]] = [[] for _ in range(num_slots)]
        self._cell_ids: list[list[object]] = [[] for _ in range(num_slots)]  # shared ones are equal
        self.batch_sizes: list[int] = []
        self.num_saved = 0  # tokens
        self.decoding = threading.Event()  # set while a decode call runs
        self.closed = False
        self._gate = gate
        self._aborted = threading.Event()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        assert not self.closed
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == EOS else bytes([token])

    def grammar_tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_ByteTokenizer()), slices=[])

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        assert not self.closed
        return b"".join(b"<eos>" if token == EOS else bytes([token]) for token in tokens)

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        assert not self.closed
        size = sum(len(chunk.tokens) for chunk in chunks)
        assert 0 < size <= self.limits.max_batch
        assert len({chunk.slot for chunk in chunks}) == len(chunks)
        self.batch_sizes.append(size)
        self.decoding.set()
        try:
            if self._gate:
                while not self._gate.acquire(timeout=0.01):
                    if self._aborted.is_set():
                        raise AbortedError
        finally:
            self.decoding.clear()
        self._check_room(size)
        for chunk in chunks:
            assert chunk.start == len(self.cells[chunk.slot]), "positions must be consecutive"
            self._write(chunk.slot, chunk.tokens)
        assert sum(chunk.num_outputs for chunk in chunks) <= self.limits.max_outputs
        rows = [
            self._logits(self.cells[chunk.slot][: len(self.cells[chunk.slot]) - behind])
            for chunk in chunks
            for behind in reversed(range(chunk.num_outputs))
        ]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.info.vocab_size)

    def _logits(self, tokens: Sequence[int]) -> Logits:
        digest = hashlib.sha256(bytes(token % 256 for token in tokens)).digest()
        return np.random.default_rng(list(digest)).normal(size=EOS + 1).astype(np.float32) * 4

    @property
    def num_used_cells(self) -> int:
        return len({cell for ids in self._cell_ids for cell in ids})

    def _check_room(self, num_tokens: int) -> None:
        if self.num_used_cells + num_tokens > self.limits.num_cells:
            raise OutOfCellsError

    def _write(self, slot: int, tokens: Sequence[int]) -> None:
        self.cells[slot].extend(tokens)
        self._cell_ids[slot].extend(object() for _ in tokens)

    def trim(self, slot: int, num_tokens: int) -> None:
        if not self.limits.can_cut and 0 < num_tokens < len(self.cells[slot]):
            raise EngineError(f"cannot cut at {num_tokens}")
        del self.cells[slot][num_tokens:]
        del self._cell_ids[slot][num_tokens:]

    def share(self, source: int, target: int, num_tokens: int) -> None:
        assert self.limits.can_cut
        assert not self.cells[target]
        assert 0 < num_tokens <= len(self.cells[source])
        self.cells[target].extend(self.cells[source][:num_tokens])
        self._cell_ids[target].extend(self._cell_ids[source][:num_tokens])

    def save(self, slot: int, start: int, end: int) -> State:
        assert 0 <= start < end <= len(self.cells[slot])
        assert self.limits.can_cut or (start, end) == (0, len(self.cells[slot]))
        self.num_saved += end - start
        return np.array([start, *self.cells[slot][start:end]], dtype=np.int32).view(np.uint8)

    def load(self, slot: int, state: State, end: int) -> None:
        start, *tokens = state.view(np.int32).tolist()
        begin = len(self.cells[slot])
        assert start <= begin < end <= start + len(tokens)
        assert self.limits.can_cut or (begin, end) == (0, len(tokens))
        self._check_room(len(tokens))
        self._write(slot, tokens[begin - start : end - start])

    def num_tokens(self, slot: int) -> int:
        return len(self.cells[slot])

    def clear(self) -> None:
        for cells in self.cells:
            cells.clear()

    def abort(self) -> None:
        self._aborted.set()

    def clear_abort(self) -> None:
        self._aborted.clear()

    def close(self) -> None:
        self.closed = True


class _ByteTokenizer:
    """What llguidance asks of a tokenizer: `FakeRuntime`'s, every byte a token."""

    eos_token_id = EOS
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(EOS)), b"")
    special_token_ids = ()

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def reference_greedy(prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What `FakeRuntime` generates for `prompt` alone, one token at a time."""
    runtime = FakeRuntime(num_cells=len(prompt) + max_tokens + 1, max_batch=len(prompt))
    generated: list[int] = []
    pending = list(prompt)
    while len(generated) < max_tokens and generated[-1:] != [EOS]:
        start = len(runtime.cells[0])
        generated.append(int(runtime.decode([Chunk(0, start, pending, True)])[0].argmax()))
        pending = generated[-1:]
    return generated
