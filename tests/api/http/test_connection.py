"""Clients that keep the server waiting, over real sockets."""

import contextlib
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmserve.api.http import connection as connection_module
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

SHORT = 0.2  # seconds: of what is meant to run out
ASK = {"prompt": "hello", "mode": "completion", "parameters": {"temperature": 0, "max_tokens": 4}}
HEALTH = raw_request("GET", "/health")
PARTS = [b"G", b"GET /health HTTP/1.1", b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\r\n"]


@pytest.fixture(scope="module")
def impatient() -> Iterator[FakeService]:
    limits = dict.fromkeys(("header_timeout", "idle_timeout", "write_timeout"), SHORT)
    with fake_service(server=limits, send_buffer_bytes=4096) as running:
        yield running


def long_answer(**fields: Any) -> bytes:
    """A request whose streamed answer is more than socket buffers hold."""
    parameters = {"temperature": 0, "max_tokens": 4000, "ignore_eos": True}
    return raw_inference({**ASK, "parameters": parameters, "stream": True, **fields})


def narrow(service: FakeService, data: bytes) -> socket.socket:
    """A connection with room for few bytes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(TIMEOUT_S)
    connection.connect(("127.0.0.1", service.port))
    connection.sendall(data)
    return connection


# -- slow senders --------------------------------------------------------------------------------


def test_a_connection_without_a_request_is_closed(impatient: FakeService) -> None:
    with impatient.connect() as connection:
        assert read_to_end(connection) == b""
    with impatient.connect(HEALTH) as connection:
        answer = parse_answer(read_to_end(connection))
    assert answer.status == 200
    assert "connection" not in answer.headers


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
@pytest.mark.parametrize("before", [b"", HEALTH, HEALTH * 3], ids=["first", "second", "fourth"])
def test_half_a_head_gets_408(impatient: FakeService, before: bytes, part: bytes) -> None:
    with impatient.connect(before + part) as connection:
        data = read_to_end(connection)
    assert data.count(b"HTTP/1.1 200 ") == before.count(b"GET")
    answer = parse_answer(data[data.rindex(b"HTTP/1.1 ") :])
    assert answer.status == 408
    assert answer.error["code"] == "request_timeout"
    assert "header_timeout" in answer.error["message"]
    assert re.fullmatch(r"req_\w+", answer.headers["x-request-id"])
    assert answer.headers["connection"] == "close"


def test_a_head_that_comes_byte_by_byte_has_no_more_time(impatient: FakeService) -> None:
    with impatient.connect(b"GET /health HTTP/1.1\r\nA: ") as connection:
        assert drip(connection, b"x").startswith(b"HTTP/1.1 408 ")


def test_the_rest_of_a_body_that_nobody_reads_must_come_soon(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "LINGER_S", SHORT)
    data = raw_request("GET", "/health", b"x" * 100)
    with service.connect(data[:-50]) as connection:
        assert read_answer(connection).status == 200
        assert drip(connection, b"x") == b""
    with service.connect(data[:-50]) as connection:
        assert read_answer(connection).status == 200
        connection.sendall(b"x" * 50 + HEALTH)  # in time
        assert read_answer(connection).status == 200


@pytest.mark.parametrize("data", [PARTS[-1], raw_request("GET", "/health", b"x" * 100)[:-50]])
def test_who_sends_fast_has_no_more_time(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each piece comes before a timer gets its turn."""
    monkeypatch.setattr(connection_module, "LINGER_S", SHORT)
    with (
        fake_service(server={"header_timeout": SHORT}) as service,
        service.connect(data) as client,
    ):
        wait_until(lambda: service.num_waiting == 1)
        assert service.server
        (connection,) = service.server.server_state.connections
        assert isinstance(connection, connection_module.Connection)

        async def push() -> connection_module.Stage | None:
            end_s = time.monotonic() + SHORT  # the loop is busy for so long
            while time.monotonic() <= end_s:
                pass
            connection.data_received(b"x")
            return None if connection.transport.is_closing() else connection._stage

        assert service.run(push()) in (None, connection_module.Stage.REFUSED)
        read_to_end(client)


def test_the_rest_of_a_body_may_not_be_large(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "LINGER_BYTES", 1 << 20)
    with service.connect() as connection, pytest.raises(ConnectionError):
        connection.sendall(raw_request("GET", "/health", b"x" * (64 << 20)))


def test_a_refused_client_may_go_on_sending_for_a_while(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server closed at once, the client would be reset before it reads the answer."""
    monkeypatch.setattr(connection_module, "LINGER_BYTES", 1 << 20)
    with service.connect(b"\x00" * 100_000) as connection:
        connection.sendall(b"x" * 500_000)
        assert parse_answer(read_to_end(connection)).status == 400
    with service.connect(b"\x00") as connection, pytest.raises(ConnectionError):
        connection.sendall(b"x" * (64 << 20))


# -- slow readers --------------------------------------------------------------------------------


def test_a_reader_that_stalls_is_cut_off(impatient: FakeService) -> None:
    with narrow(impatient, long_answer()) as connection:
        assert connection.recv(100)
        wait_until(lambda: impatient.gateway.num_active == 0)
        wait_until(lambda: impatient.num_connections == 0)
        assert b'"generated_tokens":4000' not in read_to_end(connection)
    assert impatient.metric("llmserve_requests_total", outcome="disconnected") >= 1


def test_a_stalled_reader_of_whole_answers_is_cut_off(impatient: FakeService) -> None:
    """They are less than what makes the transport complain, and the server is done with them."""
    num_before = impatient.num_answers
    last = raw_request("GET", "/health", headers="Connection: close\r\n")
    with narrow(impatient, HEALTH * 250 + last):
        wait_until(lambda: impatient.num_answers == num_before + 251)
        wait_until(lambda: impatient.num_connections == 0)


def test_a_reader_that_only_pauses_gets_everything() -> None:
    with fake_service(send_buffer_bytes=4096) as service, narrow(service, long_answer()) as slow:
        wait_until(lambda: service.num_running == 0)
        data = b""
        while b'"generated_tokens":4000' not in data:
            data += slow.recv(65536)
        service.wait_idle()


# -- many ----------------------------------------------------------------------------------------

Begin = Callable[[FakeService], socket.socket]
WAITING: dict[str, bytes] = {
    "silent": b"",
    "idle": HEALTH,
    "head": HEALTH[:-2],
    "body": raw_inference(ASK)[:-1],
    "refused": b"\x00",
}


@pytest.mark.parametrize("data", WAITING.values(), ids=WAITING)
def test_who_waited_longest_makes_room(data: bytes) -> None:
    with fake_service(server={"max_connections": 2}) as service:
        with service.connect(data) as first, service.connect(HEALTH) as second:
            wait_until(lambda: service.num_connections == 2)
            assert read_answer(second).status == 200
            assert service.post(ASK).status_code == 200
            left = read_to_end(first)
            assert b'"generated_text"' not in left
            second.sendall(HEALTH)
            assert read_answer(second).status == 200
        service.wait_idle()


def test_who_is_answered_keeps_its_place_and_a_newcomer_gets_503() -> None:
    limits = {"max_connections": 2}
    with (
        fake_service(gated=True, server=limits) as service,
        ThreadPoolExecutor(2) as threads,
    ):
        answers = [threads.submit(service.post, ASK) for _ in range(2)]
        wait_until(lambda: service.gateway.num_active == 2)
        for _ in range(20):
            with service.connect(raw_inference(ASK)) as connection:
                answer = parse_answer(read_to_end(connection))
            assert answer.status == 503
            assert answer.error["code"] == "crowded"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-request-id"]
        service.step(8)
        assert [answer.result().status_code for answer in answers] == [200, 200]
        service.step(8)
        assert service.post(ASK).status_code == 200


def test_a_normal_request_is_answered_beside_2000_idle_and_500_slow_ones() -> None:
    with fake_service() as service, contextlib.ExitStack() as stack:
        slow = [b"GET /health HTTP/1.1\r\nHost: loc", raw_inference(ASK)[:-1]]
        others = [b""] * 1500 + [HEALTH] * 500 + slow * 250
        connections = [stack.enter_context(service.connect(data)) for data in others]
        wait_until(lambda: service.num_connections == len(others))
        for _ in range(20):
            assert service.post(ASK).json()["generated_text"]
        for connection in connections[-20:]:
            connection.sendall(b"x")  # they are still there, and still slow
        assert service.num_connections >= len(others)
        assert service.post(ASK).status_code == 200


PIECES = [
    *(
        HEALTH,
        HEALTH[:-2],
        raw_inference(ASK),
        raw_inference({**ASK, "stream": True}),
        long_answer(),
    ),
    *(b"\r\n", b"\x00", b"\xff" * 99, b"GET ", b"Host: localhost\r\n", b"HTTP/1.1\r\n", b"{" * 99),
    *(
        b"POST /inference HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"5\r\n",
    ),
    *(b"Content-Length: 5\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"x" * 70_000),
]


def test_20_clients_that_send_anything_leave_nothing_behind() -> None:
    def visit(seed: int) -> None:
        draw = random.Random(seed)
        with service.connect() as connection, contextlib.suppress(ConnectionError, TimeoutError):
            connection.settimeout(0.05)
            for _ in range(draw.randrange(6)):
                piece = draw.choice(PIECES)
                connection.sendall(
                    piece[: draw.choice([len(piece), draw.randrange(1 + len(piece))])]
                )
                if draw.random() < 0.3:
                    connection.recv(draw.choice([1, 65536]))
            if draw.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)

    with fake_service(send_buffer_bytes=4096) as service:
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(visit, range(300)))
        assert service.post(ASK).status_code == 200
        service.wait_idle()
        wait_until(lambda: service.num_connections == 0)
        assert service.num_waiting == 0
    # fake_service checks for tasks that are left over and for errors in the log.


# -- the end -------------------------------------------------------------------------------------


def test_the_server_ends_whatever_its_clients_are_doing() -> None:
    rest = raw_request("GET", "/health", b"x" * 100)[:-50]
    with contextlib.ExitStack() as stack, fake_service() as service:
        for data in (*WAITING.values(), rest):
            stack.enter_context(service.connect(data))
        wait_until(lambda: service.num_connections == len(WAITING) + 1)
        # They are closed later than the server is ended, which logs errors if it must be cut.


def test_a_newcomer_is_told_that_the_server_shuts_down() -> None:
    with fake_service(gated=True) as service, ThreadPoolExecutor(2) as threads:
        running = threads.submit(service.post, ASK)
        wait_until(lambda: service.gateway.num_active == 1)
        drained = threads.submit(service.run, service.gateway.drain(30))
        wait_until(lambda: service.get("/ready").status_code == 503)
        with service.connect(raw_inference(ASK)) as connection:
            head = connection.recv(65536)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in head
        assert b"x-request-id: " in head
        service.step(8)
        assert running.result().status_code == 200
        drained.result(TIMEOUT_S)
