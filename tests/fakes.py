"""Fakes for fast tests of everything above them."""

import hashlib
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from llmserve.core import Vectors
from llmserve.engine.runtime import (
    AbortedError,
    Chunk,
    EmbeddingLimits,
    InfillTokens,
    InputChunk,
    Logits,
    Marker,
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
    `controls` are the texts of control tokens, which have the ids from EOS + 1 on.
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
        controls: Sequence[str] = (),
        gate: threading.Semaphore | None = None,
        embedding: EmbeddingLimits | None = None,
        generates: bool = True,
    ) -> None:
        self.info = ModelInfo(
            description="fake",
            vocab_size=EOS + 1 + len(controls),
            eog_tokens=frozenset([EOS]),
            bos_text="",
            eos_text="",
            chat_template=chat_template,
            max_token_bytes=1,
            infill=infill,
            generates=generates,
        )
        self.limits = RuntimeLimits(
            num_cells,
            num_slots,
            max_batch,
            context_length or num_cells,
            max(max_outputs, num_slots),
            can_cut,
        )
        self.embedding_limits = embedding
        self.cells: list[list[int]] = [[] for _ in range(num_slots)]
        self._cell_ids: list[list[object]] = [[] for _ in range(num_slots)]  # shared ones are equal
        self.num_saved = 0  # tokens
        self.inputs: dict[int, list[int]] = {}  # unfinished ones to embed, by slot
        self.batch_sizes: list[int] = []
        self.embedded_slots: list[list[int]] = []  # of each call
        self.decoding = threading.Event()  # set while a decode call runs
        self.closed = False
        self._gate = gate
        self._controls = {text: EOS + 1 + i for i, text in enumerate(controls)}
        self._aborted = threading.Event()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        assert not self.closed
        if not self._controls or not parse_special:
            return list(text.encode())
        parts = re.split(f"({'|'.join(map(re.escape, self._controls))})", text)
        tokens: list[int] = []
        for part in parts:
            tokens += [self._controls[part]] if part in self._controls else part.encode()
        return tokens

    def token_bytes(self, token: int) -> bytes:
        return b"" if token >= EOS else bytes([token])

    def find_marker(self, text: str) -> Marker | None:
        token = self._controls.get(text)
        return None if token is None else Marker(token, is_control=True)

    def grammar_tokenizer(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_ByteTokenizer(len(self._controls))), slices=[])

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        assert not self.closed
        texts = {EOS: b"<eos>", **{token: text.encode() for text, token in self._controls.items()}}
        return b"".join(texts.get(token) or bytes([token]) for token in tokens)

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        assert not self.closed
        size = sum(len(chunk.tokens) for chunk in chunks)
        assert 0 < size <= self.limits.max_batch
        assert len({chunk.slot for chunk in chunks}) == len(chunks)
        self.batch_sizes.append(size)
        self._pass_gate()
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
        return _noise(tokens, self.info.vocab_size) * 4

    def _pass_gate(self) -> None:
        self.decoding.set()
        try:
            if self._gate:
                while not self._gate.acquire(timeout=0.01):
                    if self._aborted.is_set():
                        raise AbortedError
        finally:
            self.decoding.clear()

    def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
        """As strict as llama.cpp; the vector of an input is a function of all its tokens."""
        limits = self.embedding_limits
        assert limits
        assert not self.closed
        size = sum(len(chunk.tokens) for chunk in chunks)
        assert 0 < size <= limits.max_batch or (limits.is_whole and len(chunks) == 1)
        assert len({chunk.slot for chunk in chunks}) == len(chunks)
        assert all(0 <= chunk.slot < limits.max_inputs for chunk in chunks)
        self.batch_sizes.append(size)
        self.embedded_slots.append([chunk.slot for chunk in chunks])
        try:
            self._pass_gate()
        except AbortedError:
            self.inputs.clear()
            raise
        vectors = []
        for slot, start, tokens, is_last in chunks:
            cells = self.inputs.setdefault(slot, [])
            assert start == len(cells), "positions must be consecutive"
            assert is_last or not limits.is_whole
            cells.extend(tokens)
            assert len(cells) <= limits.max_len
            assert limits.is_whole or sum(map(len, self.inputs.values())) <= limits.max_len
            if is_last:
                vectors.append(fake_vector(self.inputs.pop(slot), limits.num_dimensions))
        return np.array(vectors, dtype=np.float32).reshape(-1, limits.num_dimensions)

    def forget(self, slot: int) -> None:
        self.inputs.pop(slot, None)

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
        for slot in range(len(self.cells)):
            self.cells[slot].clear()
            self._cell_ids[slot].clear()

    def abort(self) -> None:
        self._aborted.set()

    def clear_abort(self) -> None:
        self._aborted.clear()

    def close(self) -> None:
        self.closed = True


class ScriptedRuntime(FakeRuntime):
    """A model that wants to say `answer`, and then to end; a constraint can keep it from that."""

    def __init__(self, answer: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.answer = answer
        self._prompt_lens: dict[int, int] = {}  # by slot

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        rows = super().decode(chunks)
        script = [*self.tokenize(self.answer, add_special=False), EOS]
        outputs = [(c, behind) for c in chunks for behind in reversed(range(c.num_outputs))]
        for row, (chunk, behind) in zip(rows, outputs, strict=True):
            num_tokens = len(self.cells[chunk.slot]) - behind
            position = num_tokens - self._prompt_lens.setdefault(chunk.slot, num_tokens)
            row[script[min(position, len(script) - 1)]] += 1000
        return rows

    def trim(self, slot: int, num_tokens: int) -> None:
        super().trim(slot, num_tokens)
        if num_tokens == 0:
            self._prompt_lens.pop(slot, None)


class _ByteTokenizer:
    """What llguidance asks of a tokenizer: `FakeRuntime`'s, every byte a token."""

    eos_token_id = EOS
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, num_controls: int = 0) -> None:
        self.tokens = (*(bytes([value]) for value in range(EOS)), *[b""] * (1 + num_controls))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _noise(tokens: Sequence[int], size: int) -> Logits:
    digest = hashlib.sha256(bytes(token % 256 for token in tokens)).digest()
    return np.random.default_rng(list(digest)).normal(size=size).astype(np.float32)


def fake_vector(tokens: Sequence[int], num_dimensions: int) -> Vectors:
    """What `FakeRuntime` computes for one input; not of length 1."""
    return _noise(tokens, num_dimensions)


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
