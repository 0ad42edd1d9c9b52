"""The wire format of POST /v1/completions."""

from typing import Annotated

from msgspec import Meta, Struct

from llmserve.api.fields import TextsOrTokens
from llmserve.api.openai.schemas import GenerationRequest


class CompletionRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    """`prompt`: a string, strings, token ids, or lists of token ids; not mixed."""

    prompt: TextsOrTokens
    suffix: str | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None  # 0 goes with echo
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


class CompletionLogprobs(Struct):
    """Parallel lists, an item a token."""

    tokens: list[str]
    token_logprobs: list[float | None]  # null for the first token of a prompt
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]  # characters from the start of `text`


class CompletionChoice(Struct):
    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
