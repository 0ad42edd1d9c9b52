"""The wire format of POST /v1/embeddings."""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from llmserve.api.fields import TextsOrTokens, Timeout
from llmserve.api.openai.schemas import Inert

Dimensions = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# Numbers, or base64 of little-endian float32; encoded already.
_NUMBERS = {"type": "array", "items": {"type": "number"}}
Encoded = Annotated[Raw, Meta(extra_json_schema={"anyOf": [_NUMBERS, {"type": "string"}]})]


class EmbeddingsRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """`input`: a string, strings, token ids, or lists of token ids; not mixed."""

    input: TextsOrTokens
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None  # float
    dimensions: Dimensions | None = None  # as many as the model has
    timeout: Timeout | None = None  # ours

    user: Inert = None


class EmbeddingItem(Struct, kw_only=True):
    object: str = "embedding"
    index: int
    embedding: Encoded


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    object: str = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
