"""Log probabilities as chats and responses show them, and as POST /v1/completions does."""

from collections.abc import Sequence

from llmserve.api.openai.chat_schemas import ContentLogprob, TopLogprob
from llmserve.api.openai.schemas import CompletionLogprobs
from llmserve.core import PromptLogprobs, SampledLogprob, TokenLogprob

LEAST = -9999.0  # OpenAI's word for a token that cannot come; JSON has no minus infinity


def content_logprobs(sampled: Sequence[SampledLogprob]) -> list[ContentLogprob]:
    return [
        ContentLogprob(
            _text(each.chosen),
            each.chosen.logprob,
            list(each.chosen.data),
            [TopLogprob(_text(top), top.logprob, list(top.data)) for top in each.top],
        )
        for each in sampled
    ]


def _text(token: TokenLogprob) -> str:
    """Beside it are the bytes, for tokens that are a part of a character."""
    return token.data.decode(errors="replace")


class LogprobsEncoder:
    """The tokens of one generation, its prompt's first; remembers how much text there was."""

    def __init__(self) -> None:
        self._num_characters = 0

    def encode_prompt(self, prompt: PromptLogprobs, echo: str) -> CompletionLogprobs:
        """The tokens behind `echo`, which may have more text than that: BOS, a leading space."""
        widths = [_width(prompt.first), *(_width(each.chosen.data) for each in prompt.rest)]
        end = len(echo) - sum(widths)
        offsets = []
        for width in widths:
            offsets.append(max(0, end))
            end += width
        self._num_characters = len(echo)
        return CompletionLogprobs(
            tokens=[
                _legacy_text(prompt.first),
                *(_legacy_text(each.chosen.data) for each in prompt.rest),
            ],
            token_logprobs=[None, *(_value(each.chosen) for each in prompt.rest)],
            top_logprobs=[None, *(_top(each) for each in prompt.rest)],
            text_offset=offsets,
        )

    def encode(self, sampled: Sequence[SampledLogprob]) -> CompletionLogprobs:
        offsets = []
        for each in sampled:
            offsets.append(self._num_characters)
            self._num_characters += _width(each.chosen.data)
        return CompletionLogprobs(
            tokens=[_legacy_text(each.chosen.data) for each in sampled],
            token_logprobs=[_value(each.chosen) for each in sampled],
            top_logprobs=[_top(each) for each in sampled],
            text_offset=offsets,
        )


def join(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def _width(data: bytes) -> int:
    """Characters: one is a byte that begins it, and others."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def _value(token: TokenLogprob) -> float:
    return max(token.logprob, LEAST)


def _top(sampled: SampledLogprob) -> dict[str, float]:
    """The most likely tokens, and the chosen one, which need not be among them."""
    top: dict[str, float] = {}
    for token in (*sampled.top, sampled.chosen):
        top.setdefault(_legacy_text(token.data), _value(token))
    return top


def _legacy_text(data: bytes) -> str:
    """A part of a character as OpenAI writes it, because there are no bytes beside it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
