"""Each way in which a provider can misbehave, and the outcome that is documented for it.

After every test: no task, connection, slot or address is still held.
"""

import asyncio
import contextlib
import email.utils
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from llmserve.config.provider import Retry
from llmserve.config.units import Duration
from llmserve.remote.breaker import NUM_FAILURES
from llmserve.remote.protocol import Bounds
from tests.remote import hostile as h
from tests.remote.serving import provider, remote_service
from tests.serving import FakeService, metric, raw_inference, sse_events, wait_until

ASK: dict[str, Any] = {"model": "cloud", "prompt": "hi", "parameters": {"max_tokens": 8}}
BOUNDS = Bounds(answer_bytes=8 << 20)


@pytest.fixture(scope="module")
def upstream() -> Iterator[h.Hostile]:
    with h.hostile() as running:
        yield running


@pytest.fixture(scope="module")
def shared(upstream: h.Hostile) -> Iterator[FakeService]:
    remote = provider(upstream.url, timeout=0.5)
    with remote_service(remote, bounds=BOUNDS, max_concurrency=2) as service:
        yield service


@pytest.fixture(scope="module")
def num_tasks(shared: FakeService) -> int:
    """Of the server's event loop while nobody is served."""
    return shared.run(count_tasks())


@pytest.fixture
def service(shared: FakeService, upstream: h.Hostile, num_tasks: int) -> Iterator[FakeService]:
    """With all breakers closed before, and nothing held after."""
    yield shared
    settle(shared, upstream, num_tasks)
    upstream.play(h.good)
    for address in cloud(shared).addresses.all:
        address.breaker.succeed()
    assert shared.post(ASK).json() == {"generated_text": "Hello"}, "and then all is well"
    settle(shared, upstream, num_tasks)


async def count_tasks() -> int:
    return len(asyncio.all_tasks())


def cloud(service: FakeService) -> Any:
    return service.gateway.remotes.model(service.config.names["cloud"])


def settle(service: FakeService, upstream: h.Hostile, num_tasks: int) -> None:
    """Until nobody is served, and then nothing may be held."""
    model = cloud(service)
    wait_until(lambda: service.gateway.num_active == 0, "the gateway to be idle")
    assert (model.num_active, model.num_waiting) == (0, 0)
    assert [address.num_active for address in model.addresses.all] == [0]
    model._slots.check_integrity()
    assert model._slots._num_free == service.config.names["cloud"].max_concurrency
    assert not model._opening
    assert not model._answers
    wait_until(lambda: upstream.num_running == 0, "the provider's side to be told")
    # Connections that can be used again are kept, and no other.
    assert not model._link._lane_of
    lanes = model._link._lanes
    assert [lane.num_active for lane in lanes] == [0] * len(lanes)
    pools = [lane.client._transport._pool for lane in lanes]
    assert not any(pool._requests for pool in pools)
    assert all(kept.is_idle() for pool in pools for kept in pool.connections)
    num_kept = sum(len(pool.connections) for pool in pools)
    wait_until(lambda: num_kept == upstream.num_open, "closed ones to be closed")

    wait_until(lambda: service.run(count_tasks()) == num_tasks, "tasks to end")


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


# -- before the first part: a status -------------------------------------------------------------

JSON_ERROR = {"error": {"message": "no such thing", "type": "t", "param": "model"}}
LONG = b"x" * (1 << 20)


async def closes(exchange: h.Exchange) -> None:
    exchange.writer.close()


async def resets(exchange: h.Exchange) -> None:
    exchange.reset()


async def speaks_no_http(exchange: h.Exchange) -> None:
    await exchange.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    exchange.writer.close()


async def sends_100_mb_line(exchange: h.Exchange) -> None:
    await exchange.send(h.HEAD)
    await exchange.chunk(b"data: ")
    for _ in range(100):
        await exchange.chunk(LONG)


async def sends_endless_headers(exchange: h.Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    for _ in range(100):
        await exchange.send(b"x-filler: " + LONG + b"\r\n")


async def sends_endless_comments(exchange: h.Exchange) -> None:
    await exchange.send(h.HEAD)
    while not exchange.writer.transport.is_closing():
        await exchange.chunk(b": nothing yet\n\n")
        await asyncio.sleep(0.01)


OUTCOMES: list[tuple[str, h.Script, int, str, str, int]] = [
    # name, script, our status, our code, words of the message, attempts
    ("closes", closes, 502, "provider_unreachable", "closed the connection", 3),
    ("resets", resets, 502, "provider_unreachable", "closed the connection", 3),
    ("no http", speaks_no_http, 502, "provider_unreachable", "closed the connection", 3),
    ("hangs before headers", h.hangs_at_once, 504, "provider_timeout", "within 0.5 s", 1),
    ("hangs after headers", h.hangs(), 504, "provider_timeout", "within 0.5 s", 1),
    ("hangs after a role", h.hangs(h.delta("")), 504, "provider_timeout", "within 0.5 s", 1),
    ("only comments", sends_endless_comments, 504, "provider_timeout", "within 0.5 s", 1),
    ("500", h.error(500, "oh"), 502, "provider_error", "status 500: oh", 3),
    ("503 page", h.answers(503, b"<html>"), 502, "provider_error", "status 503", 3),
    ("408", h.error(408, "slow"), 504, "provider_timeout", "out of time (408): slow", 3),
    ("409", h.error(409, "busy"), 502, "provider_error", "status 409: busy", 3),
    ("429", h.error(429, "quota"), 429, "provider_limit", "limits (429): quota", 3),
    ("no more 5xx", h.error(500, "oh", x_should_retry="false"), 502, "provider_error", "500", 1),
    ("400", h.error(400, "bad seed"), 400, "invalid_request", "refuses the request (400): bad", 1),
    ("422", h.answers(422, {"detail": "bad"}), 400, "invalid_request", "(422): bad", 1),
    ("404", h.answers(404, JSON_ERROR), 502, "provider_model",
     "no such model, or no /chat/completions at all (404): no such thing", 1),
    ("413", h.error(413, "huge"), 413, "too_large", "too large: huge", 1),
    ("402", h.error(402, "pay"), 429, "provider_limit", "limits (402): pay", 1),
    ("401", h.error(401, "who?"), 502, "provider_auth", "(401): who?; set api_key_env", 1),
    ("403", h.error(403, "no"), 502, "provider_auth", "refuses the key (403): no", 1),
    (
        "redirect",
        h.answers(302, b"", location="https://elsewhere.example/"),
        502,
        "provider_error",
        "redirects to https://elsewhere.example/; set remote",
        1,
    ),
    ("204", h.answers(204, b""), 502, "provider_error", "status 204", 1),
    ("html", h.answers(200, b"<html>", content_type="text/html"), 502, "provider_error",
     "answered with text/html instead of text/event-stream", 3),
    ("whole json", h.answers(200, {"choices": []}), 502, "provider_error", "application/json", 3),
    ("gzip", h.answers(200, h.WHOLE, content_type="text/event-stream", content_encoding="gzip"),
     502, "provider_error", "compressed", 3),
    ("not json", h.streams(b"data: {nonsense\n\n"), 502, "provider_error", "cannot be read", 3),
    ("not utf-8", h.streams(h.delta("?").replace(b"?", b"\xff")), 502, "provider_error",
     "cannot be read", 3),
    ("wrong types", h.streams(h.event({"choices": 7})), 502, "provider_error", "cannot be read", 3),
    ("nothing", h.streams(), 502, "provider_error", "cut its answer off", 3),
    ("only done", h.streams(h.DONE), 502, "provider_error", "cut its answer off", 3),
    ("cut event", h.cuts(h.delta("Hel")[:-9]), 502, "provider_error", "cut its answer off", 3),
    ("100 MB line", sends_100_mb_line, 502, "provider_error", "too long", 3),
    ("headers", sends_endless_headers, 502, "provider_unreachable", "closed the connection", 3),
    (
        "error event", h.streams(h.event({"error": {"message": "no", "code": 503}})),
        502, "provider_error", "status 503: no", 3,
    ),
    (
        "limit as an event",
        h.streams(h.event({"error": {"message": "no", "type": "rate_limit_error"}})),
        429, "provider_limit", "limits (429): no", 3,
    ),
    ("other choice", h.streams(h.event({"choices": [{"index": 1, "delta": {"content": "x"}}]})),
     502, "provider_error", "choice 1", 3),
    ("strange reason", h.streams(h.finish("content_filter")), 502, "provider_error",
     "'content_filter'", 3),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "status", "code", "words", "num_attempts"),
    [outcome[1:] for outcome in OUTCOMES],
    ids=[outcome[0] for outcome in OUTCOMES],
)
@pytest.mark.parametrize("stream", [False, True], ids=["folded", "streamed"])
def test_a_failure_before_the_first_part_is_a_status(
    service: FakeService,
    upstream: h.Hostile,
    script: h.Script,
    status: int,
    code: str,
    words: str,
    num_attempts: int,
    stream: bool,
) -> None:
    upstream.play(script)
    response = service.post({**ASK, "stream": stream})
    assert response.status_code == status, response.text
    error = error_of(response)
    assert error["code"] == code
    assert words in error["message"]
    assert error["message"].startswith("model 'cloud': ")
    assert len(upstream.requests) == num_attempts
    assert ("retry-after" in response.headers) == (status == 429)


def test_nobody_listens(service: FakeService, upstream: h.Hostile) -> None:
    with remote_service(provider("http://127.0.0.1:1/v1")) as other:
        response = other.post(ASK)
        assert response.status_code == 502
        error = error_of(response)
        assert error["code"] == "provider_unreachable"
        assert "127.0.0.1:1 cannot be reached: Connection refused" in error["message"]
        asked = other.metric("llmserve_remote_attempts_total", outcome="provider_unreachable")
        assert asked == 3


def test_a_connection_that_is_not_taken() -> None:
    """With a full queue Linux answers no one, as a firewall does."""
    with socket.socket() as deaf, contextlib.ExitStack() as waiting:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        for _ in range(4):
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        bounds = Bounds(connect_s=0.2)
        with remote_service(provider(f"http://127.0.0.1:{port}/v1"), bounds=bounds) as service:
            error = error_of(service.post(ASK))
    assert error["code"] == "provider_unreachable"
    assert "cannot be reached: no connection in time" in error["message"]


def test_a_name_that_nobody_knows() -> None:
    with remote_service(provider("https://nobody.invalid/v1")) as service:
        message = error_of(service.post(ASK))["message"]
        assert "nobody.invalid cannot be reached: " in message
        assert "ame" in message.partition("reached: ")[2], "the resolver's words"


# -- what is tried again, and works then -----------------------------------------------------------


@pytest.mark.parametrize("first", [h.error(500, "oh"), closes, h.streams(b"data: {\n\n")])
def test_a_failure_and_then_an_answer(
    service: FakeService, upstream: h.Hostile, first: h.Script
) -> None:
    upstream.play(first, first, h.good)
    assert service.post(ASK).json() == {"generated_text": "Hello"}
    assert len(upstream.requests) == 3


def test_what_the_provider_asks_for_is_waited(upstream: h.Hostile) -> None:
    retry = Retry(attempts=2, max_wait=Duration(5))
    with remote_service(provider(upstream.url, retry=retry)) as service:
        upstream.play(h.error(429, "quota", retry_after="0.3"), h.good)
        begin_s = time.monotonic()
        assert service.post(ASK).status_code == 200
        assert time.monotonic() - begin_s >= 0.3


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"retry_after": "77"}, "77"),
        ({"retry_after": "76.5"}, "77"),
        ({"retry_after": "-3"}, "1"),
        ({"retry_after": "soon"}, "1"),
        ({"retry_after": "1e99"}, "86400"),
        ({"retry_after": "nan"}, "1"),
        ({"retry_after_ms": "76100"}, "77"),
        ({}, "1"),
    ],
)
def test_a_429_says_when_to_come_again(
    service: FakeService, upstream: h.Hostile, header: dict[str, str], told: str
) -> None:
    upstream.play(h.error(429, "quota", **header))
    response = service.post(ASK)
    assert response.status_code == 429
    assert response.headers["retry-after"] == told
    openai = service.post(
        {"model": "cloud", "messages": [{"role": "user", "content": "hi"}]}, "/v1/chat/completions"
    )
    assert openai.headers["retry-after"] == told
    assert error_of(openai)["code"] == "rate_limit_exceeded"


def test_a_429_with_a_date(service: FakeService, upstream: h.Hostile) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    upstream.play(h.error(429, "quota", retry_after=date))
    assert 50 < int(service.post(ASK).headers["retry-after"]) <= 100


# -- after the first part: an event of an error, never half an answer ------------------------------

LATE: list[tuple[str, h.Script, str, str]] = [
    ("mid-event", h.cuts(h.delta("Hel"), h.delta("lo")[:-9]), "provider_error", "cut its answer"),
    (
        "mid-utf-8",
        h.cuts(h.delta("Hel"), 'data: {"choices":[{"delta":{"content":"é'.encode()[:-1]),
        "provider_error",
        "cut its answer",
    ),
    ("no finish", h.streams(h.delta("Hel")), "provider_error", "cut its answer"),
    ("done, no finish", h.streams(h.delta("Hel"), h.DONE), "provider_error", "cut its answer"),
    ("hangs", h.hangs(h.delta("Hel")), "provider_timeout", "sent nothing for 0.5 s"),
    ("not json", h.streams(h.delta("Hel"), b"data: {\n\n"), "provider_error", "cannot be read"),
    (
        "error event",
        h.streams(h.delta("Hel"), h.event({"error": {"message": "overload"}})),
        "provider_error",
        "ended the answer with an error: overload",
    ),
    (
        "more after the finish",
        h.streams(h.delta("Hel"), h.finish(), h.delta("lo"), h.DONE),
        "provider_error",
        "more after the end",
    ),
]


@pytest.mark.parametrize(
    ("script", "code", "words"), [late[1:] for late in LATE], ids=[late[0] for late in LATE]
)
def test_a_failure_after_the_first_part_ends_the_stream_with_an_error(
    service: FakeService, upstream: h.Hostile, script: h.Script, code: str, words: str
) -> None:
    upstream.play(script)
    response = service.post({**ASK, "stream": True})
    assert response.status_code == 200
    first, last = sse_events(response.text)
    assert first == {"delta": "Hel"}
    assert last["error"]["code"] == code
    assert words in last["error"]["message"]
    assert len(upstream.requests) == 1, "never tried again"

    upstream.play(script)
    response = service.post(ASK)
    assert response.status_code in (502, 504), "folded, it is no answer"
    assert words in error_of(response)["message"]
    assert len(upstream.requests) == 1


def test_a_line_without_end_is_not_buffered(service: FakeService, upstream: h.Hostile) -> None:
    num_sent = 0

    async def script(exchange: h.Exchange) -> None:
        nonlocal num_sent
        await exchange.send(h.HEAD)
        while num_sent < 100:
            await exchange.chunk(LONG)
            num_sent += 1

    upstream.play(script)
    assert service.post(ASK).status_code == 502
    wait_until(lambda: upstream.num_running == 0)
    assert num_sent < 30, "the rest of 3 x 100 MB was never taken"


async def never_ends(exchange: h.Exchange) -> None:
    await exchange.send(h.HEAD)
    with_text = h.delta("x" * 100_000)
    while not exchange.writer.transport.is_closing():
        await exchange.chunk(with_text)


def test_an_endless_answer_is_bounded(service: FakeService, upstream: h.Hostile) -> None:
    upstream.play(never_ends)
    response = service.post(ASK)
    assert response.status_code == 502
    assert f"sent more than {BOUNDS.answer_bytes} bytes" in error_of(response)["message"]


def test_an_answer_that_drips_for_ever_is_bounded(upstream: h.Hostile) -> None:
    async def drips(exchange: h.Exchange) -> None:
        await exchange.send(h.HEAD)
        while not exchange.writer.transport.is_closing():
            await exchange.chunk(h.delta("x"))
            await asyncio.sleep(0.01)

    upstream.play(drips)
    with remote_service(provider(upstream.url), bounds=Bounds(answer_s=0.3)) as service:
        *deltas, last = sse_events(service.post({**ASK, "stream": True}).text)
        assert len(deltas) > 1
        assert last["error"]["code"] == "provider_timeout"
        assert "has not ended its answer after 0.3 s" in last["error"]["message"]


# -- what is odd and still an answer -------------------------------------------------------------

ODD: list[tuple[str, h.Script]] = [
    ("duplicate finish", h.streams(h.delta("Hello"), h.finish(), h.finish("length"), h.DONE)),
    ("no done", h.streams(h.delta("Hello"), h.finish())),
    ("after done", h.streams(h.delta("Hello") + h.finish() + h.DONE + h.delta("!"), b"junk")),
    ("nulls", h.streams(
        h.event({"choices": [{"delta": {"content": None, "tool_calls": None}, "logprobs": None}],
                 "usage": None, "error": None}),
        h.delta("Hello"), h.finish(), h.event({"choices": None, "usage": {}}), h.DONE)),
    ("byte by byte", h.streams(*(bytes([byte]) for byte in h.WHOLE))),
    ("crlf", h.streams(h.WHOLE.replace(b"\n", b"\r\n"))),
    ("hangs after done", h.hangs(h.WHOLE)),
    ("cut after done", h.cuts(h.WHOLE)),
    ("eos", h.streams(h.delta("Hello"), h.finish("eos"), h.DONE)),
]  # fmt: skip


@pytest.mark.parametrize("script", [odd[1] for odd in ODD], ids=[odd[0] for odd in ODD])
def test_what_is_odd_and_still_an_answer(
    service: FakeService, upstream: h.Hostile, script: h.Script
) -> None:
    upstream.play(script)
    response = service.post({**ASK, "stream": True})
    *deltas, last = sse_events(response.text)
    assert "".join(each["delta"] for each in deltas) == "Hello"
    assert last["details"]["finish_reason"] == "stop"
    assert len(upstream.requests) == 1


def test_connections_are_used_again(service: FakeService, upstream: h.Hostile) -> None:
    upstream.play(h.good)
    service.post(ASK)
    before = upstream.num_connections
    for _ in range(5):
        assert service.post(ASK).status_code == 200
    assert upstream.num_connections == before


# -- the breaker ---------------------------------------------------------------------------------


def test_an_outage_costs_nothing_once_it_is_known(
    service: FakeService, upstream: h.Hostile
) -> None:
    model = cloud(service)
    upstream.play(h.error(500, "down"))
    assert NUM_FAILURES == 3
    service.post(ASK)  # three attempts
    upstream.play(h.good)
    response = service.post(ASK)
    assert response.status_code == 502
    assert upstream.requests == [], "not asked"
    assert int(response.headers["retry-after"]) in (4, 5)
    message = error_of(response)["message"]
    assert "status 500; after several failures" in message, "without what was said to somebody else"

    (status,) = [m for m in service.get("/models").json()["models"] if m["name"] == "cloud"]
    assert status["state"] == "open"
    assert status["error"].endswith("answered with status 500")
    (address,) = status["addresses"]
    assert (address["url"], address["state"], address["active"]) == (upstream.url, "open", 0)
    breaker = "llmserve_remote_breaker"
    assert metric_of(service, breaker) == 2

    address = model.addresses.all[0]
    address.breaker._open_until_s = 0  # its pause is over
    (status,) = [m for m in service.get("/models").json()["models"] if m["name"] == "cloud"]
    assert status["state"] == "half-open"
    assert metric_of(service, breaker) == 1
    assert service.post(ASK).status_code == 200
    assert metric_of(service, breaker) == 0
    (status,) = [m for m in service.get("/models").json()["models"] if m["name"] == "cloud"]
    assert (status["state"], status["error"]) == ("ready", None)


def metric_of(service: FakeService, name: str) -> float:
    return metric(service.get("/metrics").text, name, model="cloud")


def test_refusals_do_not_open_it(service: FakeService, upstream: h.Hostile) -> None:
    for script in (h.error(400, "no"), h.error(401, "no"), h.error(429, "no")):
        upstream.play(script)
        for _ in range(NUM_FAILURES):
            service.post(ASK)
    assert cloud(service).state == "ready"


# -- all of it at the same time ------------------------------------------------------------------


def test_nothing_is_left_of_a_storm(service: FakeService, upstream: h.Hostile) -> None:
    """Every trick at once, while clients leave at any moment; then the fixture counts."""
    scripts = [script for _, script, *_ in OUTCOMES if script is not sends_100_mb_line]
    scripts += [script for _, script, *_ in LATE] + [script for _, script in ODD]
    random.seed(5)
    upstream.play(*random.choices(scripts, k=300), h.good)

    def one(number: int) -> None:
        for address in cloud(service).addresses.all:
            address.breaker.succeed()  # from another thread, which is as good as a success
        body = {**ASK, "stream": number % 2 == 0}
        if number % 3:
            service.post(body)
            return
        with service.connect(raw_inference(body)) as connection:
            connection.settimeout(random.uniform(0.001, 0.2))
            with contextlib.suppress(TimeoutError):
                connection.recv(65536)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(120)))
    outcomes = service.get("/metrics").text
    assert 'outcome="disconnected"' in outcomes
    assert 'outcome="stop"' in outcomes
