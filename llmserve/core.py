"""The language every layer shares: a request, its parameters, and the events that answer it.

All Structs are frozen, so the same messages can cross a thread (or a process) boundary unchanged.
One generation path: `Started`, then any number of parts (`PromptLogprobs`, `Delta`,
`ReasoningDelta`, `ToolCallDelta`), then exactly one `Finished`; a non-streaming answer folds the
same events that a stream encodes. `Queued` may come at any time between. A failure is an exception
(`errors.LlmserveError`) raised by the iterator instead of the next event.
"""

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]

DEFAULT_TEMPERATURE = 0.7  # of what we define: POST /inference and `llmserve run`


class Mode(StrEnum):
    """How the input becomes the text that the model continues."""

    COMPLETION = "completion"  # the prompt as it is
    INSTRUCT = "instruct"  # the prompt as a user turn in the model's chat template
    CHAT = "chat"  # `messages` through the model's chat template


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-generation token or stop string
    LENGTH = "length"  # max_tokens, or the context is full
    TOOL_CALLS = "tool_calls"  # the model has called tools, and waits for their results
    CANCELLED = "cancelled"  # cut short by the server's shutdown, or by the caller


class Tool(Struct, frozen=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: str | None = None  # JSON schema of the arguments, as text; None: any object


class ToolCall(Struct, frozen=True):
    """A whole call, as the assistant's message has it."""

    id: str
    name: str
    arguments: str  # JSON text


class ToolUse(Struct, frozen=True):
    """The tools of a request, and how they may be used."""

    tools: tuple[Tool, ...]
    choice: Literal["none", "auto", "required"] = "auto"
    name: str | None = None  # with `required`: this tool must be called
    parallel: bool = True  # whether one answer may have several calls


class Message(Struct, frozen=True):
    role: str
    content: str  # "" for an assistant that only called tools
    name: str | None = None  # of the speaker, for templates that show it; of the tool, for a result
    reasoning: str | None = None  # what an assistant thought before it answered
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str | None = None  # of a result: the call that it answers


class SamplingParams(Struct, frozen=True):
    """How one token is chosen from the logits, in the order of `engine/sampling/sampler.py`.

    Every default is neutral, so that they leave the model's own distribution. `temperature` 0 is
    greedy. `top_k` 0, `top_p` 1 and `min_p` 0 keep everything. The penalties follow OpenAI's
    formula over the generated tokens. `logit_bias` maps token ids to an addend.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    ignore_eos: bool = False  # never choose an end-of-generation token


class Constraint(Struct, frozen=True):
    """What the whole answer must match; see `engine/structured/compiler.py`."""

    # json: any JSON object; calls: a grammar that was made of the request's tools
    kind: Literal["json", "json_schema", "regex", "lark", "gbnf", "calls"]
    source: str = ""  # the schema as JSON text, the expression or the grammar
    field: str | None = None  # what errors call it; None: its name in POST /inference


Priority: TypeAlias = Literal["interactive", "batch"]  # batch: the answer can wait


class Request(Struct, frozen=True):
    """One generation, in no dialect: one of `prompt`, `prompt_tokens` and `messages` is set.

    `prompt_tokens` go to the model as they are, with mode completion. `num_logprobs` asks for the
    log probability of each generated token and of that many alternatives, `prompt_logprobs` for
    the same of the prompt's tokens. `max_tokens` 0 computes the prompt alone.

    `model` and `mode` None mean the default model and the model's own default mode. `max_tokens`
    None means until the model stops or the context is full. `seed` None draws one, which
    `Started` reports; with `deterministic` it is 0.
    """

    model: str | None = None
    prompt: str | None = None
    prompt_tokens: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    suffix: str | None = None  # what follows the answer; with mode completion
    mode: Mode | None = None
    system: str | None = None
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    num_logprobs: int | None = None
    prompt_logprobs: bool = False  # goes with num_logprobs
    constraint: Constraint | None = None
    priority: Priority = "interactive"
    deterministic: bool = False  # the same bytes every time, whatever else the server does
    timeout_s: float | None = None  # for all of it; None: no limit but the server's
    cache_prompt: bool = True  # whether what others have computed of the prompt may be used
    tool_use: ToolUse | None = None  # goes with messages
    reasoning_effort: str | None = None  # how much a model that thinks should think
    cache_namespace: str = ""  # requests with another one share no cached prefix with this one
    template_variables: dict[str, Any] = {}  # for the chat template, by the names that it reads


class Pooling(StrEnum):
    """How the vectors of a text's tokens become the one of the text."""

    MEAN = "mean"
    CLS = "cls"  # that of the first token
    LAST = "last"


class EmbeddingRequest(Struct, frozen=True):
    """A vector for each of `inputs`, in no dialect: texts, or token ids that are taken as they are.

    `model` None means the default model. `dimensions` cuts the vectors to so many; None keeps all
    that the model computes.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    model: str | None = None
    dimensions: int | None = None
    timeout_s: float | None = None  # for all of it; None: no limit but the server's


class Embeddings(Struct, frozen=True, eq=False):
    """The answer: `vectors` is (inputs, dimensions) in the order of the inputs, of length 1."""

    model: str
    vectors: Vectors
    prompt_tokens: int  # of all inputs


class Usage(Struct, frozen=True):
    prompt_tokens: int
    cached_tokens: int  # prompt tokens whose KV cells were reused instead of computed
    generated_tokens: int
    reasoning_tokens: int = 0  # of the generated ones, those of thoughts


class Timings(Struct, frozen=True):
    """Where the time of one request went, in seconds since it was accepted."""

    queue_s: float  # waiting for a slot
    prefill_s: float  # from the slot to the first token
    ttft_s: float  # from acceptance to the first token
    decode_s: float  # from the first token to the last
    tokens_per_s: float  # generated tokens after the first, over decode_s
    queue_position: int = 0  # when it first had to wait for a slot, from 1; 0: it never had
    expected_queue_s: float = 0.0  # how long that was expected to take


class Started(Struct, frozen=True, tag=True):
    """The request is valid and accepted (it may still wait for a slot)."""

    model: str  # the one that answers, which may be a fallback of the one asked for
    prompt_tokens: int | None  # None: a provider's, which it tells at the end
    seed: int | None  # None: drawn by a provider, which does not tell it


class Queued(Struct, frozen=True, tag=True):
    """The request waits for a slot. Told now and then, and with position 0 when it has one.

    For information only: an answer is the same without it.
    """

    position: int  # from 1
    expected_wait_s: float


class TokenLogprob(Struct, frozen=True):
    """A token with the natural logarithm of its probability, before any sampling parameter."""

    token: int
    data: bytes  # its text, possibly a part of a character
    logprob: float


class SampledLogprob(Struct, frozen=True):
    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]  # the most likely tokens, falling


class PromptLogprobs(Struct, frozen=True, tag=True):
    """Of the whole prompt, with `Request.prompt_logprobs`: once, before every other part.

    Nothing comes before the first token that could make it likely: it has a text alone. These
    texts have those of control tokens.
    """

    first: bytes
    rest: tuple[SampledLogprob, ...]


class Delta(Struct, frozen=True, tag=True):
    """New text. Never ends inside a character or a possible stop string.

    `logprobs` has the tokens whose text ends in it, listed as `engine/sampling/logprobs.py` says.
    Only empty where these have no text, so never without `Request.num_logprobs`.
    """

    text: str
    logprobs: tuple[SampledLogprob, ...] = ()


class ReasoningDelta(Struct, frozen=True, tag=True):
    """New text that a thinking model says to itself. Never empty."""

    text: str


class ToolCallDelta(Struct, frozen=True, tag=True):
    """A piece of a call. The first of each `index` has its id and its name, later ones neither."""

    index: int  # of the call in the answer, from 0
    arguments: str  # the next piece of the JSON text; all pieces together are one JSON object
    id: str | None = None
    name: str | None = None


class Finished(Struct, frozen=True, tag=True):
    reason: FinishReason
    stop_sequence: str | None
    usage: Usage
    timings: Timings


Part = PromptLogprobs | Delta | ReasoningDelta | ToolCallDelta
Event = Started | Queued | Part | Finished
EventStream = AsyncGenerator[Event, None]  # a generator, so that leaving early can be told
