"""Log probabilities against a float64 reference, and when a token is listed."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmserve.core import SampledLogprob, TokenLogprob
from llmserve.engine.output.text import TextStream
from llmserve.engine.sampling.logprobs import (
    MAX_LOGPROBS,
    NUM_GROUPS,
    Floats,
    LogprobStream,
    log_normalizer,
    sampled_logprob,
    top_tokens,
)

INF = float("inf")


def reference(logits: Floats) -> NDArray[np.float64]:
    """The log softmax, slowly."""
    row = [float(x) for x in logits]
    maximum = max(row)
    normalizer = maximum + math.log(math.fsum(math.exp(x - maximum) for x in row))
    return np.array([x - normalizer for x in row])


# A coarse grid makes ties common.
logit = st.one_of(
    st.integers(-60, 60).map(lambda n: n / 4), st.sampled_from([-INF, -3e38, 0.0, 1e4, 3e38])
)
small_rows = st.lists(logit, min_size=1, max_size=60)
large_rows = st.tuples(st.integers(0, 2**32), st.integers(NUM_GROUPS, 5000), st.booleans()).map(
    lambda t: _large(*t)
)


def _large(seed: int, size: int, coarse: bool) -> list[float]:
    row = np.random.default_rng(seed).normal(size=size) * 4
    return [float(x) for x in (row.round() if coarse else row)]


rows = (
    st.one_of(small_rows, large_rows)
    .filter(lambda row: max(row) > -INF)
    .map(lambda row: np.array(row, dtype=np.float32))
)


@given(rows)
def test_the_normalizer(logits: Floats) -> None:
    expected = float(logits.max()) - reference(logits).max()
    assert log_normalizer(logits) == pytest.approx(expected, abs=2e-6, rel=1e-7)


@given(rows, st.integers(0, MAX_LOGPROBS))
@example(np.zeros(3 * NUM_GROUPS + 1, dtype=np.float32), 20)
@example(np.array([-INF] * 2 * NUM_GROUPS + [1.0], dtype=np.float32), 3)
@example(np.arange(2 * NUM_GROUPS, dtype=np.float32), 20)
@example(np.repeat(np.arange(4, dtype=np.float32), NUM_GROUPS), 5)
def test_the_most_likely(logits: Floats, num_top: int) -> None:
    possible = [token for token in range(len(logits)) if logits[token] > -INF]
    expected = sorted(possible, key=lambda token: (-logits[token], token))[:num_top]
    assert top_tokens(logits, num_top).tolist() == expected


@given(rows, st.integers(0, MAX_LOGPROBS), st.integers(0, 10**6))
def test_what_is_said_about_a_token(logits: Floats, num_top: int, choice: int) -> None:
    possible = np.flatnonzero(logits > -INF)
    token = int(possible[choice % len(possible)])
    before = logits.copy()
    said = sampled_logprob(logits, token, num_top, lambda token: b"%d" % token)
    np.testing.assert_array_equal(logits, before)
    logprobs = reference(logits)
    assert said.chosen.token == token
    assert len(said.top) == min(num_top, len(possible))
    for entry in (said.chosen, *said.top):
        assert entry.data == b"%d" % entry.token
        assert math.isfinite(entry.logprob), "JSON has no infinity"
        assert entry.logprob <= 2e-6
        assert entry.logprob == pytest.approx(logprobs[entry.token], abs=2e-6, rel=1e-6)
    assert [e.logprob for e in said.top] == sorted((e.logprob for e in said.top), reverse=True)


# -- when a token is listed ----------------------------------------------------------------------


def entry_of(token: int) -> SampledLogprob:
    return SampledLogprob(TokenLogprob(token, b"", 0.0), ())


def listed(tokens: list[bytes], stops: list[str]) -> tuple[list[int], str, list[int], bool]:
    """Which tokens are listed, the text, its length when each was, and whether a stop ended it."""
    stream, logprobs = TextStream(stops), LogprobStream(0)
    shown, order, lengths = "", [], []

    def release(text: str) -> None:
        nonlocal shown
        shown += text
        for entry in logprobs.release(len(text)):
            order.append(entry.chosen.token)
            lengths.append(len(shown))

    for index, data in enumerate(tokens):
        piece = stream.push(data)
        if piece.stop is not None:
            release(piece.text)
            return order, shown, lengths, True
        logprobs.push(entry_of(index), len(piece.text) + stream.held_len)
        release(piece.text)
    piece = stream.flush()
    release(piece.text)
    return order, shown, lengths, piece.stop is not None


pieces = st.one_of(
    st.text("abc", max_size=3).map(str.encode),
    st.sampled_from([b"", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", b"\xff"]),
)


@given(
    st.lists(pieces, max_size=12),
    st.lists(st.sampled_from(["ab", "abc", "ca", "\u20ac", "\ufffd", "b\u20ac"]), max_size=3),
)
@example([b"a", b"b", b"c"], ["bc"])
@example([b"a\xe2", b"\x82\xac"], ["\u20ac"])
@example([b"a", b"", b"b"], ["ab"])
def test_a_token_is_listed_when_the_last_of_its_text_is_shown(
    tokens: list[bytes], stops: list[str]
) -> None:
    order, shown, lengths, stopped = listed(tokens, stops)
    ends = [
        len(b"".join(tokens[: index + 1]).decode(errors="replace")) for index in range(len(tokens))
    ]
    assert order == list(range(len(order)))
    for index, length in zip(order, lengths, strict=True):
        assert ends[index] <= length
    expected = [index for index, end in enumerate(ends) if end <= len(shown)]
    if stopped:
        # Without text, a token that comes after the stop was never generated.
        assert order == expected[: len(order)]
        assert all(ends[index] == len(shown) for index in expected[len(order) :])
    else:
        assert order == expected == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("tokens", "stops", "expected", "text"),
    [
        ([b"one", b" two", b"\n\n"], ["\n"], [0, 1], "one two"),
        ([b"one", b" two\n", b"x"], ["\n"], [0], "one two"),  # cut in part
        ([b"one", b" ST", b"OP"], ["STOP"], [0], "one "),
        ([b"one", b" ST", b"AY"], ["STOP"], [0, 1, 2], "one STAY"),
        ([b"\xe2", b"\x82", b"\xac"], [], [0, 1, 2], "\u20ac"),
        ([b"one", b"", b"two"], [], [0, 1, 2], "onetwo"),
    ],
)
def test_examples(tokens: list[bytes], stops: list[str], expected: list[int], text: str) -> None:
    order, shown, _, _ = listed(tokens, stops)
    assert (order, shown) == (expected, text)
