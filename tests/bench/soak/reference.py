"""What the model itself says about a greedy answer: a bare llama_decode loop, one sequence.

A batch, or a prefix computed otherwise, moves logits by up to 1.3 (README, Limits), so the text of
a right answer can differ from the reference's own. But each of its tokens must be the best one
after those before it, or nearly: how far the reference prefers another is the token's gap. An
answer to somebody else's prompt, from stale cells or the wrong prefix has gaps of many nats,
because what is asked here is mostly to copy from the prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmserve import core
from llmserve.engine.input.prompt import encode, load_style
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.runtime import Chunk, Logits

CONTEXT_LENGTH = 2048
# Nats that a greedy token may be below the reference's best: a logit moves by up to 1.3 where a
# prefix was computed by other kernels (README, Limits), and two of them make a gap.
TOLERANCE = 2.0
# … and on average over an answer: one close call is chance, many are none.
MEAN_TOLERANCE = 0.25
# Rows of logits a step: kernels for few rows are those that decode, so as near as can be.
_ROWS = 16
# Candidates for the next piece of a text that the tokenizer would have cut otherwise.
_NUM_CANDIDATES = 64


class Verdict(NamedTuple):
    """Of one answer, in nats. `worst` is infinite where no tokens near the best give its text."""

    worst: float
    total: float
    num_tokens: int

    @property
    def mean(self) -> float:
        return self.total / max(1, self.num_tokens)

    @property
    def is_right(self) -> bool:
        return self.worst <= TOLERANCE and self.mean <= MEAN_TOLERANCE


class Reference:
    """Not for two threads. Texts after the same prompt are best judged one after the other: only
    what a text has in common with the one before is not computed again.
    """

    def __init__(self, path: Path) -> None:
        # One thread: two wait for each other at barriers, which on a busy machine takes long.
        params = LlamaParams(CONTEXT_LENGTH, max_sequences=1, max_outputs=_ROWS, num_threads=1)
        self._runtime = LlamaRuntime(path, params)
        self._style = load_style(self._runtime.info)
        self._held: list[int] = []  # tokens in the slot, as far as they are of any use

    def close(self) -> None:
        self._runtime.close()

    def encode(self, request: core.Request) -> list[int]:
        """The tokens of its prompt."""
        return encode(request, self._runtime, self._style, None).tokens

    def judge(self, prompt: Sequence[int], text: str, *, ended: bool) -> Verdict:
        """`ended`: the model ended the answer itself. Otherwise more could have followed.

        `text` may end within a token, if it did not end itself.
        """
        answer = self._runtime.tokenize(text, add_special=False, parse_special=False)
        verdict = self._score(prompt, answer, ended=ended)
        if verdict.is_right:
            return verdict
        # The text may have come in other tokens than the tokenizer makes of it.
        return self._follow(prompt, text.encode(), ended=ended)

    def logprobs(self, tokens: Sequence[int], start: int) -> list[float]:
        """The log probability of each token from index `start` (at least 1) on."""
        rows = self._rows(tokens[:-1], start - 1)
        shifted = rows - rows.max(axis=1, keepdims=True)
        normal = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return [float(normal[i, token]) for i, token in enumerate(tokens[start:])]

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a bare text."""
        return self._runtime.tokenize(text, add_special=False, parse_special=False)

    def _score(self, prompt: Sequence[int], answer: Sequence[int], *, ended: bool) -> Verdict:
        """The gaps of an answer whose tokens are known."""
        rows = self._rows([*prompt, *answer], len(prompt) - 1)
        gaps = [float(rows[i].max() - rows[i][token]) for i, token in enumerate(answer)]
        if ended:
            gaps.append(self._gap_of_end(rows[-1]))
        return _verdict(gaps)

    def _follow(self, prompt: Sequence[int], data: bytes, *, ended: bool) -> Verdict:
        """As `_score`, but token by token: the most likely one that goes on with the text."""
        row = self._rows(prompt, len(prompt) - 1)[0]  # and `_held` is the prompt
        gaps: list[float] = []
        done = len(prompt)
        while data:
            token = self._next(row, data, may_exceed=not ended)
            if token is None:
                return Verdict(np.inf, np.inf, len(gaps))
            gaps.append(float(row.max() - row[token]))
            data = data[len(self._runtime.token_bytes(token)) :]
            row = self._runtime.decode([Chunk(0, done, [token], True)])[0].copy()
            done += 1
        if ended:
            gaps.append(self._gap_of_end(row))
        return _verdict(gaps)

    def _next(self, row: NDArray[np.float32], data: bytes, *, may_exceed: bool) -> int | None:
        best = np.argpartition(-row, _NUM_CANDIDATES)[:_NUM_CANDIDATES]
        for token in best[np.argsort(-row[best])].tolist():
            piece = self._runtime.token_bytes(token)
            if piece and (data.startswith(piece) or (may_exceed and piece.startswith(data))):
                return int(token)
        return None

    def _gap_of_end(self, row: NDArray[np.float32]) -> float:
        return float(row.max() - max(row[token] for token in self._runtime.info.eog_tokens))

    def _rows(self, tokens: Sequence[int], start: int) -> Logits:
        """(len(tokens) - start, vocab): the logits of the tokens from `start` on."""
        runtime = self._runtime
        done = min(start, _num_common(self._held, tokens))
        runtime.trim(0, done)
        self._held = list(tokens)
        for begin in range(done, start, runtime.limits.max_batch):
            end = min(start, begin + runtime.limits.max_batch)
            runtime.decode([Chunk(0, begin, tokens[begin:end], False)])
        parts = []
        for begin in range(start, len(tokens), _ROWS):
            chunk = Chunk(0, begin, tokens[begin : begin + _ROWS], False, wants_all=True)
            parts.append(runtime.decode([chunk]).copy())
        return np.concatenate(parts)


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of their common beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _verdict(gaps: list[float]) -> Verdict:
    return Verdict(max(gaps, default=0.0), sum(gaps), len(gaps))
