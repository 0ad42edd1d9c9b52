"""A loaded model of llama.cpp, as `runtime.Runtime`."""

import ctypes
import functools
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp
import llama_cpp.llama_cpp as lib
import msgspec
import numpy as np

from llmserve.core import Vectors
from llmserve.engine.llama.call import (
    AbortFlag,
    Batch,
    compute,
    failure_reason,
    initialize,
    last_errors,
    make_context,
)
from llmserve.engine.llama.cells import LlamaCells
from llmserve.engine.llama.embed import EmbeddingContext
from llmserve.engine.llama.vocab import (
    make_grammar_tokenizer,
    model_info,
    token_to_piece,
    tokenize,
)
from llmserve.engine.runtime import (
    MAX_BATCH,
    Chunk,
    EmbeddingLimits,
    InputChunk,
    LlamaParams,
    Logits,
    Marker,
    RuntimeLimits,
    State,
)
from llmserve.engine.token_bounds import cutting_marks, parts_of
from llmserve.errors import EngineError, ModelFileError, sanitized
from llmserve.machine.cpu import default_threads

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_PART_LEN = 4 * 1024  # characters of a text that are tokenized at once, where it can be cut
_MAX_MARKS = 64  # the first control tokens are those in use


OnProgress = Callable[[float], bool]


class LlamaRuntime:
    """One GGUF model with a context to generate (of a unified KV cache), one to embed, or both.

    Implements `Runtime`.
    """

    def __init__(
        self, path: Path, params: LlamaParams, *, on_progress: OnProgress | None = None
    ) -> None:
        """Load `path`; `on_progress(fraction)` is called all the while, and False ends the load.

        Raises `ModelFileError` if llama.cpp refuses the file (or was told to stop), `EngineError`
        if the context cannot be made (in practice: not enough memory).
        """
        initialize()
        self._closed = False
        self._model = _load_model(path, on_progress)
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._abort_flag = ctypes.create_string_buffer(2)
        self._context: lib.llama_context_p | None = None
        self._embedding: EmbeddingContext | None = None
        try:
            # Beside each other: one walks over the vocabulary, the other clears the KV cells.
            with ThreadPoolExecutor(1) as helper:
                info = helper.submit(model_info, self._model, self._vocab)
                self._make_contexts(params)
            self.info = msgspec.structs.replace(info.result(), generates=params.generates)
            self.limits = self._limits(params)
            self._batch = Batch(self.limits.max_batch)
            self._pieces: dict[int, bytes] = {}
            self._warm_up()
        except EngineError:
            self.close()
            raise

    def _make_contexts(self, params: LlamaParams) -> None:
        num_threads = params.num_threads or default_threads().num
        if params.generates:
            self._context = _new_context(self._model, params, num_threads, self._abort_flag)
            self._cells = LlamaCells(
                self._context, params.max_sequences, lib.llama_model_n_swa(self._model)
            )
        if params.embedding:
            self._embedding = EmbeddingContext(
                self._model, params.embedding, num_threads, self._abort_flag
            )

    def _limits(self, params: LlamaParams) -> RuntimeLimits:
        if self._context is None:  # of no use but to say how much may be asked
            max_len = params.context_length
            return RuntimeLimits(
                num_cells=max_len,
                num_slots=params.max_sequences,
                max_batch=max_len,
                context_length=max_len,
                max_outputs=params.max_outputs,
            )
        num_cells = lib.llama_n_ctx(self._context)
        return RuntimeLimits(
            num_cells=num_cells,
            num_slots=params.max_sequences,
            max_batch=lib.llama_n_batch(self._context),
            context_length=num_cells,
            max_outputs=params.max_outputs,
            can_cut=_can_cut(self._model),
        )

    def _warm_up(self) -> None:
        """Read every weight once, so that the first request does not wait for the disk."""
        if self._context is None:
            self.embed([InputChunk(slot=0, start=0, tokens=[0], is_last=True)])
            return
        self.decode([Chunk(slot=0, start=0, tokens=[0], wants_logits=True)])
        self.trim(0, 0)

    # -- text -------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        if not parse_special or len(text) <= _PART_LEN or (marks := self._cutting_marks) is None:
            return tokenize(self._vocab, text, add_special, parse_special)
        # llama.cpp's time grows with the square of the number of special tokens in a text.
        around = tokenize(self._vocab, "", True, True) if add_special else []
        before = around[: self.info.adds_bos]
        tokens = [*before]
        for part in parts_of(text, marks, _PART_LEN):
            tokens += tokenize(self._vocab, part, False, True)
        return tokens + around[len(before) :]

    @functools.cached_property
    def _cutting_marks(self) -> re.Pattern[str] | None:
        """None where tokens swallow what is beside them, or may; found when first needed."""
        if self.info.max_token_bytes is None:
            return None
        attributes = [
            lib.llama_vocab_get_attr(self._vocab, token) for token in range(self.info.vocab_size)
        ]

        def texts(mask: int) -> list[str]:
            found = [token for token, has in enumerate(attributes) if has & mask]
            return [
                lib.llama_vocab_get_text(self._vocab, t).decode(errors="replace") for t in found
            ]

        control = lib.LLAMA_TOKEN_ATTR_CONTROL
        others = lib.LLAMA_TOKEN_ATTR_USER_DEFINED | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        return cutting_marks(texts(control)[:_MAX_MARKS], texts(control | others))

    def token_bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = token_to_piece(self._vocab, token, special=False)
        return piece

    def find_marker(self, text: str) -> Marker | None:
        tokens = self.tokenize(text, add_special=False)
        if len(tokens) != 1 or self.detokenize(tokens) != text.encode():
            return None
        piece = token_to_piece(self._vocab, tokens[0], special=False)
        return Marker(tokens[0], is_control=not piece)

    def grammar_tokenizer(self) -> "LLTokenizer":
        return make_grammar_tokenizer(self._vocab, self.info)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        # Not through `_pieces`, which is the worker's; the vocabulary itself never changes.
        return b"".join(token_to_piece(self._vocab, token, special=True) for token in tokens)

    # -- computing --------------------------------------------------------------------------

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        assert self._context is not None, "loaded for embeddings only"
        num_outputs = self._batch.fill(chunks)
        assert num_outputs <= self.limits.max_outputs
        compute(self._context, self._batch, self._abort_flag, "llama_decode")
        if num_outputs == 0:
            return np.empty((0, self.info.vocab_size), dtype=np.float32)
        rows = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, shape=(num_outputs, self.info.vocab_size))

    def trim(self, slot: int, num_tokens: int) -> None:
        self._cells.trim(slot, num_tokens)

    def share(self, source: int, target: int, num_tokens: int) -> None:
        assert self.limits.can_cut
        self._cells.share(source, target, num_tokens)

    def save(self, slot: int, start: int, end: int) -> State:
        return self._cells.save(slot, start, end)

    def load(self, slot: int, state: State, end: int) -> None:
        if self.limits.can_cut:
            self._cells.append(slot, state, end)
        else:
            self._cells.restore(slot, state, end)

    def num_tokens(self, slot: int) -> int:
        return 0 if self._context is None else self._cells.num_tokens(slot)

    def clear(self) -> None:
        self._cells.clear()

    @property
    def embedding_limits(self) -> EmbeddingLimits | None:
        return self._embedding.limits if self._embedding else None

    def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
        assert self._embedding, "not loaded for embeddings"
        return self._embedding.embed(chunks)

    def forget(self, slot: int) -> None:
        assert self._embedding, "not loaded for embeddings"
        self._embedding.forget(slot)

    def abort(self) -> None:
        self._abort_flag[0] = b"\1"

    def clear_abort(self) -> None:
        self._abort_flag[0] = b"\0"

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._embedding:
            self._embedding.close()
        if self._context is not None:
            lib.llama_free(self._context)
        lib.llama_model_free(self._model)


def system_info() -> str:
    """What this build of llama.cpp uses of this CPU, as llama.cpp prints it."""
    function = lib._lib.llama_print_system_info  # the one function that the binding leaves out
    function.restype = ctypes.c_char_p
    info: bytes = function()
    return info.decode()


def build_info() -> str:
    """What, beside the model, the state of KV cells depends on."""
    cache_types = lib.llama_context_default_params()
    return f"{llama_cpp.__version__} {cache_types.type_k} {cache_types.type_v} {system_info()}"


def _load_model(path: Path, on_progress: OnProgress | None) -> lib.llama_model_p:
    last_errors.clear()
    wanted = lib.llama_model_default_params()
    if on_progress:
        wanted.progress_callback = lib.llama_progress_callback(
            lambda fraction, _user_data: on_progress(fraction)
        )
    model = lib.llama_model_load_from_file(os.fsencode(path), wanted)
    if not model:
        raise ModelFileError(f"{path}: llama.cpp cannot load it: {sanitized(failure_reason())}")
    return model


def _new_context(
    model: lib.llama_model_p, params: LlamaParams, num_threads: int, flag: AbortFlag
) -> lib.llama_context_p:
    wanted = lib.llama_context_default_params()
    wanted.n_ctx = params.context_length
    wanted.n_batch = wanted.n_ubatch = MAX_BATCH
    wanted.n_seq_max = params.max_sequences + 1  # and one for `LlamaCells` to work with
    # The default reserves logits for every token of a batch. Below n_seq_max llama.cpp aborts.
    assert params.max_outputs >= params.max_sequences
    wanted.n_outputs_max = max(params.max_outputs, wanted.n_seq_max)
    wanted.swa_full = False  # it keeps no more than it needs in any case, see `_can_cut`
    return make_context(model, wanted, num_threads, flag)


def _can_cut(model: lib.llama_model_p) -> bool:
    """Whether a sequence can be cut anywhere, shared, and saved in pieces.

    A recurrent state has no past to go back to. Of a sliding window llama.cpp saves only what the
    last token sees (llama-kv-cache.cpp, state_write), and takes cells that no token sees any more
    for others (find_slot), even where `swa_full` leaves room for all of them.
    """
    is_recurrent = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
    return not is_recurrent and lib.llama_model_n_swa(model) == 0
