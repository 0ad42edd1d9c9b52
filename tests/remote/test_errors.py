"""Statuses, envelopes and exceptions of providers -> our errors."""

import json
import socket
import ssl
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.errors import (
    InvalidRequestError,
    LlmserveError,
    ProviderError,
    ProviderLimitError,
    ProviderTimeoutError,
    ProviderUnreachableError,
    TooLargeError,
)
from llmserve.remote.errors import (
    MAX_MESSAGE_LEN,
    Asked,
    ErrorInStreamError,
    from_status,
    from_stream,
    from_transport,
    reason,
    retry_after_s,
    too_late,
)

KEY = "sk-1234567890"
ASKED = Asked("cloud", "api.example", "/chat/completions", "PROVIDER_KEY", KEY)

ENVELOPES = [
    ({"error": {"message": "no", "type": "t", "code": "c", "param": "p"}}, "OpenAI"),
    ({"type": "error", "error": {"type": "t", "message": "no"}}, "Anthropic"),
    ([{"error": {"message": "no", "code": 400, "status": "INVALID"}}], "Google"),
    ({"error": "no"}, "Ollama"),
    ({"detail": "no"}, "FastAPI"),
    ({"object": "error", "message": "no"}, "vLLM"),
]


def status_error(status: int, body: Any = b"", **headers: str) -> LlmserveError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return from_status(ASKED, status, headers, data).error


@pytest.mark.parametrize(
    "body", [body for body, _ in ENVELOPES], ids=[whose for _, whose in ENVELOPES]
)
def test_the_message_of_every_envelope_is_told(body: Any) -> None:
    error = status_error(400, body)
    assert isinstance(error, InvalidRequestError)
    assert error.message.endswith("refuses the request (400): no")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{", b'"\xff"', b"null", b'{"error": null}', b'{"error": []}']
)
def test_a_body_that_says_nothing(body: bytes) -> None:
    error = status_error(500, body)
    assert error.message == "model 'cloud': the provider at api.example answered with status 500"


def test_codes_count_more_than_a_status_that_says_little() -> None:
    body = {"error": {"message": "long", "code": "context_length_exceeded", "param": "messages"}}
    error = status_error(400, body)
    assert isinstance(error, TooLargeError)
    assert error.param == "messages"
    error = status_error(400, {"error": {"message": "what?", "code": "model_not_found"}})
    assert error.code == "provider_model"


@given(st.integers(100, 599), st.binary(max_size=200), st.text(max_size=30))
def test_any_answer_is_some_error_and_never_has_the_key(
    status: int, noise: bytes, text: str
) -> None:
    bodies = (noise, json.dumps({"error": {"message": f"{text}{KEY}{text * 30}{KEY}"}}).encode())
    for body in bodies:
        failed = from_status(ASKED, status, {"location": KEY}, body)
        assert KEY not in failed.error.message
        assert len(failed.error.message) < MAX_MESSAGE_LEN + 300
        assert failed.is_outage == (status >= 500)
        assert failed.error.status in (400, 413, 429, 502, 504)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9),
    ],
)
def test_when_to_come_again(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, now_s=10) == expected


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error", "message": "no"}, ProviderError),
        ({"type": "rate_limit_error", "message": "no"}, ProviderLimitError),
        ({"code": 429, "message": "no"}, ProviderLimitError),
        ({"code": "504", "message": "no"}, ProviderTimeoutError),
        ({"type": "invalid_request_error", "message": "no"}, InvalidRequestError),
        ({"code": 99999, "message": "no"}, ProviderError),
        ("no", ProviderError),
    ],
)
def test_an_error_in_a_stream(error: Any, kind: type[LlmserveError]) -> None:
    failed = ErrorInStreamError(json.dumps({"error": error}).encode())
    told = from_stream(ASKED, failed).error
    assert type(told) is kind
    assert told.message.endswith(": no")
    late = too_late(ASKED, failed)
    assert late.message.endswith("ended the answer with an error: no")


def test_an_error_in_a_stream_that_says_nothing() -> None:
    assert "without saying what" in too_late(ASKED, ErrorInStreamError(b"{}")).message


def raised(error: Exception, cause: BaseException) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(111, "asyncio's words"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("no number"), "outer"),
        (ExceptionGroup("all", [ConnectionRefusedError(111, "x")]), "Connection refused"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "WRONG_VERSION_NUMBER"),
    ],
)
def test_the_innermost_reason_is_told(cause: BaseException, words: str) -> None:
    assert words in reason(raised(httpx2.ConnectError("outer"), cause))


def test_what_ends_a_connection() -> None:
    refused = from_transport(ASKED, httpx2.ConnectError("x"), is_connected=False)
    assert isinstance(refused.error, ProviderUnreachableError)
    assert refused.is_outage
    closed = from_transport(ASKED, httpx2.ReadError("x"), is_connected=False)
    assert isinstance(closed.error, ProviderUnreachableError)
    cut = from_transport(ASKED, httpx2.RemoteProtocolError("x"), is_connected=True)
    assert type(cut.error) is ProviderError
    assert "cut its answer off" in cut.error.message
    assert "no connection in time" in reason(httpx2.ConnectTimeout(""))
