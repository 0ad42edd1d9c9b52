"""What a remote model does beyond one answer: cancel, limits, several addresses, ends."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmserve.config.provider import Retry
from llmserve.config.units import Duration
from llmserve.core import (
    EventStream,
    FinishReason,
    Message,
    Queued,
    Request,
    Started,
    Tool,
    ToolCall,
    ToolUse,
    Usage,
)
from llmserve.remote.client import LANE_SIZE
from llmserve.wire.folding import Folded
from tests.remote import hostile as h
from tests.remote.serving import KEY, KEY_ENV, provider, remote_service
from tests.serving import (
    TIMEOUT_S,
    fake_service,
    raw_inference,
    sse_events,
    wait_until,
)

ASK: dict[str, Any] = {"model": "cloud", "prompt": "hi"}


@pytest.fixture
def upstream() -> Iterator[h.Hostile]:
    with h.hostile() as running:
        yield running


class Gate:
    """Holds scripts until it is opened, from any thread."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    def open(self, upstream: h.Hostile) -> None:
        assert upstream.loop
        upstream.loop.call_soon_threadsafe(self.opened.set)

    def script(self, *first: bytes) -> h.Script:
        """`first` at once, the rest of a whole answer when the gate is open."""

        async def run(exchange: h.Exchange) -> None:
            await exchange.send(h.HEAD)
            for part in first:
                await exchange.chunk(part)
            await self.opened.wait()
            await exchange.chunk(h.WHOLE)
            await exchange.end()

        return run


def read_until(connection: socket.socket, words: bytes) -> bytes:
    data = b""
    while words not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    return data


# -- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/inference", "/v1/chat/completions"])
def test_each_part_is_forwarded_when_it_arrives(upstream: h.Hostile, path: str) -> None:
    gate = Gate()
    upstream.play(gate.script(h.delta("first")))
    body = {**ASK, "stream": True}
    if path != "/inference":
        body = {"model": "cloud", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with remote_service(provider(upstream.url)) as service:
        with service.connect(raw_inference(body, path)) as connection:
            read_until(connection, b"first")  # while the provider waits
            gate.open(upstream)
            read_until(connection, b"lo")
        wait_until(lambda: service.gateway.num_active == 0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "script",
    [h.hangs_at_once, h.hangs(), h.hangs(b": comment\n\n"), h.hangs(h.delta("Hel"))],
    ids=["before the head", "before the body", "before a part", "after a part"],
)
def test_a_client_that_goes_away_closes_the_request_upstream(
    upstream: h.Hostile, stream: bool, script: h.Script, request: pytest.FixtureRequest
) -> None:
    upstream.play(script)
    with remote_service(provider(upstream.url)) as service:
        connection = service.connect(raw_inference({**ASK, "stream": stream}))
        wait_until(lambda: upstream.num_running == 1)
        if stream and "after a part" in request.node.name:
            read_until(connection, b"Hel")
        connection.close()
        wait_until(lambda: upstream.num_open == 0, "the provider's connection to be closed")
        wait_until(lambda: service.gateway.num_active == 0)
        assert service.metric("llmserve_requests_total", outcome="disconnected") == 1
        address = service.gateway.remotes.model(service.config.names["cloud"]).addresses.all[0]
        assert (address.num_active, address.error, address.state) == (0, None, "closed")


def test_a_client_that_goes_away_during_a_pause(upstream: h.Hostile) -> None:
    upstream.play(h.error(429, "later", retry_after="30"))
    patient = provider(upstream.url, retry=Retry(max_wait=Duration(60)), timeout=90)
    with remote_service(patient) as service:
        connection = service.connect(raw_inference(ASK))
        wait_until(lambda: upstream.requests and upstream.num_running == 0)
        connection.close()
        wait_until(lambda: service.gateway.num_active == 0)


# -- limits --------------------------------------------------------------------------------------


def test_requests_beyond_max_concurrency_wait_and_beyond_max_queue_are_refused(
    upstream: h.Hostile,
) -> None:
    gate = Gate()
    upstream.play(gate.script())
    with (
        remote_service(provider(upstream.url), max_concurrency=2, max_queue=1) as service,
        ThreadPoolExecutor() as pool,
    ):
        model = service.gateway.remotes.model(service.config.names["cloud"])
        running = [pool.submit(service.post, ASK) for _ in range(3)]
        wait_until(lambda: upstream.num_running == 2 and model.num_waiting == 1)
        (status,) = [m for m in service.get("/models").json()["models"] if m["name"] == "cloud"]
        assert (status["slots"], status["active"], status["addresses"][0]["active"]) == (2, 3, 2)
        metrics = service.get("/metrics").text
        assert 'llmserve_running_requests{model="cloud"} 2.0' in metrics
        assert 'llmserve_queue_depth{model="cloud"} 1.0' in metrics
        refused = service.post(ASK)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "answers 2 requests at a time and 1 more" in refused.json()["error"]["message"]
        assert len(upstream.requests) == 2
        gate.open(upstream)
        assert [each.result().status_code for each in running] == [200] * 3


def test_interactive_requests_get_the_next_slot(upstream: h.Hostile) -> None:
    gate = Gate()
    upstream.play(gate.script())
    with (
        remote_service(provider(upstream.url), max_concurrency=1) as service,
        ThreadPoolExecutor() as pool,
    ):
        model = service.gateway.remotes.model(service.config.names["cloud"])
        asks = [{**ASK, "prompt": "first"}, {**ASK, "prompt": "late", "priority": "batch"}, ASK]
        running = []
        for number, ask in enumerate(asks):
            running.append(pool.submit(service.post, ask))
            wait_until(functools.partial(waiting, model, upstream, number))
        gate.open(upstream)
        assert [each.result().status_code for each in running] == [200] * 3
    prompts = [request.body["messages"][0]["content"] for request in upstream.requests]
    assert prompts == ["first", "hi", "late"]


def waiting(model: Any, upstream: h.Hostile, count: int) -> bool:
    return model.num_waiting == count and upstream.num_running == 1


def test_what_only_an_engine_here_can_promise_is_refused(upstream: h.Hostile) -> None:
    with remote_service(provider(upstream.url)) as service:
        response = service.post({**ASK, "deterministic": True})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "deterministic")


def test_waiting_for_a_slot_ends_with_the_timeout(upstream: h.Hostile) -> None:
    gate = Gate()
    upstream.play(gate.script(h.delta("Hel")))
    with remote_service(provider(upstream.url, timeout=0.3), max_concurrency=1) as service:
        model = service.gateway.remotes.model(service.config.names["cloud"])
        service.run(model.link()).silence_s = TIMEOUT_S  # so that the first one goes on
        with service.connect(raw_inference({**ASK, "stream": True})) as connection:
            read_until(connection, b"Hel")
            late = service.post(ASK)
            assert (late.status_code, late.json()["error"]["code"]) == (504, "provider_timeout")
            assert "no answer began within 0.3 s" in late.json()["error"]["message"]
            assert model.num_waiting == 0
            gate.open(upstream)
            read_until(connection, b"HelHello")
        wait_until(lambda: service.gateway.num_active == 0)


def test_many_requests_share_few_clients_that_are_used_again(upstream: h.Hostile) -> None:
    gate = Gate()
    upstream.play(gate.script())
    with remote_service(provider(upstream.url)) as service, ThreadPoolExecutor(40) as pool:
        link = service.run(service.gateway.remotes.model(service.config.names["cloud"]).link())
        running = [pool.submit(service.post, ASK) for _ in range(2 * LANE_SIZE + 1)]
        wait_until(lambda: upstream.num_running == len(running))
        assert [lane.num_active for lane in link._lanes] == [LANE_SIZE, LANE_SIZE, 1]
        gate.open(upstream)
        assert {each.result().status_code for each in running} == {200}
        assert [lane.num_active for lane in link._lanes] == [0, 0, 0]
        upstream.play(h.good)
        num_connections = upstream.num_connections
        assert service.post(ASK).status_code == 200
        assert upstream.num_connections == num_connections


# -- several addresses ---------------------------------------------------------------------------


def running(one: h.Hostile, two: h.Hostile, counts: tuple[int, int]) -> bool:
    return (one.num_running, two.num_running) == counts


def test_the_least_busy_address_is_asked() -> None:
    gates = Gate(), Gate()
    with h.hostile() as one, h.hostile() as two:
        for upstream, gate in zip((one, two), gates, strict=True):
            upstream.play(gate.script())
        with remote_service(provider(one.url, two.url)) as service, ThreadPoolExecutor() as pool:
            answers = []
            for counts in ((1, 0), (1, 1), (2, 1), (2, 2)):
                answers.append(pool.submit(service.post, ASK))
                wait_until(functools.partial(running, one, two, counts))
            for upstream, gate in zip((one, two), gates, strict=True):
                gate.open(upstream)
            assert [answer.result().status_code for answer in answers] == [200] * 4


def test_another_address_is_asked_at_once_and_the_broken_one_spared() -> None:
    slow = Retry(attempts=2, max_wait=Duration(60))
    with h.hostile() as broken, h.hostile() as good:
        broken.play(h.error(503, "down", retry_after="60"))
        good.play(h.good)
        with remote_service(provider(broken.url, good.url, retry=slow)) as service:
            for _ in range(5):
                assert service.post(ASK).status_code == 200
            assert len(broken.requests) == 3, "until its breaker opened"
            (status,) = [m for m in service.get("/models").json()["models"] if m["name"] == "cloud"]
            assert status["state"] == "ready"
            assert [address["state"] for address in status["addresses"]] == ["open", "closed"]


# -- ends ----------------------------------------------------------------------------------------


def test_the_end_of_the_server_ends_streams_as_cancelled_and_refuses_the_rest(
    upstream: h.Hostile,
) -> None:
    upstream.play(h.hangs(h.delta("Hel")), h.hangs_at_once)
    with remote_service(provider(upstream.url)) as service, ThreadPoolExecutor() as pool:
        streaming = pool.submit(service.post, {**ASK, "stream": True})
        wait_until(lambda: upstream.num_running == 1)
        waiting = pool.submit(service.post, ASK)
        wait_until(lambda: upstream.num_running == 2)
        service.run(service.gateway.close())
        first, last = sse_events(streaming.result().text)
        assert first == {"delta": "Hel"}
        assert last["details"]["finish_reason"] == "cancelled"
        refused = waiting.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        wait_until(lambda: upstream.num_open == 0)


RELOADED = """
[models.fake]
path = "none.gguf"
aliases = ["default"]
[models.cloud]
remote = "{url}"
remote_model = "{model}"
"""


def test_a_reload_lets_running_requests_finish(upstream: h.Hostile, tmp_path: Path) -> None:
    (tmp_path / "none.gguf").touch()
    path = tmp_path / "models.toml"
    path.write_text(RELOADED.format(url=upstream.url, model="old"))
    gate = Gate()
    upstream.play(gate.script(h.delta("Hel")), h.good)
    with fake_service(config_path=path) as service, ThreadPoolExecutor() as pool:
        running = pool.submit(service.post, ASK)
        wait_until(lambda: upstream.num_running == 1)
        before = service.gateway.remotes.model(service.config.names["cloud"])
        path.write_text(RELOADED.format(url=upstream.url, model="new"))
        with service.client() as client:
            assert client.post("/models/reload").json()["changed"] == ["cloud"]
        assert service.post(ASK).json() == {"generated_text": "Hello"}
        gate.open(upstream)
        assert running.result().json() == {"generated_text": "HelHello"}
        assert [each.body["model"] for each in upstream.requests] == ["old", "new"]
        wait_until(lambda: before._link is None, "the old connection to be closed")
        assert 'llmserve_remote_breaker{model="cloud"' in service.get("/metrics").text
        path.write_text(RELOADED.partition("[models.cloud]")[0])
        with service.client() as client:
            client.post("/models/reload")
        assert 'llmserve_remote_breaker{model="cloud"' not in service.get("/metrics").text
        wait_until(lambda: upstream.num_open == 0)


# -- what only a local model can do --------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}]}),
        ("/models/cloud/load", {}),
        ("/models/cloud/unload", {}),
    ],
)
def test_what_needs_a_model_here_says_so(path: str, body: dict[str, Any]) -> None:
    with remote_service(provider("http://127.0.0.1:1/v1")) as service:
        response = service.post({**body, "model": "cloud"} if body else None, path)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "model"
        assert "remote provider, which cannot do this" in error["message"]


def test_a_remote_default_is_ready_without_being_asked(upstream: h.Hostile) -> None:
    upstream.play(h.good)
    models = {"cloud": {"remote": provider(upstream.url), "aliases": ("default",)}}
    with fake_service(models=models) as service:
        assert service.get("/ready").status_code == 200
        assert upstream.requests == []
        assert service.post({"prompt": "hi"}).json() == {"generated_text": "Hello"}


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, f"the environment variable {KEY_ENV} is not set"),
        ({KEY_ENV: ""}, "is not set"),
        ({KEY_ENV: "  \n"}, "is not set"),
        ({KEY_ENV: f"{KEY}\r\nx: y"}, "has characters that no key has"),
        ({KEY_ENV: f"{KEY} é"}, "has characters that no key has"),
    ],
)
def test_a_key_that_cannot_be_sent(
    upstream: h.Hostile, environment: dict[str, str], words: str
) -> None:
    upstream.play(h.good)
    remote = provider(upstream.url, api_key_env=KEY_ENV)
    with remote_service(remote, environment=environment) as service:
        response = service.post(ASK)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (502, "provider_auth")
        assert words in error["message"]
        assert KEY not in response.text
        assert upstream.requests == []


def test_a_key_with_a_line_break_at_its_end_is_taken_without(upstream: h.Hostile) -> None:
    upstream.play(h.good)
    remote = provider(upstream.url, api_key_env=KEY_ENV)
    with remote_service(remote, environment={KEY_ENV: KEY + "\n"}) as service:
        assert service.post(ASK).status_code == 200
        assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_what_is_sent(upstream: h.Hostile) -> None:
    upstream.play(h.good)
    remote = provider(upstream.url, headers=(("x-team", "a"),), remote_model="big")
    with remote_service(remote) as service:
        service.post(ASK)
    (request,) = upstream.requests
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.headers["x-team"] == "a"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers
    assert request.body == {
        "model": "big",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 1.0,
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_many_at_once_and_nothing_is_mixed_up(upstream: h.Hostile) -> None:
    async def echo(exchange: h.Exchange) -> None:
        text = exchange.request.body["messages"][-1]["content"]
        await exchange.send(h.HEAD)
        for character in text:
            await exchange.chunk(h.delta(character))
        await exchange.chunk(h.finish() + h.DONE)
        await exchange.end()

    upstream.play(echo)
    texts = [f"text number {i}" for i in range(64)]
    with remote_service(provider(upstream.url)) as service, ThreadPoolExecutor(32) as pool:
        asks = [{**ASK, "prompt": text, "stream": i % 2 == 0} for i, text in enumerate(texts)]
        for text, answer in zip(texts, pool.map(service.post, asks), strict=True):
            body = sse_events(answer.text)[-1] if "delta" in answer.text else answer.json()
            assert body["generated_text"] == text


# -- tools and thoughts, on the wire -------------------------------------------------------------

OPENAI_CALL = (
    h.event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    + h.event({"choices": [{"delta": {"tool_calls": [
        {"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]}}]})
    + h.event({"choices": [{"delta": {"tool_calls": [
        {"index": 0, "function": {"arguments": '{"a": 2}'}}]}}]})
    + h.finish("tool_calls") + h.usage(5, 2) + h.DONE
)  # fmt: skip
ANTHROPIC_CALL = b"".join(
    h.event(body, str(body["type"]))
    for body in (
        {"type": "message_start", "message": {"usage": {"input_tokens": 5}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
        {"type": "content_block_delta", "index": 0,
         "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_start", "index": 1,
         "content_block": {"type": "tool_use", "id": "c1", "name": "add", "input": {}}},
        {"type": "content_block_delta", "index": 1,
         "delta": {"type": "input_json_delta", "partial_json": '{"a": 2}'}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"},
         "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "answer", "path", "header"),
    [
        ("openai", OPENAI_CALL, "/v1/chat/completions", "authorization"),
        ("anthropic", ANTHROPIC_CALL, "/v1/messages", "x-api-key"),
    ],
)
def test_tools_and_thoughts(
    upstream: h.Hostile, protocol: str, answer: bytes, path: str, header: str
) -> None:
    upstream.play(h.streams(*(bytes([byte]) for byte in answer)))
    request = Request(
        model="cloud",
        messages=(Message("user", "2+?"),),
        tool_use=ToolUse((Tool("add"),), "required"),
    )
    remote = provider(upstream.url, protocol=protocol, api_key_env=KEY_ENV)
    with remote_service(remote) as service:
        folded = service.run(fold(service.gateway.generate(request)))
    assert folded.reasoning == "hm"
    assert folded.tool_calls == [ToolCall("c1", "add", '{"a": 2}')]
    assert folded.finished.reason is FinishReason.TOOL_CALLS
    assert folded.finished.usage == Usage(5, 0, 2)
    (sent,) = upstream.requests
    assert sent.line == f"POST {path} HTTP/1.1"
    assert KEY in sent.headers[header]


async def fold(events: EventStream) -> Folded:
    async with contextlib.aclosing(events):
        started = await anext(events)
        assert isinstance(started, Started)
        folded = Folded(started)
        async for event in events:
            assert not isinstance(event, Started | Queued)
            folded.add(event)
    return folded
