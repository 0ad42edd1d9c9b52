"""The wire formats of completions and embeddings, and what all of the dialect have in common.

Every optional field may be null. Nothing unknown is accepted; fields whose type is `Refused` are
known, would change the answer, and are not supported (`openai/params.py` refuses them by name);
fields whose type is `Inert` cannot change the answer.
"""

from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from llmserve.core import Priority
from llmserve.wire.fields import (
    Grammar,
    LogitBias,
    MinP,
    Penalty,
    StopString,
    StopStrings,
    Temperature,
    TextsOrTokens,
    Timeout,
)

Dimensions = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# Numbers, or base64 of little-endian float32; encoded already.
_NUMBERS = {"type": "array", "items": {"type": "number"}}
Encoded = Annotated[Raw, Meta(extra_json_schema={"anyOf": [_NUMBERS, {"type": "string"}]})]


def refused_but(*harmless: object) -> Meta:
    """Of a field that is not supported: the values that ask for nothing."""
    return Meta(description="Not supported.", extra_json_schema={"enum": [None, *harmless]})


Refused: TypeAlias = Annotated[Any, refused_but()]
Inert: TypeAlias = Annotated[Any, Meta(description="Accepted; cannot change the answer.")]
if not TYPE_CHECKING:  # looked through, but never made: a million of things in it cost nothing
    Inert = Annotated[Raw, Meta(description="Accepted; cannot change the answer.")]
SchemaOrText: TypeAlias = Annotated[
    Raw, Meta(extra_json_schema={"type": ["object", "string", "null"]})
]  # as it was sent
C = TypeVar("C")


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Inert = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """One of them."""

    json: SchemaOrText = field(default_factory=Raw)
    json_object: bool | None = None
    regex: Grammar | None = None
    choice: Annotated[list[Grammar], Meta(min_length=1, max_length=1024)] | None = None
    grammar: Grammar | None = None


class SamplingRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every request for text has; `top_k`, `min_p` and `ignore_eos` are llama-server's and
    vLLM's.
    """

    model: str | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: StopString | StopStrings | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: LogitBias | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: MinP | None = None
    ignore_eos: bool | None = None
    priority: Priority | None = None  # ours, as are the next two
    deterministic: bool | None = None
    timeout: Timeout | None = None  # of all of it, with waiting

    cache_prompt: bool | None = None  # llama-server's: false computes all of the prompt


class GenerationRequest(SamplingRequest, forbid_unknown_fields=True, kw_only=True):
    """The fields of chats and completions."""

    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream_options: StreamOptions | None = None
    grammar: Annotated[str, Meta(max_length=65536)] | None = None  # llama-server's
    structured_outputs: StructuredOutputs | None = None  # vLLM's

    user: Inert = None


class PromptTokensDetails(Struct):
    cached_tokens: int


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET  # where it has thought


class Body(Struct, Generic[C], kw_only=True):
    """An answer, or one event of a stream, with choices `C`; `usage` UNSET leaves it out."""

    id: str
    object: str
    created: int  # unix time
    model: str
    system_fingerprint: str
    choices: list[C]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct):
    """`root` is the name in models.toml, `id` that or an alias, as in vLLM."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    context_length: int | None
    state: str


class ModelCards(Struct):
    object: str
    data: list[ModelCard]


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
