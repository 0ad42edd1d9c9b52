"""Log probabilities straight from llama.cpp: its low-level API, one sequence, nothing of ours."""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from llmserve.engine.llama.call import initialize

LogProbabilities = NDArray[np.float64]


class DirectModel:
    """Computes the log softmax of every row of a text's tokens, in double precision."""

    def __init__(self, path: Path, *, max_tokens: int = 256) -> None:
        initialize()  # its log goes where ours goes
        self._model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        assert self._model
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._max_tokens = max_tokens
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max_tokens
        params.n_threads = params.n_threads_batch = 1
        self._context = lib.llama_init_from_model(self._model, params)
        assert self._context

    def tokenize(self, text: str) -> list[int]:
        """Without BOS; special tokens in the text are recognised."""
        data = text.encode()
        tokens = (lib.llama_token * (len(data) + 8))()
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, True)
        assert count >= 0
        return list(tokens[:count])

    def rows(self, tokens: Sequence[int]) -> LogProbabilities:
        """(num_tokens, vocab): row i has those of what follows token i."""
        assert 0 < len(tokens) <= self._max_tokens
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, True
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        code = lib.llama_decode(self._context, batch)
        lib.llama_batch_free(batch)
        assert code == 0
        shape = (len(tokens), lib.llama_vocab_n_tokens(self._vocab))
        logits = np.ctypeslib.as_array(
            ctypes.cast(lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float)), shape
        ).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        scores: LogProbabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return scores

    def scores(self, tokens: Sequence[int]) -> list[float]:
        """The log probability of each token but the first, after those before it."""
        rows = self.rows(tokens)
        return [float(rows[index - 1, tokens[index]]) for index in range(1, len(tokens))]

    def close(self) -> None:
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


@contextlib.contextmanager
def direct_model(path: Path) -> Iterator[DirectModel]:
    model = DirectModel(path)
    try:
        yield model
    finally:
        model.close()
