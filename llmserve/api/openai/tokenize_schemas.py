"""The wire formats of POST /tokenize, /detokenize, /apply-template: llama-server's and vLLM's."""

from typing import Annotated

from msgspec import Meta, Struct

from llmserve.api.fields import TokenId
from llmserve.api.openai.chat_schemas import Messages, ReasoningEffort, TemplateVariables
from llmserve.api.openai.tool_schemas import Tools

# Seconds of a thread at most: what comes as one word, such as a million times the same letter,
# takes longest, and nothing can stop native code.
Text = Annotated[str, Meta(max_length=1 << 20)]


class TokenizeRequest(Struct, forbid_unknown_fields=True):
    """`content` and `add_special` are llama-server's, `prompt` and `add_special_tokens` vLLM's."""

    model: str | None = None
    content: Text | None = None
    add_special: bool | None = None
    prompt: Text | None = None
    add_special_tokens: bool | None = None


class TokenizeResponse(Struct):
    tokens: list[int]
    count: int
    max_model_len: int  # tokens of the context


class DetokenizeRequest(Struct, forbid_unknown_fields=True):
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 20)]
    model: str | None = None


class DetokenizeResponse(Struct):
    """The same text twice: under llama-server's name and under vLLM's."""

    content: str
    prompt: str


class TokenizerInfo(Struct):
    """vLLM's: what a `tokenizer_config.json` would say. No text: the model has no such token."""

    model: str
    tokenizer_class: str  # as the GGUF calls it: gpt2, llama, …
    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool  # whether the model wants BOS in front of every text
    chat_template: str | None
    model_max_length: int  # tokens of the context
    vocab_size: int


class TemplateRequest(Struct, forbid_unknown_fields=True):
    messages: Messages
    model: str | None = None
    tools: Tools | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: TemplateVariables | None = None


class TemplateResponse(Struct):
    prompt: str
