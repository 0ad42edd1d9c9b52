"""Parallel lists of tokens and their log probabilities."""

from typing import Any

import msgspec

from llmserve.api.openai.logprobs import LEAST, LogprobsEncoder, join
from llmserve.core import PromptLogprobs, SampledLogprob, TokenLogprob


def sampled(text: bytes, value: float, *top: tuple[bytes, float]) -> SampledLogprob:
    return SampledLogprob(
        TokenLogprob(1, text, value), tuple(TokenLogprob(1, *each) for each in top)
    )


SAMPLED = [
    sampled(b"ab", -0.5, (b"x", -0.25), (b"ab", -0.5)),
    sampled(b"\xc3", -1.0, (b"x", -0.25)),
    sampled(b"\xa9", -2.0),
    sampled(b"c", -3.0),
]
LEGACY: dict[str, list[Any]] = {
    "tokens": ["ab", "bytes:\\xc3", "bytes:\\xa9", "c"],
    "token_logprobs": [-0.5, -1.0, -2.0, -3.0],
    "top_logprobs": [
        {"x": -0.25, "ab": -0.5},
        {"x": -0.25, "bytes:\\xc3": -1.0},
        {"bytes:\\xa9": -2.0},
        {"c": -3.0},
    ],
    "text_offset": [0, 2, 3, 3],
}


def test_the_lists_of_an_answer() -> None:
    assert msgspec.to_builtins(LogprobsEncoder().encode(SAMPLED)) == LEGACY


def test_a_prompt_comes_first_and_the_answer_goes_on_behind_it() -> None:
    encoder = LogprobsEncoder()
    prompt = encoder.encode_prompt(PromptLogprobs(b"ab", tuple(SAMPLED[1:])), "abéc")
    both = join(prompt, encoder.encode(SAMPLED[:1]))
    assert msgspec.to_builtins(both) == {
        "tokens": [*LEGACY["tokens"], "ab"],
        "token_logprobs": [None, -1.0, -2.0, -3.0, -0.5],
        "top_logprobs": [None, *LEGACY["top_logprobs"][1:], {"x": -0.25, "ab": -0.5}],
        "text_offset": [0, 2, 3, 3, 4],
    }


def test_tokens_that_are_not_in_the_text_are_before_it() -> None:
    """A BOS that the model wants, the space that SentencePiece puts in front."""
    prompt = PromptLogprobs(b"<s>", (sampled(b" ab", -1.0), sampled(b" c", -1.0)))
    encoder = LogprobsEncoder()
    assert encoder.encode_prompt(prompt, "ab c").text_offset == [0, 0, 2]
    assert encoder.encode(SAMPLED[:1]).text_offset == [4]


def test_a_token_that_cannot_come_has_a_number() -> None:
    never = float("-inf")
    encoded = LogprobsEncoder().encode([sampled(b"a", never, (b"b", 0.0), (b"c", never))])
    assert encoded.token_logprobs == [LEAST]
    assert encoded.top_logprobs == [{"b": 0.0, "c": LEAST, "a": LEAST}]
