"""The wire format of POST /v1/completions."""

from typing import Annotated

from msgspec import Meta, Struct

from llmserve.api.schemas.fields import MaxTokens, TokenId
from llmserve.api.schemas.openai import GenerationRequest, Refused

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class CompletionRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    """`prompt`: a string, strings, token ids, or lists of token ids; not mixed."""

    prompt: str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1)]
    max_tokens: MaxTokens | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    suffix: Refused = None


class CompletionLogprobs(Struct):
    """Parallel lists, an item a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]  # characters from the start of `text`


class CompletionChoice(Struct):
    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
