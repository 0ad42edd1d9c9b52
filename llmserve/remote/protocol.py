"""What a protocol has to know: a request as bytes, and events as parts. No I/O.

Nothing is dropped silently: `check_honoured` refuses, by name, whatever a protocol does not list,
also fields that `core.Request` may get later.
"""

import functools
import secrets
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Protocol

import msgspec
from msgspec import NODEFAULT, Struct

from llmserve.core import FinishReason, Mode, Part, Request, ToolCallDelta, Usage
from llmserve.errors import InvalidRequestError
from llmserve.remote.errors import BrokenAnswerError
from llmserve.remote.sse import SseEvent

# For protocols whose own default is none, or a few tokens: the most that all their models take.
DEFAULT_MAX_TOKENS = 4096

# Not for the provider: ours, or looked into. What it caches is its own affair.
_NOT_ASKED = ("model", "mode", "sampling", "priority", "cache_namespace")
_PARAMS = {  # as the native dialect calls them
    "num_logprobs": "logprobs",
    "prompt_logprobs": "echo",
    "constraint": "response_format",
    "tool_use": "tools",
    "prompt_tokens": "prompt",
    "max_tokens": "parameters.max_tokens",
    "stop": "parameters.stop",
    "seed": "parameters.seed",
}


class Call(NamedTuple):
    path: str  # after the provider's address
    body: bytes
    headers: Mapping[str, str] = {}  # beside those of every call


class Ending(NamedTuple):
    reason: FinishReason
    stop_sequence: str | None
    usage: Usage


class Decoder(Protocol):
    """The events of one answer -> parts of ours.

    `push` raises `BrokenAnswerError` and `ErrorInStreamError`, and an `InvalidRequestError` if
    the first part shows that the provider does not honour a field.
    """

    is_done: bool  # the provider said that nothing follows

    def push(self, event: SseEvent) -> Iterator[Part]: ...

    def end(self) -> Ending:
        """When no event follows. Raises `BrokenAnswerError` for half an answer."""


class ProviderProtocol(Protocol):
    """How a provider is asked."""

    def headers(self, key: str | None) -> dict[str, str]: ...

    def encode(self, request: Request, mode: Mode) -> Call:
        """Raises `InvalidRequestError` for what the provider cannot honour."""

    def decoder(self, request: Request, mode: Mode) -> Decoder: ...


def check_honoured(request: Request, honoured: Collection[str], whose: str, fix: str) -> None:
    """Raises `InvalidRequestError` for the first field that is set and not among `honoured`."""
    for holder, prefix in ((request, ""), (request.sampling, "parameters.")):
        for name, default in _defaults(type(holder)):
            if name in honoured or name in _NOT_ASKED or getattr(holder, name) == default:
                continue
            param = _PARAMS.get(name, prefix + name)
            if name == "constraint" and request.constraint and request.constraint.field:
                param = request.constraint.field  # several fields can make one
            raise not_honoured(param, whose, fix)


@functools.cache
def _defaults(kind: type[Struct]) -> list[tuple[str, object]]:
    """Every field and its default."""
    return [
        (field.name, field.default if field.default is not NODEFAULT else field.default_factory())
        for field in msgspec.structs.fields(kind)
    ]


def not_honoured(param: str, whose: str, fix: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} cannot be honoured by {whose}; {fix}", param=param)


def encode_body(body: dict[str, object]) -> bytes:
    """The JSON. Raises `InvalidRequestError` for half of a surrogate pair."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "the request is not valid Unicode: it has half of a surrogate pair"
        ) from error


class CallPieces:
    """Of one answer."""

    def __init__(self) -> None:
        self._indexes: dict[int, int] = {}  # the provider's -> ours
        self._has_arguments: list[bool] = []

    @property
    def num_calls(self) -> int:
        return len(self._has_arguments)

    def add(
        self, index: int | None, call_id: str | None, name: str | None, arguments: str | None
    ) -> ToolCallDelta:
        """Raises `BrokenAnswerError` for a call without a name."""
        if index is None:  # Google's: every call in one piece, or a piece of the last one
            index = self.num_calls if name or not self.num_calls else self.num_calls - 1
        ours = self._indexes.get(index)
        if ours is not None:
            self._has_arguments[ours] |= bool(arguments)
            return ToolCallDelta(ours, arguments or "")
        if not name:
            raise BrokenAnswerError("sent a tool call without a name")
        ours = self._indexes[index] = self.num_calls
        self._has_arguments.append(bool(arguments))
        return ToolCallDelta(
            ours, arguments or "", call_id or f"call_{secrets.token_hex(12)}", name
        )

    def complete(self) -> Iterator[ToolCallDelta]:
        """What is missing at the end: a call without arguments has an empty object."""
        for index, has_arguments in enumerate(self._has_arguments):
            if not has_arguments:
                yield ToolCallDelta(index, "{}")


class Bounds(Struct, frozen=True):
    """Tests have smaller ones."""

    connect_s: float = 5.0
    answer_s: float = 3600.0
    answer_bytes: int = 512 << 20  # an event of a token is 0.2 to 3 kB on the wire
    event_bytes: int = 1 << 20
