"""LlmserveError -> status, headers and envelope. The one place that renders errors.

The envelope is the same in every dialect; what differs is a status, a type or a code, which is
what the dialect's `Describe` says.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmserve.api.http.upload import CUT_OFF
from llmserve.errors import (
    AuthenticationError,
    DeadlineError,
    LlmserveError,
    PermissionDeniedError,
    RateLimitError,
    as_llmserve_error,
)
from llmserve.telemetry.request_record import DISCONNECTED, note_error


class ErrorBody(Struct, frozen=True):
    type: str
    code: str
    message: str
    param: str | None = None


class ErrorEnvelope(Struct, frozen=True):
    """What went wrong: `code` is stable and for programs, `message` is for people."""

    error: ErrorBody


LINGER_S = 2.0  # for a client to read why it was refused, while what it still sends is dropped
LINGER_BYTES = 32 << 20
# Raised before the body was read, all of it or any.
_EARLY = (*CUT_OFF, AuthenticationError, PermissionDeniedError, RateLimitError)


class Description(NamedTuple):
    status: int
    body: ErrorBody


Describe: TypeAlias = Callable[[LlmserveError], Description]


def describe(error: LlmserveError) -> Description:
    """In the words of the native dialect, which are those of `llmserve.errors`."""
    return Description(error.status, ErrorBody(error.type, error.code, error.message, error.param))


def encode_error(error: Exception, describe_error: Describe = describe) -> bytes:
    """The JSON of `error`, for a body or for an event of a stream."""
    return msgspec.json.encode(ErrorEnvelope(describe_error(as_llmserve_error(error)).body))


class LlmserveErrorHandler:
    """For starlette. `describe_for` gives the `Describe` of a path."""

    def __init__(self, describe_for: Callable[[str], Describe]) -> None:
        self._describe_for = describe_for

    async def __call__(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, LlmserveError)
        note_error(error.code)
        headers = {}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
        if isinstance(error, DeadlineError):  # OpenAI's clients would ask again, twice
            headers["x-should-retry"] = "false"
        if isinstance(error, AuthenticationError):
            headers["www-authenticate"] = 'Bearer realm="llmserve"'
        kind = _LastResponse if isinstance(error, _EARLY) and _has_body(request) else Response
        describe_error = self._describe_for(request.scope["path"])
        status = describe_error(error).status
        return kind(encode_error(error, describe_error), status, headers, "application/json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, wrong method."""
    assert isinstance(error, HTTPException)
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    note_error(code)
    message = f"{request.method} {request.scope['path']}: {error.detail}"
    body = msgspec.json.encode(ErrorEnvelope(ErrorBody("invalid_request_error", code, message)))
    return Response(body, error.status_code, error.headers, "application/json")


async def on_client_gone(request: Request, error: Exception) -> Response:
    """The client left before its body was complete: this answer is not read."""
    note_error(DISCONNECTED)
    return Response(status_code=400)


async def on_bug(request: Request, error: Exception) -> Response:
    """Anything we did not foresee; starlette raises it again after this answer, for the log."""
    return Response(encode_error(error), 500, None, "application/json")


def _has_body(request: Request) -> bool:
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


class _LastResponse(Response):
    """An answer while the client is still sending: complete at once, then the connection ends.

    For a while the rest is read and dropped, because closing a connection with unread bytes
    resets it, and a client that only reads when it has sent all would never see the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await _drop_body(receive)
        await send({"type": "http.response.body", "body": b""})


async def _drop_body(receive: Receive) -> None:
    num_dropped = 0
    more = True
    while more and num_dropped < LINGER_BYTES:
        message = await receive()
        num_dropped += len(message.get("body", b""))
        more = message.get("more_body", False)
