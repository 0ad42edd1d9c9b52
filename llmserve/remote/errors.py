"""What a provider did wrong -> an `LlmserveError`, and what the retry policy needs to know.

The one place that translates httpx2's exceptions and the statuses of providers.
"""

import math
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import msgspec
from msgspec import Struct

from llmserve.errors import (
    InvalidRequestError,
    LlmserveError,
    ProviderAuthError,
    ProviderError,
    ProviderLimitError,
    ProviderModelError,
    ProviderTimeoutError,
    ProviderUnreachableError,
    TooLargeError,
)
from llmserve.remote.retry import Failure

MAX_MESSAGE_LEN = 500
DEFAULT_RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 86_400
# What msgspec raises for bytes that are no JSON, or nested too deep to be read.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Where an error comes inside of a stream, in place of the status that it would have had.
_STATUSES = {
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "invalid_request_error": 400,
    "overloaded_error": 529,
    "timeout_error": 504,
}
_AUTH, _MODEL = (401, 403), (404,)
_REFUSED, _TOO_LARGE = (400, 422), 413


class AttemptError(Exception):
    """One attempt ended before its first event: what to tell, and what to do."""

    def __init__(self, error: LlmserveError, failure: Failure, *, is_outage: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.failure = failure
        self.is_outage = is_outage  # the breaker counts it


class BrokenAnswerError(Exception):
    """The provider's answer is not what its protocol says; the message says in what way."""


class ErrorInStreamError(Exception):
    """The provider sent an error in the place of an event. `body` is its JSON."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body


class Asked(Struct, frozen=True):
    """Where a request went: what messages say about it, and what they must not say."""

    model: str  # our name
    host: str
    path: str
    api_key_env: str | None
    key: str | None

    def text(self, what: str) -> str:
        return f"model {self.model!r}: the provider at {self.host} {self.redact(what)}"

    def redact(self, text: str) -> str:
        """`text` without the key, in a length for people."""
        if self.key:
            text = text.replace(self.key, "***")
        return text if len(text) <= MAX_MESSAGE_LEN else text[:MAX_MESSAGE_LEN] + "…"


def from_status(asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> AttemptError:
    """An answer whose status is not 200. `body` may be cut off."""
    message, code, param = _read_error(body)
    failure = Failure(
        status,
        retry_after_s=retry_after_s(headers, time.time()),
        is_final=headers.get("x-should-retry") == "false",
    )
    error = _error_of(asked, status, message, code, param)
    if isinstance(error, ProviderLimitError):
        wait_s = failure.retry_after_s or DEFAULT_RETRY_AFTER_S
        error.retry_after_s = min(math.ceil(wait_s), MAX_RETRY_AFTER_S)
    if 300 <= status < 400:
        where = asked.redact(headers.get("location", "nowhere"))
        error = ProviderError(asked.text(f"redirects to {where}; set remote to the right address"))
    return AttemptError(error, failure, is_outage=status >= 500)


def _error_of(
    asked: Asked, status: int, message: str, code: str | None, param: str | None
) -> LlmserveError:
    error = _told(asked, status, f": {message}" if message else "", code, param)
    error.log_message = _told(asked, status, "", code, param).message
    return error


def _told(
    asked: Asked, status: int, said: str, code: str | None, param: str | None
) -> LlmserveError:
    if status in _AUTH:
        variable = asked.api_key_env
        fix = f"check the environment variable {variable}" if variable else "set api_key_env"
        return ProviderAuthError(asked.text(f"refuses the key ({status}){said}") + f"; {fix}")
    if status in _MODEL or code == "model_not_found":
        what = f"has no such model, or no {asked.path} at all ({status})"
        return ProviderModelError(asked.text(f"{what}{said}"))
    if status == _TOO_LARGE or code == "context_length_exceeded":
        return TooLargeError(asked.text(f"says that the request is too large{said}"), param=param)
    if status in _REFUSED:
        return InvalidRequestError(asked.text(f"refuses the request ({status}){said}"), param=param)
    if status in (402, 429):
        return ProviderLimitError(asked.text(f"is over its limits ({status}){said}"))
    if status in (408, 504):
        return ProviderTimeoutError(asked.text(f"was out of time ({status}){said}"))
    return ProviderError(asked.text(f"answered with status {status}{said}"))


def from_stream(asked: Asked, error: ErrorInStreamError) -> AttemptError:
    """An error instead of the first event."""
    _, code, _ = _read_error(error.body)
    status = _STATUSES.get(code or "", 500)
    if code and code.isdecimal() and 400 <= int(code) < 600:  # some send the status itself
        status = int(code)
    return from_status(asked, status, {}, error.body)


def too_late(asked: Asked, error: ErrorInStreamError) -> ProviderError:
    """An error after the first event."""
    message = _read_error(error.body)[0] or "without saying what"
    return ProviderError(asked.text(f"ended the answer with an error: {message}"))


def broken(asked: Asked, error: BrokenAnswerError) -> AttemptError:
    return AttemptError(ProviderError(asked.text(str(error))), Failure(), is_outage=True)


def from_transport(asked: Asked, error: httpx2.HTTPError, *, is_connected: bool) -> AttemptError:
    """No answer, or the end of one, by httpx2's account."""
    told: LlmserveError
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        told = ProviderUnreachableError(asked.text(f"cannot be reached: {reason(error)}"))
    elif is_connected:
        told = ProviderError(asked.text(f"cut its answer off: {reason(error)}"))
    else:
        told = ProviderUnreachableError(asked.text(f"closed the connection: {reason(error)}"))
    return AttemptError(told, Failure(), is_outage=True)


def reason(error: BaseException) -> str:
    """The innermost words of what went wrong with a connection: httpx2's own are vague."""
    if isinstance(error, httpx2.ConnectTimeout):
        return "no connection in time"
    words = str(error)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.strerror:  # asyncio's own says less
            number = 0 if isinstance(cause, ssl.SSLError) else cause.errno or 0
            words = os.strerror(number) if number > 0 else cause.strerror
    return words or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        if isinstance(seen, BaseExceptionGroup):  # an attempt for each address of a name
            seen = seen.exceptions[0]
        else:
            seen = seen.__cause__ or seen.__context__


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Of `retry-after-ms`, or `retry-after` in seconds or as a date; None if there is none."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            value_s = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if math.isfinite(value_s):
            return max(0.0, value_s)
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - now_s)
    except (KeyError, ValueError, OverflowError):
        return None


def _read_error(body: bytes) -> tuple[str, str | None, str | None]:
    """Message, code (else type) and param of an error in any of the usual envelopes."""
    try:
        decoded = msgspec.json.decode(body)
    except UNREADABLE:
        return "", None, None  # a page for people
    inner: Any = decoded
    if isinstance(inner, list) and inner:  # Google's
        inner = inner[0]
    if isinstance(inner, dict) and isinstance(inner.get("error"), dict | str):
        inner = inner["error"]
    if isinstance(inner, str):
        return inner, None, None
    if not isinstance(inner, dict):
        return "", None, None
    message = next(
        (inner[key] for key in ("message", "detail") if isinstance(inner.get(key), str)), ""
    )
    codes = (inner.get("code"), inner.get("type"))
    code = next((str(each) for each in codes if isinstance(each, str | int)), None)
    param = inner.get("param")
    return message, code, param if isinstance(param, str) else None
