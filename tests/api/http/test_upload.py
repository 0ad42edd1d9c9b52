"""Bodies that are too large, too slow or too many."""

import contextlib
import gzip
import re
import select
import tracemalloc

import msgspec
import pytest

from llmserve.api.http import errors
from tests.serving import (
    TIMEOUT_S,
    FakeService,
    drip,
    fake_service,
    parse_answer,
    raw_inference,
    raw_request,
    read_answer,
    read_to_end,
    wait_until,
)

ASK = {"prompt": "x", "parameters": {"max_tokens": 1}}

# -- size --------------------------------------------------------------------------------------


def _sends_until_cut_off(service: FakeService, head: bytes, chunk: bytes) -> tuple[int, bytes]:
    """Bytes that could be sent before the server hung up, and what it said."""
    num_sent = 0
    answer = b""
    with service.connect(head) as connection:
        try:
            while num_sent < 1 << 28:
                connection.sendall(chunk)
                num_sent += len(chunk)
        except ConnectionError:
            pass
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:
            pass
    return num_sent, answer


def test_a_declared_size_over_the_cap_is_refused_before_the_body() -> None:
    with fake_service(server={"max_body_bytes": 2048}) as service:
        head = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        with service.connect(head) as connection:
            answer = b""
            while part := connection.recv(65536):  # the server hangs up by itself
                answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body has 1000000000 bytes; this server takes at most 2048" in answer
    assert b'"code":"too_large"' in answer


def test_a_declared_gigabyte_is_cut_off_early() -> None:
    with fake_service() as service:
        head = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        num_sent, _ = _sends_until_cut_off(service, head, b"x" * 65536)
    assert num_sent < 64 << 20  # what is dropped, and what the sockets hold


def test_a_chunked_body_is_cut_off_at_the_cap() -> None:
    with fake_service(server={"max_body_bytes": 100_000}) as service:
        head = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        num_sent, _ = _sends_until_cut_off(service, head, chunk)
        assert num_sent < 64 << 20
        with service.connect(head + chunk * 7) as connection:  # just over the cap, then patient
            answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_an_oversize_body_does_not_fill_the_memory() -> None:
    with fake_service() as service:
        tracemalloc.start()
        try:
            head = (
                b"POST /inference HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            _sends_until_cut_off(service, head, b"40000\r\n" + b"x" * 0x40000 + b"\r\n")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 * service.config.server.max_body_bytes


@pytest.mark.parametrize(("size", "status"), [(2048, 200), (2049, 413)])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_cap_is_exact(size: int, status: int, chunked: bool) -> None:
    body = b'{"prompt": "x", "parameters": {"max_tokens": 1}}'
    body += b" " * (size - len(body))
    with (
        fake_service(server={"max_body_bytes": 2048}) as service,
        service.client() as client,
    ):
        response = client.post("/inference", content=iter([body]) if chunked else body)
    assert response.status_code == status


def test_a_client_that_leaves_while_sending_is_no_error() -> None:
    with fake_service() as service:
        with service.connect(raw_request("POST", "/inference", b"x" * 100)[:-50]):
            pass
        with service.connect(b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Le"):
            pass
        assert service.get("/health").status_code == 200


def test_slow_senders_hold_up_nobody() -> None:
    head = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 48\r\n\r\n"
    body = b'{"prompt": "x", "parameters": {"max_tokens": 1}}'
    with fake_service() as service:
        slow = [service.connect(head[: 10 * i]) for i in range(1, 6)]
        slow += [service.connect(head + body[: 10 * i]) for i in range(4)]
        assert service.post({"prompt": "x", "parameters": {"max_tokens": 1}}).status_code == 200
        wait_until(lambda: service.gateway.num_active == 0)
        slow[-1].sendall(body[30:])
        assert slow[-1].recv(65536).startswith(b"HTTP/1.1 200 ")
        for connection in slow:
            connection.close()


# -- time --------------------------------------------------------------------------------------

HEAD = b"POST /inference HTTP/1.1\r\nHost: localhost\r\n"
SLOW = [
    (HEAD + b"Content-Length: 99\r\n\r\n", b"x"),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    (HEAD.replace(b"/inference", b"/v1/chat/completions") + b"Content-Length: 99\r\n\r\n", b"x"),
]


@pytest.mark.parametrize(("head", "part"), SLOW, ids=range(len(SLOW)))
def test_a_body_that_comes_byte_by_byte_gets_408(
    head: bytes, part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "LINGER_S", 0.1)
    with (
        fake_service(server={"body_timeout": 0.2}) as service,
        service.connect(head) as connection,
    ):
        answer = parse_answer(drip(connection, part) + read_to_end(connection))
        assert answer.status == 408
        assert answer.error["code"] == "request_timeout"
        assert "body_timeout" in answer.error["message"]
        assert re.fullmatch(r"req_\w+", answer.headers["x-request-id"])
        assert answer.headers["connection"] == "close"


def test_the_time_of_a_body_is_not_that_of_the_answer() -> None:
    with (
        fake_service(gated=True, server={"body_timeout": 0.1}) as service,
        service.connect(raw_inference(ASK)) as connection,
    ):
        wait_until(lambda: service.gateway.num_active == 1)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(TIMEOUT_S)
        service.step(5)
        assert read_answer(connection).status == 200


# -- memory ------------------------------------------------------------------------------------


def test_large_bodies_share_a_bounded_memory_and_small_ones_get_through() -> None:
    size = 1 << 20
    data = raw_request("POST", "/inference", b" " * size)
    with fake_service(server={"max_body_bytes": size}) as service:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(service.connect(data[:-1])) for _ in range(20)]
            answered, _, _ = select.select(connections, [], [], TIMEOUT_S)
            answer = read_answer(answered[0])
            assert answer.status == 503
            assert answer.error["code"] == "crowded"
            assert answer.headers["retry-after"]
            assert service.post(ASK).status_code == 200
        wait_until(lambda: service.num_connections == 0)
        with service.client() as client:  # it is all given back
            large = b" " * (size - 60) + b'{"prompt": "x", "parameters": {"max_tokens": 1}}'
            assert client.post("/inference", content=large).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br, identity"])
def test_an_encoded_body_is_refused_by_name(encoding: str) -> None:
    body = msgspec.json.encode({"prompt": "a", "parameters": {"max_tokens": 1}})
    with fake_service() as service, service.client() as client:
        headers = {"content-encoding": encoding}
        answer = client.post("/inference", content=gzip.compress(body), headers=headers)
        assert answer.status_code == 400
        assert encoding in answer.json()["error"]["message"]
        plain = client.post("/inference", content=body, headers={"content-encoding": "identity"})
        assert plain.status_code == 200
