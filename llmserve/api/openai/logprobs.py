"""Log probabilities as chats and responses show them."""

from collections.abc import Sequence

from llmserve.api.openai.chat_schemas import ContentLogprob, TopLogprob
from llmserve.core import SampledLogprob, TokenLogprob


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
