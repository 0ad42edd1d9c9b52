"""Any request to any route, and any bytes at all: an answer by the rules, and nothing breaks.

What bodies may hold is tested by dialect (tests/api); here it is methods, paths, queries and heads,
of routes that people use and of those that only an administrator does.
"""

import http.client
import io
import re
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, quote_from_bytes

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmserve.api.app import ENDPOINTS
from llmserve.engine.runtime import EmbeddingLimits
from tests.budget import examples
from tests.serving import FakeService, fake_service, raw_request

pytestmark = pytest.mark.fuzz

EMBEDDING = EmbeddingLimits(8, max_len=64, max_batch=64, max_inputs=4, num_cells=64)
BODIES: dict[str, dict[str, Any]] = {
    "/inference": {"prompt": "a", "parameters": {"max_tokens": 3}},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3},
    "/v1/completions": {"prompt": "a", "max_tokens": 3},
    "/v1/embeddings": {"input": "a"},
    "/v1/responses": {"input": "a", "max_output_tokens": 3},
    "/tokenize": {"content": "a"},
    "/detokenize": {"tokens": [97]},
    "/apply-template": {"messages": [{"role": "user", "content": "a"}]},
}
PATHS = [each.path for each in ENDPOINTS.all]
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "BREW", "get"]
NAMES = [
    "fake", "default", "nobody", "", ".", "..", "../fake", "fake/load", "fake/../fake", "//", "%00",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%c3%28", "%ff", "a" * 3000, "C:%5Cx", "fake%0d%0aX: y", "é",
]  # fmt: skip
QUERIES = [
    "",
    "?",
    "?model=fake",
    "?model=",
    "?model=%ff",
    "?a=1&a=2&a",
    "?" + "a" * 3000,
    "?%zz=%",
]
HEADS = [
    "Accept: text/html", "Accept: *", "Accept-Encoding: gzip;q=0", "Content-Type: text/plain",
    "Content-Type: application/json; charset=utf-16", "Content-Type: multipart/form-data",
    "Content-Encoding: gzip", "Expect: 100-continue", "Range: bytes=0-0", "If-None-Match: *",
    "X-Request-Id: " + "x" * 500, "X-Request-Id: a\tb", "X-Request-Id: \xff\xfe", "Cookie: a=b",
    "X-HTTP-Method-Override: DELETE", "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Host: evil.example", "Upgrade: websocket", "Upgrade: h2c", "Traceparent: 00-zz",
    "TE: trailers", "Authorization: Basic x",
]  # fmt: skip


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    """Answers soon end, because the context is full."""
    with fake_service(context_length=64, embedding=EMBEDDING) as running:
        yield running
        assert running.post({"prompt": "a", "parameters": {"max_tokens": 3}}).status_code == 200
        running.wait_idle()


@pytest.fixture(scope="module")
def bounded() -> settings:
    return settings(
        max_examples=examples(100),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def read_answer(data: bytes, method: str) -> Answer:
    """Raises what http.client raises for what is no answer."""
    response = http.client.HTTPResponse(_Bytes(data), method=method)  # type: ignore[arg-type]
    response.begin()
    return Answer(response.status, response.headers, response.read())


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def receive(connection: socket.socket) -> bytes:
    """All until the other side closes, in order or with a reset."""
    data = b""
    try:
        while part := connection.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


def check_answer(answer: Answer, method: str) -> None:
    assert 200 <= answer.status < 600
    assert answer.status < 500 or answer.status in (501, 503, 505), answer
    assert answer.headers["x-request-id"] or answer.status in (400, 431), answer
    if method == "HEAD" or answer.status < 400:
        return
    if answer.headers["content-type"].startswith("application/json"):
        error = msgspec.json.decode(answer.body)["error"]
        assert 0 < len(error["message"]) < 5_000
    else:
        assert len(answer.body) < 200


# -- requests to every route -----------------------------------------------------------------------


def test_every_route_is_among_them() -> None:
    known = {path for path in PATHS if "{" in path} | set(BODIES)
    assert known <= set(PATHS)
    posts = {each.path for each in ENDPOINTS.all if each.method == "POST"}
    assert posts - known == {"/models/reload"}, "a route without a body here"


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """Method, and all bytes."""
    template = draw(st.sampled_from(PATHS))
    method = draw(st.sampled_from(["POST" if template in BODIES else "GET"] * 6 + METHODS))
    odd = st.binary(max_size=9).map(quote_from_bytes) | st.text(max_size=9).map(quote)
    names = st.sampled_from(NAMES) | odd
    path = re.sub(r"\{[^}]*\}", lambda _: draw(names), template)
    path += draw(st.sampled_from(["", "", "", "/", "//", "/..", ";x"])) + draw(
        st.sampled_from(QUERIES)
    )
    body = msgspec.json.encode(BODIES.get(template, {}))
    if draw(st.integers(0, 3)) == 0:
        body = draw(st.binary(max_size=60))
    heads = draw(st.lists(st.sampled_from(HEADS), max_size=3, unique=True))
    head = "".join(f"{line}\r\n" for line in ["Connection: close", *heads])
    length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
    first = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}"
    return method, (first + head + "\r\n").encode("latin-1", "replace") + body


def test_any_request_to_any_route(service: FakeService, bounded: settings) -> None:
    @bounded
    @given(requests())
    @example(("GET", raw_request("GET", "/models/fake/load", headers="Connection: close\r\n")))
    @example(("POST", raw_request("POST", "/models/reload", headers="Connection: close\r\n")))
    def holds(request: tuple[str, bytes]) -> None:
        method, data = request
        with service.connect(data) as connection:
            answer = read_answer(receive(connection), method)
        check_answer(answer, method)

    holds()


# -- bytes -----------------------------------------------------------------------------------------

WHOLE = [
    raw_request("POST", path, msgspec.json.encode(body), "Connection: close\r\n")
    for path, body in BODIES.items()
]
CHUNKED = (
    b"POST /inference HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    b'Connection: close\r\n\r\n5\r\n{"pro\r\n9\r\nmpt": "a"}\r\n0\r\n\r\n'
)
PIECES = [
    b"\r\n", b"\n", b"\0", b" ", b":", b"HTTP/1.0", b"HTTP/9.9", b"ffffffff\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 9999999999999999999\r\n",
    b"Host: a\r\nHost: b\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"X: " + b"a" * 70_000 + b"\r\n", b"A: b\r\n" * 300, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([*WHOLE, CHUNKED])))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(data), 200)))
        length = draw(st.sampled_from([0, 0, 1, 2, 10]))
        data[at : at + length] = draw(st.sampled_from(PIECES) | st.binary(max_size=5))
    return bytes(data)


def test_any_bytes(service: FakeService, bounded: settings) -> None:
    @bounded
    @given(damaged() | st.binary(max_size=100))
    @example(CHUNKED)
    @example(b"")
    @example(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000)
    def holds(data: bytes) -> None:
        with service.connect() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)  # or the server waits for what is missing
            except OSError:
                return  # it has seen enough
            received = receive(connection)
        if received.startswith(b"HTTP/"):
            method = "HEAD" if data.startswith(b"HEAD") else "GET"
            check_answer(read_answer(received, method), method)
        else:
            assert received == b""

    holds()
