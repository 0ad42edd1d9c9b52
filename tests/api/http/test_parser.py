"""What is no request, too much of one, or two at once."""

import contextlib
import logging
import re
from collections.abc import Callable

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.api.http.parser import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_TARGET_BYTES,
    MalformedError,
    Parser,
)
from llmserve.errors import LlmserveError
from tests.serving import FakeService, parse_answer, raw_request, read_answer, read_to_end

START = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /inference HTTP/1.1\r\nHost: localhost\r\n"

MALFORMED = [
    # bytes; status; a word of the message
    (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, "illegal request line"),  # TLS
    (b"\x00" * 64, 400, "illegal request line"),
    (b"\r\n\r\n", 400, "no request line"),
    (b"GET\r\n\r\n", 400, "illegal request line"),
    (b"GET /health\r\n\r\n", 400, "illegal request line"),
    (b"GET /he alth HTTP/1.1\r\n\r\n", 400, "illegal request line"),
    (b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "illegal request line"),
    (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "illegal request line"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1, not HTTP/2.0"),
    (b"GET / HTTP/1.9\r\nHost: localhost\r\n\r\n", 505, "not HTTP/1.9"),
    (b"GET /health HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host"),
    (START + b"Host: localhost\r\n\r\n", 400, "multiple Host"),
    (START + b"A: b\x00c\r\n\r\n", 400, "illegal header line"),
    (START + b"A : b\r\n\r\n", 400, "illegal header line"),
    (START + b": b\r\n\r\n", 400, "illegal header line"),
    (START + b"no colon\r\n\r\n", 400, "illegal header line"),
    (POST + b"Content-Length: -5\r\n\r\n", 400, "Content-Length"),
    (POST + b"Content-Length: +5\r\n\r\n", 400, "Content-Length"),
    (POST + b"Content-Length: 5 6\r\n\r\n", 400, "Content-Length"),
    (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400, "Content-Length"),
    (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "Content-Length"),
    (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "not both"),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400, "not both"),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "Transfer-Encoding"),
    (POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501, "Transfer-Encoding"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "chunk header"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400, "chunk header"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 21 + b"\r\n", 400, "chunk header"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef", 400, "chunk footer"),
    # too much
    (START + b"A: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", 431, "headers are too large"),
    (START + b"A: b\r\n" * MAX_HEADERS + b"\r\n", 431, "headers are too large"),
    (START + b"A: " + b"x" * (1 << 20), 431, "headers are too large"),
    (START + b"A: b\r\n" * 100_000, 431, "headers are too large"),
    (b"x" * (1 << 20), 431, "headers are too large"),
    (b"GET /" + b"x" * MAX_TARGET_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "8193 bytes"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * (1 << 20), 431, "too large"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 99_999, 431, "too large"),
    (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 99_999, 400, "larger ones"),
]


@pytest.mark.parametrize(("data", "status", "word"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_request_is_told_so_and_cut(
    service: FakeService,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    status: int,
    word: str,
) -> None:
    caplog.set_level(logging.INFO, "llmserve.request")
    with service.connect() as connection:
        with contextlib.suppress(ConnectionError):  # it has not read everything
            connection.sendall(data)
        answer = parse_answer(read_to_end(connection))
    assert answer.status == status
    error = answer.error
    assert (error["type"], error["code"]) == ("invalid_request_error", "malformed_request")
    assert word in error["message"]
    assert len(error["message"]) < 300
    assert re.fullmatch(r"req_\w+", answer.headers["x-request-id"])
    assert answer.headers["connection"] == "close"
    lines = [record for record in caplog.records if record.msg.startswith("refused: ")]
    assert [record.fields["request_id"] for record in lines] == [  # type: ignore[attr-defined]
        answer.headers["x-request-id"]
    ]
    assert service.get("/health").status_code == 200


FINE = [
    # bytes; the status that the application gives
    (START + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", 200),
    (START + b"A: b\r\n" * (MAX_HEADERS - 1) + b"\r\n", 200),
    (START + b"A: " + b"x" * (MAX_HEAD_BYTES - 999) + b"\r\n\r\n", 200),
    (b"GET /" + b"x" * (MAX_TARGET_BYTES - 1) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"GET //evil.example/%2e%2e/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (START + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    (START + b"Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", 200),
    (b"TRACE /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
]


@pytest.mark.parametrize(("data", "status"), FINE, ids=range(len(FINE)))
def test_what_is_strange_but_a_request_is_answered(
    service: FakeService, data: bytes, status: int
) -> None:
    with service.connect(data) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 %d " % status)


def test_a_smuggled_request_is_not_answered(service: FakeService) -> None:
    inner = raw_request("GET", "/metrics")
    data = POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % len(inner)
    with service.connect(data + inner) as connection:
        answer = read_to_end(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"llmserve_" not in answer


def test_what_follows_an_answered_request_can_only_end_the_connection(
    service: FakeService,
) -> None:
    """A second answer would be taken for that of the client's next request."""
    body = b"3\r\nabc\r\nlies"
    data = START + b"Transfer-Encoding: chunked\r\n\r\n"
    with service.connect(data) as connection:
        assert read_answer(connection).status == 200
        connection.sendall(body + b"\r\n")
        assert read_to_end(connection) == b""


def test_a_body_of_small_chunks_may_be_short(service: FakeService) -> None:
    body = b'{"prompt": "x", "parameters": {"max_tokens": 1}}' + b" " * 2000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    with service.connect(head + chunks + b"0\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


# -- the parser itself ---------------------------------------------------------------------------


def parse(pieces: list[bytes]) -> tuple[int, LlmserveError | None]:
    """How many events there were, and what ended them, if it was a refusal."""
    refusals: list[LlmserveError] = []
    parser = Parser(refusals.append)
    num_events = 0
    for piece in pieces:
        parser.receive_data(piece)
        while parser.next_event() not in (h11.NEED_DATA, h11.PAUSED):
            num_events += 1
    assert len(refusals) <= 1
    return num_events, refusals[0] if refusals else None


HEADS = st.sampled_from([START, POST, b"GET / HTTP/1.0\r\n", b"PRI * HTTP/2.0\r\n"])
LINES = st.sampled_from(
    [
        b"A: b\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n",
        b"\x00",
        b"x",
    ]
)


@given(HEADS, st.lists(LINES, max_size=6), st.binary(max_size=40), st.data())
def test_any_bytes_end_in_events_or_in_one_refusal(
    head: bytes, lines: list[bytes], tail: bytes, data: st.DataObject
) -> None:
    whole = head + b"".join(lines) + tail
    cuts = sorted(data.draw(st.lists(st.integers(1, len(whole)), max_size=4, unique=True)))
    pieces = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True) if i < j]
    _, error = parse(pieces)
    assert error is None or isinstance(error, MalformedError)


@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
@pytest.mark.parametrize(
    "make", [lambda n: START + b"A: " + b"x" * n, lambda n: b"GET /" + b"x" * n]
)
def test_an_endless_head_is_cut_however_it_comes(step: int, make: Callable[[int], bytes]) -> None:
    whole = make(2 * MAX_HEAD_BYTES)
    _, error = parse([whole[i : i + step] for i in range(0, len(whole), step)])
    assert error is not None
    assert error.status == 431
