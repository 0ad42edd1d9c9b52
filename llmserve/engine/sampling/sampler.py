"""Exact sampling on numpy logits, one token for each row of a batch. Pure but for the generators.

Order for one row, as in OpenAI's formula and vLLM's pipeline:

1. tokens outside the mask of a constraint to -inf; add `logit_bias`; subtract
   `frequency_penalty` x count + `presence_penalty` for every token that was generated;
   end-of-generation tokens to -inf with `ignore_eos`
2. divide by `temperature` (below `GREEDY_BELOW`: take the maximum and stop here)
3. keep the `top_k` largest, then the smallest set that holds `top_p` of what is left, then all
   with at least `min_p` of the largest probability; ties go to the lower token id
4. draw from the rest, with a generator that belongs to the request alone

Nothing is truncated unless asked for. The cut-off search in `_nucleus` avoids sorting the whole
vocabulary: everything below the cut-off is provably outside the nucleus.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmserve.core import SamplingParams

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]
Allowed = NDArray[np.bool_]  # (vocab,), whether a token may be chosen

GREEDY_BELOW = 1e-4  # a smaller temperature has no weight left for any other token

BLOCK_SIZE = 256  # weights summed at once where one token of many is drawn


class Sampler:
    """One request's sampling state: parameters, a private generator, penalties so far."""

    __slots__ = ("_eog_tokens", "_offsets", "_params", "_rng", "_seen", "_vocab_size")

    def __init__(
        self, params: SamplingParams, *, seed: int, vocab_size: int, eog_tokens: Iterable[int]
    ) -> None:
        self._params = params
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._seen: set[int] = set()
        self._vocab_size = vocab_size
        self._eog_tokens = eog_tokens
        # Made by the first choice: a request that waits should not hold a vocabulary of numbers.
        self._offsets: Floats | None = None
        assert all(0 <= token < vocab_size for token in params.logit_bias), "checked by the engine"

    @property
    def takes_maximum(self) -> bool:
        """Whether the answer is simply the largest raw logit."""
        return not _has_offsets(self._params) and self._params.temperature < GREEDY_BELOW

    # Differences beyond float32 become -inf and their weight 0, as they should.
    @np.errstate(over="ignore", invalid="ignore")
    def choose(self, logits: Floats) -> int | None:
        """One token from a (vocab,) row; None if the row holds no usable maximum."""
        scores = logits + self._own_offsets() if _has_offsets(self._params) else logits
        top = int(scores.argmax())
        maximum = float(scores[top])
        if not math.isfinite(maximum):
            return None
        if self._params.temperature < GREEDY_BELOW:
            return top
        ids, weights = candidates(scores, maximum, self._params)
        index = _draw(weights, self._rng.random())
        return index if ids is None else int(ids[index])

    def accept(self, token: int) -> None:
        """Count a generated token for the penalties."""
        params = self._params
        if not (params.frequency_penalty or params.presence_penalty):
            return
        offsets = self._own_offsets()
        offsets[token] -= params.frequency_penalty
        if token not in self._seen:
            self._seen.add(token)
            offsets[token] -= params.presence_penalty

    def _own_offsets(self) -> Floats:
        if self._offsets is None:
            self._offsets = _offsets(self._params, self._vocab_size, self._eog_tokens)
        return self._offsets


def choose_tokens(
    logits: Floats, samplers: Sequence[Sampler], masks: Sequence[Allowed | None] = ()
) -> list[int | None]:
    """One token for each row of (rows, vocab); None where a row holds no usable number.

    `masks`, if given, has one for each row, or None. Leaves `logits` as they are: log
    probabilities are taken from them afterwards.
    """
    assert len(logits) == len(samplers)
    if not samplers:
        return []
    if any(mask is not None for mask in masks):
        return [
            sampler.choose(row if mask is None else np.where(mask, row, np.float32(-np.inf)))
            for sampler, row, mask in zip(samplers, logits, masks, strict=True)
        ]
    if not any(sampler.takes_maximum for sampler in samplers):
        return [sampler.choose(row) for sampler, row in zip(samplers, logits, strict=True)]
    tops = logits.argmax(axis=1)
    usable = np.isfinite(logits[np.arange(len(tops)), tops])
    return [
        (int(top) if ok else None) if sampler.takes_maximum else sampler.choose(row)
        for sampler, row, top, ok in zip(samplers, logits, tops, usable, strict=True)
    ]


def candidates(scores: Floats, maximum: float, params: SamplingParams) -> tuple[Ids | None, Floats]:
    """The tokens that may be drawn and their weights (unnormalized probabilities, largest 1).

    Sorted by falling weight, or ids None: the whole vocabulary in its own order.
    """
    weights = np.exp((scores - np.float32(maximum)) * np.float32(1 / params.temperature))
    if params.top_k and params.top_k < len(weights):
        ids = _top_k(weights, params.top_k)
        if params.top_p < 1:
            kept = weights[ids]
            ids = ids[: _nucleus_size(kept, params.top_p * float(kept.sum()))]
    elif params.top_p < 1:
        ids = _nucleus(weights, params.top_p)
    elif params.min_p > 0:
        ids = _by_weight(weights, np.flatnonzero(weights >= params.min_p))
    else:
        return None, weights
    chosen = weights[ids]
    if params.min_p > 0:
        size = max(1, int(np.count_nonzero(chosen >= params.min_p)))
        ids, chosen = ids[:size], chosen[:size]
    return ids, chosen


def _draw(weights: Floats, share: float) -> int:
    """The index where the cumulative weight passes `share` (in [0, 1)) of the total.

    In two levels: a cumulative sum of a whole vocabulary takes longer than all its exponentials.
    """
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK_SIZE))
    block, share = _pass(blocks, share)
    begin = block * BLOCK_SIZE
    return begin + _pass(weights[begin : begin + BLOCK_SIZE], share)[0]


def _pass(weights: Floats, share: float) -> tuple[int, float]:
    """The index where the cumulative weight passes `share`, and which share of that weight."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    point = share * cumulative[-1]
    # Should rounding put the point at the very end: the last index that has any weight.
    last = cumulative.searchsorted(cumulative[-1])
    index = int(min(cumulative.searchsorted(point, side="right"), last))
    before = cumulative[index - 1] if index else 0.0
    return index, float((point - before) / (cumulative[index] - before))


def _by_weight(weights: Floats, ids: Ids) -> Ids:
    """`ids` (ascending) by falling weight; equal weights stay in the order of their ids."""
    return ids[np.argsort(-weights[ids], kind="stable")]


def _top_k(weights: Floats, k: int) -> Ids:
    smallest = np.partition(weights, len(weights) - k)[len(weights) - k]
    return _by_weight(weights, np.flatnonzero(weights >= smallest))[:k]


def _nucleus(weights: Floats, top_p: float) -> Ids:
    """The smallest set of tokens that holds `top_p` of all weight, by falling weight."""
    target = top_p * float(weights.sum())
    cutoff = 1e-3
    while True:
        ids = np.flatnonzero(weights >= cutoff)
        # The margin covers the rounding between this sum and the one in sorted order.
        if cutoff == 0 or float(weights[ids].sum()) >= target * (1 + 1e-6):
            break
        cutoff = cutoff / 30 if cutoff > 1e-12 else 0.0
    ids = _by_weight(weights, ids)
    return ids[: _nucleus_size(weights[ids], target)]


def _nucleus_size(falling: Floats, target: float) -> int:
    """How many of the `falling` weights it takes to reach `target`; at least one."""
    cumulative = np.cumsum(falling, dtype=np.float64)
    return min(int(cumulative.searchsorted(target)) + 1, len(falling))


def _has_offsets(params: SamplingParams) -> bool:
    """Whether anything is ever added to the logits."""
    penalized = params.frequency_penalty or params.presence_penalty
    return bool(params.logit_bias or params.ignore_eos or penalized)


def _offsets(params: SamplingParams, vocab_size: int, eog_tokens: Iterable[int]) -> Floats:
    """What is added to the logits before anything else."""
    offsets = np.zeros(vocab_size, dtype=np.float32)
    for token, bias in params.logit_bias.items():
        offsets[token] += bias
    if params.ignore_eos:
        offsets[list(eog_tokens)] = -np.inf
    return offsets
