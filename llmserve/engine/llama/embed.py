"""Embeddings through llama.cpp: a context of its own on the weights of a loaded model.

Of its own, because a context that embeds computes an output row for every token, and because an
encoder has no KV cells at all. Two ways, by `EmbeddingParams.is_whole`:

- whole inputs (encoders): llama.cpp pools, and knows how each architecture does that
- inputs in parts (causal models): llama.cpp gives a row for every token and the pooling is done
  here, so that a long input neither needs a batch of its size nor holds up generation
"""

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import llama_cpp.llama_cpp as lib
import numpy as np

from llmserve.core import Pooling, Vectors
from llmserve.engine.llama.call import AbortFlag, Batch, Call, compute, make_context, quiet
from llmserve.engine.runtime import EmbeddingLimits, EmbeddingParams, InputChunk, OutOfCellsError
from llmserve.errors import EngineError

_POOLING: Final = {
    Pooling.MEAN: lib.LLAMA_POOLING_TYPE_MEAN,
    Pooling.CLS: lib.LLAMA_POOLING_TYPE_CLS,
    Pooling.LAST: lib.LLAMA_POOLING_TYPE_LAST,
}


class EmbeddingContext:
    """The `embed` and `forget` of `Runtime`, on a model that outlives it."""

    def __init__(
        self, model: lib.llama_model_p, params: EmbeddingParams, num_threads: int, flag: AbortFlag
    ) -> None:
        """Raises `EngineError`. `flag` interrupts a computation."""
        self._params = params
        self._flag = flag
        self.limits = EmbeddingLimits(
            num_dimensions=lib.llama_model_n_embd_out(model),
            max_len=params.max_len,
            max_batch=params.max_batch,
            max_inputs=params.max_inputs,
            num_cells=None if params.is_whole else params.max_len,
        )
        wanted = _context_params(params)
        with quiet():  # that the pooling is not the model's own
            self._context = make_context(model, wanted, num_threads, flag)
        self._memory = lib.llama_get_memory(self._context)  # null: no KV cells
        is_encoder = lib.llama_model_has_encoder(model) and not lib.llama_model_has_decoder(model)
        self._call: Call = "llama_encode" if is_encoder else "llama_decode"
        self._batch = Batch(params.max_tokens)
        self._pools: dict[int, _Pool] = {}  # of unfinished inputs, by slot

    def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
        assert all(chunk.tokens for chunk in chunks)
        assert len({chunk.slot for chunk in chunks}) == len(chunks) <= self.limits.max_inputs
        self._batch.fill(chunks)
        try:
            compute(self._context, self._batch, self._flag, self._call)
        except OutOfCellsError as error:
            self._forget_all()
            raise EngineError("llama.cpp found no cells for inputs that should fit") from error
        except Exception:
            self._forget_all()
            raise
        vectors = self._pooled(chunks) if self._params.is_whole else self._pool(chunks)
        return np.array(vectors, dtype=np.float32).reshape(-1, self.limits.num_dimensions)

    def _pooled(self, chunks: Sequence[InputChunk]) -> list[Vectors]:
        """The rows that llama.cpp has pooled, each of a whole input."""
        assert all(chunk.is_last and chunk.start == 0 for chunk in chunks)
        vectors = []
        for chunk in chunks:
            row = lib.llama_get_embeddings_seq(self._context, chunk.slot)
            vectors.append(self._rows(row, 1)[0])
        if self._memory:  # a model that has cells all the same
            lib.llama_memory_clear(self._memory, False)
        return vectors

    def _pool(self, chunks: Sequence[InputChunk]) -> list[Vectors]:
        """What is pooled of the inputs that are complete, from the row of each token."""
        num_rows = sum(len(chunk.tokens) for chunk in chunks)
        rows = self._rows(lib.llama_get_embeddings(self._context), num_rows)
        vectors = []
        end = 0
        for slot, start, tokens, is_last in chunks:
            begin, end = end, end + len(tokens)
            if start == 0:
                self._pools[slot] = _Pool(self._params.pooling)
            self._pools[slot].add(rows[begin:end])
            if is_last:
                vectors.append(self._pools[slot].vector())
                self.forget(slot)
        return vectors

    def _rows(self, pointer: Any, num_rows: int) -> Vectors:
        if not pointer:
            raise EngineError("llama.cpp has computed no embeddings")
        floats = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, shape=(num_rows, self.limits.num_dimensions))

    def forget(self, slot: int) -> None:
        self._pools.pop(slot, None)
        if self._memory and not lib.llama_memory_seq_rm(self._memory, slot, -1, -1):
            raise EngineError("llama_memory_seq_rm cannot drop a whole sequence")

    def _forget_all(self) -> None:
        self._pools.clear()
        if self._memory:
            lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        lib.llama_free(self._context)


class _Pool:
    """The vector of one input, as its tokens' rows come."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._sum: Any = 0.0  # (num_dimensions,) float64
        self._num_rows = 0

    def add(self, rows: Vectors) -> None:
        """`rows` are a view of llama.cpp's, valid until its next call."""
        match self._pooling:
            case Pooling.MEAN:
                self._sum = self._sum + rows.sum(axis=0, dtype=np.float64)
                self._num_rows += len(rows)
            case Pooling.CLS if self._num_rows == 0:
                self._sum, self._num_rows = rows[0].astype(np.float64), 1
            case Pooling.LAST:
                self._sum, self._num_rows = rows[-1].astype(np.float64), 1

    def vector(self) -> Vectors:
        mean: Vectors = (self._sum / self._num_rows).astype(np.float32)
        return mean


def _context_params(params: EmbeddingParams) -> lib.llama_context_params:
    wanted = lib.llama_context_default_params()
    wanted.n_ctx = params.max_len
    wanted.n_batch = wanted.n_ubatch = params.max_tokens
    wanted.n_seq_max = params.max_inputs
    wanted.swa_full = False  # no input goes back to an earlier token
    wanted.embeddings = True
    wanted.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    if params.is_whole:
        wanted.pooling_type = _POOLING[params.pooling]
        wanted.attention_type = lib.LLAMA_ATTENTION_TYPE_NON_CAUSAL
    return wanted
