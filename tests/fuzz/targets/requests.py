"""What comes from clients: bodies of every dialect, and grammars."""

from collections.abc import Callable

import msgspec
from llguidance import LLMatcher

from llmserve.api.http.decode import decode_body
from llmserve.api.native.inference import to_core as inference_to_core
from llmserve.api.native.schemas import InferenceRequest
from llmserve.api.openai.chat import to_core as chat_to_core
from llmserve.api.openai.chat_schemas import ChatRequest
from llmserve.api.openai.completions import to_core as completions_to_core
from llmserve.api.openai.completions import to_prompts
from llmserve.api.openai.embeddings import to_core as embeddings_to_core
from llmserve.api.openai.responses.request import to_core as responses_to_core
from llmserve.api.openai.responses.schemas import ResponsesRequest
from llmserve.api.openai.schemas import CompletionRequest, EmbeddingsRequest
from llmserve.config.provider import Provider
from llmserve.core import Mode, Request
from llmserve.engine.structured.gbnf import MAX_SYMBOLS, GrammarError, to_lark
from llmserve.engine.structured.validate import check_constraint
from llmserve.errors import InvalidRequestError
from llmserve.remote.anthropic import AnthropicProtocol
from llmserve.remote.openai.request import OpenAIProtocol
from llmserve.remote.protocol import ProviderProtocol
from tests.fuzz.targets.common import Choices, check_words

# -- bodies ----------------------------------------------------------------------------------------

Read = Callable[[bytes], list[Request]]


def _completions(body: bytes) -> list[Request]:
    wire = decode_body(body, CompletionRequest)
    return completions_to_core(wire, to_prompts(wire))


def _embeddings(body: bytes) -> list[Request]:
    embeddings_to_core(decode_body(body, EmbeddingsRequest))
    return []


READERS: list[Read] = [
    lambda body: [inference_to_core(decode_body(body, InferenceRequest))],
    lambda body: chat_to_core(decode_body(body, ChatRequest)),
    _completions,
    lambda body: [responses_to_core(decode_body(body, ResponsesRequest))],
    _embeddings,
]
_PROVIDER = Provider(urls=("https://provider.example/v1",))
_PROTOCOLS: list[ProviderProtocol] = [OpenAIProtocol(_PROVIDER, "m"), AnthropicProtocol("m")]


def check_body(data: bytes) -> None:
    """Requests, or a 400 that names what is wrong; the same on the way to a provider."""
    choices = Choices(data)
    read = choices.one_of(READERS)
    try:
        requests = read(choices.rest)
        for request in requests:
            if request.constraint is not None:
                check_constraint(request.constraint)
            for protocol in _PROTOCOLS:
                msgspec.json.decode(protocol.encode(request, request.mode or Mode.CHAT).body)
    except InvalidRequestError as error:
        check_words(error.message)
        msgspec.json.encode(error.param)


# -- grammars --------------------------------------------------------------------------------------


def check_gbnf(data: bytes) -> None:
    """Lark that llguidance reads, or a reason in words."""
    text = data.decode(errors="replace")
    try:
        lark = to_lark(text)
    except GrammarError as error:
        check_words(str(error), max_len=1000)
        return
    assert len(lark) <= 100 * (len(text) + MAX_SYMBOLS)
    LLMatcher.grammar_from_lark(lark)
