"""What comes from models and from other servers: the same however it is cut, and never a bug."""

from collections.abc import Callable
from typing import Any

import msgspec

from llmserve.chat.tools.formats.detect import FORMATS, THINKING
from llmserve.chat.tools.formats.model import START, THOUGHT, states_of
from llmserve.chat.tools.parser import Parser
from llmserve.core import Delta, EmbeddingRequest, Part, ReasoningDelta, ToolCallDelta
from llmserve.errors import LlmserveError
from llmserve.remote.anthropic import AnthropicDecoder
from llmserve.remote.errors import (
    Asked,
    BrokenAnswerError,
    ErrorInStreamError,
    from_status,
    from_stream,
    too_late,
)
from llmserve.remote.openai import embeddings
from llmserve.remote.openai.response import OpenAIDecoder
from llmserve.remote.protocol import Decoder, Ending
from llmserve.remote.sse import SseReader, SseTooLongError
from tests.chat.tools.recorded import TYPES
from tests.chat.tools.understood import run, understand
from tests.fuzz.targets.common import Choices, check_words, in_pieces

NUM_PIECES = 4
MAX_EVENT_BYTES = 64

# -- server-sent events ----------------------------------------------------------------------------


def check_sse(data: bytes) -> None:
    choices = Choices(data)
    pieces = in_pieces(choices.rest[NUM_PIECES:], choices.lengths(NUM_PIECES))
    whole, cut = SseReader(), SseReader()
    events = list(whole.push(b"".join(pieces)))
    assert [event for piece in pieces for event in cut.push(piece)] == events
    assert cut.is_between_events == whole.is_between_events
    _check_bounds(pieces)


def _check_bounds(pieces: list[bytes]) -> None:
    reader = SseReader(MAX_EVENT_BYTES)
    try:
        for piece in pieces:
            for event in reader.push(piece):
                # Line breaks between the lines of an event come on top.
                assert len(event.data) - event.data.count(b"\n") <= MAX_EVENT_BYTES
    except SseTooLongError:
        assert sum(map(len, pieces)) > MAX_EVENT_BYTES


# -- answers of providers --------------------------------------------------------------------------

DECODERS: list[Callable[[], Decoder]] = [
    lambda: OpenAIDecoder(with_logprobs=False),
    lambda: OpenAIDecoder(with_logprobs=True, must_call=True),
    AnthropicDecoder,
]
_ASKED = Asked("m", "provider.example", "/v1", "KEY", "secret")


def check_provider_answer(data: bytes) -> None:
    """A stream up to its end, or an error that we have words for."""
    choices = Choices(data)
    decoder = choices.one_of(DECODERS)()
    try:
        parts, ending = _decode(decoder, choices.rest)
    except (BrokenAnswerError, SseTooLongError):
        return
    except LlmserveError as error:
        _check_told(error)
        return
    except ErrorInStreamError as error:
        _check_told(from_stream(_ASKED, error).error)
        _check_told(too_late(_ASKED, error))
        return
    msgspec.msgpack.encode([parts, list(ending)])  # as it crosses to other processes and clients
    assert min(ending.usage.prompt_tokens, ending.usage.generated_tokens) >= 0


def _decode(decoder: Decoder, data: bytes) -> tuple[list[Part], Ending]:
    parts = [part for event in SseReader().push(data) for part in decoder.push(event)]
    return parts, decoder.end()


def _check_told(error: LlmserveError) -> None:
    assert 400 <= error.status < 600
    check_words(error.message)
    msgspec.json.encode([error.message, error.param, error.retry_after_s])


def check_provider_error(data: bytes) -> None:
    """The body of an answer whose status is an error, and the body of embeddings."""
    choices = Choices(data)
    status = choices.one_of([400, 401, 404, 413, 429, 500, 503, 302, 418])
    request = EmbeddingRequest(inputs=("a", "b"), dimensions=choices.one_of([None, 2]))
    headers = {"retry-after": choices.rest[:8].decode("latin-1"), "location": "http://x"}
    _check_told(from_status(_ASKED, status, headers, choices.rest).error)
    try:
        vectors, num_tokens = embeddings.decode(choices.rest, request)
    except BrokenAnswerError as error:
        check_words(str(error))
    else:
        assert len(vectors) == 2
        assert num_tokens >= 0


# -- texts of models -------------------------------------------------------------------------------

FORMAT_NAMES = sorted(FORMATS)
THINKING_STYLES = (None, *THINKING)


def check_format(data: bytes) -> None:
    """Text, thoughts and calls in the answer of a model."""
    choices = Choices(data)
    name, thinking = choices.one_of(FORMAT_NAMES), choices.one_of(THINKING_STYLES)
    first = THOUGHT if choices.number() % 2 and thinking else START
    states = states_of(FORMATS[name], thinking, with_calls=True)
    lengths = choices.lengths(NUM_PIECES)
    text = choices.rest.decode(errors="replace")

    def parsed(pieces: list[str]) -> list[Any]:
        return run(Parser(states, first=first, value_types=TYPES), pieces)

    whole, cut = parsed([text]), parsed(in_pieces(text, lengths))
    assert understand(cut) == understand(whole)
    assert sum(segment.num_chars for segment in whole) == len(text)
    for _, part in whole:
        match part:
            case Delta(shown) | ReasoningDelta(shown):
                assert shown in text
            case ToolCallDelta():
                msgspec.json.encode(part)
