"""LlmserveError -> status, headers and envelope. The one place that renders errors."""

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from llmserve.errors import LlmserveError


class ErrorBody(Struct, frozen=True):
    type: str
    code: str
    message: str
    param: str | None = None


class ErrorEnvelope(Struct, frozen=True):
    error: ErrorBody


def encode_error(error: LlmserveError) -> bytes:
    """The JSON of `error`, for a body or for an event of a stream."""
    body = ErrorBody(error.type, error.code, error.message, error.param)
    return msgspec.json.encode(ErrorEnvelope(body))


async def on_llmserve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlmserveError)
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return Response(encode_error(error), error.status, headers, "application/json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, wrong method."""
    assert isinstance(error, HTTPException)
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = msgspec.json.encode(ErrorEnvelope(ErrorBody("invalid_request_error", code, message)))
    return Response(body, error.status_code, error.headers, "application/json")


async def on_bug(request: Request, error: Exception) -> Response:
    """Anything we did not foresee; starlette raises it again after this answer, for the log."""
    body = encode_error(LlmserveError("internal error; see the server's log"))
    return Response(body, 500, None, "application/json")
