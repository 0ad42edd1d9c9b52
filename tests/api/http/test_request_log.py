"""The line of a request: its facts, and no word of a prompt, an answer or a key."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.types import Receive, Scope, Send

from llmserve.api.http.request_log import RequestLog
from llmserve.core import EventStream, Request
from llmserve.engine.runtime import EmbeddingLimits
from llmserve.gateway import Gateway
from llmserve.telemetry import logs
from tests.api.openai.helpers import chat, completion
from tests.remote import hostile as h
from tests.remote.serving import provider, remote_service
from tests.serving import FakeService, fake_service, raw_inference, raw_request, wait_until

CANARY = "canary-71c3"
KEY = "sk-canary-key"
EMBEDDING = EmbeddingLimits(8, max_len=4096, max_batch=64, max_inputs=4, num_cells=4096)


class Log:
    """All lines of the process at debug, as the server writes them."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        """The lines of requests, without what is never twice the same."""
        found = [line for line in self.lines if line["logger"] == "llmserve.request"]
        return [
            {k: v for k, v in line.items() if k not in ("timestamp", "logger", "event")}
            for line in found
        ]

    def wait(self, count: int = 1) -> list[dict[str, Any]]:
        """The answer can be there before its line."""
        wait_until(lambda: len(self.requests()) >= count, "the line of a request")
        return self.requests()


@pytest.fixture
def log() -> Iterator[Log]:
    with _logged("json") as found:
        yield found


@contextmanager
def _logged(log_format: logs.LogFormat) -> Iterator[Log]:
    stream = io.StringIO()
    handler = logs.make_handler(stream, log_format)
    handler.addFilter(lambda record: record.threadName != "MainThread")  # the tests' own client
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield Log(stream)
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    with fake_service(
        answer=f"Oh, {CANARY}!", embedding=EMBEDDING, models={"fake": {"aliases": ("default", "f")}}
    ) as running:
        yield running


# -- facts ---------------------------------------------------------------------------------------


def test_a_generation(service: FakeService, log: Log) -> None:
    body = {"model": "f", "prompt": "hi", "mode": "completion", "parameters": {"max_tokens": 3}}
    response = service.post({**body, "details": True})
    details = response.json()["details"]
    (line,) = log.wait()
    assert (
        line.pop("total_s")
        >= line["ttft_s"]
        == pytest.approx(details["timings"]["ttft_s"], abs=1e-4)
    )
    assert line.pop("ttft_s") >= line.pop("queue_s") >= 0
    assert line == {
        "level": "info", "request_id": response.headers["x-request-id"], "method": "POST",
        "route": "/inference", "status": 200, "model": "f", "answered_by": "fake",
        "prompt_tokens": 2, "cached_tokens": 0, "generated_tokens": 3, "finish_reason": "length",
    }  # fmt: skip


def test_several_choices_are_one_line(service: FakeService, log: Log) -> None:
    service.post(completion(["hi", "you"], n=2), "/v1/completions")
    (line,) = log.wait()
    assert (line["choices"], line["generated_tokens"]) == (4, 16)
    assert line["finish_reason"] == "length"
    assert line["prompt_tokens"] == 2 * (2 + 3)


def test_embeddings(service: FakeService, log: Log) -> None:
    service.post({"input": ["one", "two"]}, "/v1/embeddings")
    (line,) = log.wait()
    assert (line["status"], line["answered_by"], line["prompt_tokens"]) == (200, "fake", 6)
    assert "finish_reason" not in line


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/inference", {"prompt": 1}, 400, "invalid_request"),
        ("/inference", {"prompt": "x", "model": "no"}, 404, "model_not_found"),
        ("/v1/chat/completions", chat(n=99), 400, "invalid_request"),
        ("/v1/completions", completion("x" * 5000), 400, "too_large"),
        ("/nowhere", {}, 404, "route_not_found"),
        ("/health", {}, 405, "method_not_allowed"),
    ],
)
def test_a_refusal_has_its_code(
    service: FakeService, log: Log, path: str, body: Any, status: int, code: str
) -> None:
    assert service.post(body, path).status_code == status
    (line,) = log.wait()
    assert (line["status"], line["error"], line["route"]) == (status, code, path)


def test_probes_are_told_at_debug(service: FakeService, log: Log) -> None:
    for path in ("/health", "/ready", "/metrics", "/models"):
        service.get(path)
    lines = log.wait(4)
    assert [line["level"] for line in lines] == ["debug", "debug", "debug", "info"]


def test_a_caller_that_leaves(log: Log) -> None:
    with fake_service(gated=True) as service:
        for stream in (False, True):
            body = {"prompt": "hi", "parameters": {"max_tokens": 100}, "stream": stream}
            with service.connect(raw_inference(body)):
                wait_until(service.runtime.decoding.is_set)
            wait_until(lambda: service.gateway.num_active == 0)
            service.step(3)
            service.wait_idle()
        first, second = log.wait(2)
    assert (first["status"], first["error"]) == (None, "disconnected")
    assert (second["status"], second["error"]) == (200, "disconnected")


def test_an_error_in_mid_stream(log: Log) -> None:
    with h.hostile() as upstream, remote_service(provider(upstream.url)) as service:
        upstream.play(h.streams(h.delta("Hel"), h.event({"error": {"message": CANARY}})))
        response = service.post({"model": "cloud", "prompt": "x", "stream": True})
        assert CANARY in response.text
        (line,) = log.wait()
        assert (line["status"], line["error"]) == (200, "provider_error")
        assert line["answered_by"] == "cloud"
    assert CANARY not in log.text


def test_every_line_that_a_request_causes_has_its_id(log: Log) -> None:
    with h.hostile() as upstream:
        remote = provider(upstream.url)
        with remote_service(remote, fallback=("fake",)) as service:
            upstream.play(h.error(500, CANARY))
            with service.client() as client:
                headers = {"x-request-id": "mine-1"}
                body = {"model": "cloud", "prompt": "x", "parameters": {"max_tokens": 1}}
                assert client.post("/inference", json=body, headers=headers).status_code == 200
            log.wait()
            found = [line for line in log.lines if line.get("request_id") == "mine-1"]
    events = " | ".join(line["event"] for line in found)
    for words in ("status 500; trying again", "is not asked for", "asking fake", "/inference 200"):
        assert words in events, events


def test_of_concurrent_requests_each_line_has_its_own(service: FakeService, log: Log) -> None:
    with service.client() as one, service.client() as other:
        one.post("/inference", json={"prompt": "x"}, headers={"x-request-id": "a"})
        other.post("/inference", json={"prompt": 1}, headers={"x-request-id": "b"})
        one.post("/inference", json={"prompt": 1}, headers={"x-request-id": "c"})
    lines = log.wait(3)
    assert [(line["request_id"], line["status"]) for line in lines] == [
        ("a", 200), ("b", 400), ("c", 400),
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["a\tb", "x" * 129, "é", "a b", ""])
def test_an_id_that_could_do_harm_is_replaced(service: FakeService, log: Log, given: str) -> None:
    data = raw_request("GET", "/models", headers=f"x-request-id: {given}\r\nConnection: close\r\n")
    with service.connect(data) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    (line,) = log.wait()
    assert line["request_id"].startswith("req_")
    assert line["request_id"].encode() in answer


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_paths_and_models_cannot_forge_lines(
    service: FakeService, log_format: logs.LogFormat
) -> None:
    with _logged(log_format) as log:
        service.post({"prompt": "x", "model": "a\n2026-01-01 [info] forged\x1b[2J" + "m" * 10**6})
        service.get("/v1/models/x%0A2026-01-01%20forged%1b[2J" + "p" * 8000)
        wait_until(lambda: log.text.count("llmserve.request") == 2)
    lines = log.text.splitlines()
    assert len([line for line in lines if "forged" in line]) == 2
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert "\x1b" not in log.text
    assert len(log.text) < 10_000


@pytest.mark.parametrize("state", [{}, {"grant": None}, {"grant": SimpleNamespace(name="ada")}])
def test_the_client_is_the_name_of_its_key(
    caplog: pytest.LogCaptureFixture, state: dict[str, Any]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"].update(state)
        await send({"type": "http.response.start", "status": 204})

    async def ask() -> None:
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "state": {}}
        await RequestLog(app, None, lambda path: False, log_prompts=False)(
            scope, AsyncMock(), AsyncMock()
        )

    caplog.set_level(logging.INFO)
    asyncio.run(ask())
    (record,) = caplog.records
    assert record.__dict__["fields"].get("client") == ("ada" if state.get("grant") else None)


# -- what is never logged ------------------------------------------------------------------------

FUNCTION = {"type": "function", "function": {"name": CANARY, "parameters": {"type": CANARY}}}
SAID = [{"role": "user", "content": CANARY}]
WRONG = [  # on every route that takes a body
    {CANARY: 1},
    {"model": 5, "prompt": CANARY, "messages": SAID, "input": CANARY},
    {"prompt": {"a": CANARY}, "messages": {"a": CANARY}, "input": {"a": CANARY}},
    {"prompt": CANARY, "messages": SAID, "input": CANARY, "content": CANARY, "stop": {"a": CANARY}},
]
BODIES: list[tuple[str, Any]] = [
    ("/inference", {"prompt": CANARY}),
    ("/inference", {"prompt": CANARY, "stream": True, "details": True}),
    ("/inference", {"messages": SAID, "parameters": {"stop": CANARY}}),
    ("/inference", {"prompt": CANARY, "system": CANARY, "mode": "completion"}),
    ("/inference", {"prompt": CANARY * 1000}),
    ("/inference", {"prompt": "x", "parameters": {"temperature": CANARY}}),
    ("/inference", {"prompt": "x", "response_format": {"type": CANARY}}),
    ("/inference", {"prompt": "x", "response_format": {"type": "regex", "regex": f"({CANARY}"}}),
    ("/inference", {"prompt": "x", "response_format": {"type": "grammar", "grammar": CANARY}}),
    ("/inference", {"prompt": "x", "response_format": {
        "type": "json_schema", "json_schema": {"schema": {"type": CANARY}}}}),
    ("/v1/chat/completions", chat(messages=SAID)),
    ("/v1/chat/completions", chat(messages=SAID, stream=True, n=2)),
    ("/v1/chat/completions", chat(messages=SAID, tools=[FUNCTION])),
    ("/v1/chat/completions", chat(messages=SAID, tool_choice={"type": CANARY})),
    ("/v1/chat/completions", chat(messages=SAID, functions=[{"name": CANARY}])),
    ("/v1/chat/completions", chat(messages=[{"role": CANARY, "content": CANARY}])),
    ("/v1/chat/completions", chat(messages=SAID, chat_template_kwargs={CANARY: CANARY})),
    ("/v1/completions", completion(CANARY, echo=True)),
    ("/v1/completions", completion(CANARY, stream=True, suffix=CANARY)),
    ("/v1/completions", completion([CANARY, CANARY * 1000])),
    ("/v1/responses", {"input": CANARY, "instructions": CANARY, "max_output_tokens": 4}),
    ("/v1/responses", {"input": CANARY, "stream": True, "max_output_tokens": 4}),
    ("/v1/responses", {"input": [{"type": CANARY}]}),
    ("/v1/responses", {"input": CANARY, "previous_response_id": CANARY}),
    ("/v1/embeddings", {"input": CANARY}),
    ("/v1/embeddings", {"input": CANARY * 1000}),
    ("/v1/embeddings", {"input": "x", "encoding_format": CANARY}),
    ("/tokenize", {"content": CANARY}),
    ("/detokenize", {"tokens": list(CANARY.encode())}),
    ("/apply-template", {"messages": SAID}),
]  # fmt: skip
ROUTES = sorted({path for path, _ in BODIES})


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_route_logs_prompts_answers_or_keys(
    service: FakeService, log_format: logs.LogFormat
) -> None:
    bodies = [*BODIES, *((path, body) for path in ROUTES for body in WRONG)]
    with _logged(log_format) as log, service.client() as client:
        client.headers |= {"authorization": f"Bearer {KEY}", "x-api-key": KEY}
        statuses = set()
        for path, body in bodies:
            statuses.add(client.post(f"{path}?key={KEY}&q={CANARY}", json=body).status_code)
        for path in ROUTES:
            response = client.post(path, content=f'{{"prompt": "{CANARY}", {CANARY}'.encode())
            assert response.status_code == 400
        for path in ("/tokenizer_info", "/models", f"/health?q={CANARY}", f"/nowhere?{CANARY}"):
            client.get(path)
        count = len(bodies) + len(ROUTES) + 4
        wait_until(lambda: log.text.count("llmserve.request") == count)
    assert statuses == {200, 400, 413}
    assert CANARY not in log.text
    assert KEY not in log.text


def test_nor_does_a_bug(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_down(self: Gateway, request: Request) -> EventStream:
        if request.seed:
            async for event in generate(self, request):
                yield event
                raise RuntimeError(CANARY)
        raise RuntimeError(CANARY)

    generate = Gateway.generate
    monkeypatch.setattr(Gateway, "generate", break_down)
    with fake_service() as service:
        service.num_expected_errors = 2  # one in mid-stream
        body: dict[str, Any] = {"prompt": CANARY, "parameters": {"max_tokens": 2}}
        assert service.post(body).status_code == 500
        body["parameters"]["seed"] = 1
        assert service.post({**body, "stream": True}).status_code == 200
        first, second = log.wait(2)
    assert (first["status"], first["error"]) == (500, "internal_error")
    assert (second["status"], second["error"]) == (200, "internal_error")
    told = [line for line in log.lines if "exception" in line]
    assert all("RuntimeError" in line["exception"] for line in told)
    assert {line["request_id"] for line in told} == {first["request_id"], second["request_id"]}
    assert CANARY not in log.text


@pytest.mark.parametrize("status", [400, 401, 402, 404, 413, 429, 500])
def test_nor_what_a_provider_says(log: Log, status: int) -> None:
    with h.hostile() as upstream, remote_service(provider(upstream.url)) as service:
        upstream.play(h.error(status, f"{CANARY} is no way to ask"))
        body = {"model": "cloud", "prompt": CANARY, "stream": True}
        assert CANARY in service.post(body).text
        others = service.post({"model": "cloud", "prompt": "somebody else's"}).text
        assert (CANARY in others) is (status < 500), "what it said to another is not repeated"
        assert CANARY not in service.get("/models").text
        log.wait(2)
    assert CANARY not in log.text


# -- unless asked --------------------------------------------------------------------------------


def test_prompts_and_answers_where_they_are_wanted(log: Log) -> None:
    with fake_service(server={"log_prompts": True}, answer="Paris.", embedding=EMBEDDING) as asked:
        asked.post({"prompt": "Where?", "mode": "completion"})
        asked.post(chat(messages=[{"role": "user", "content": "hi"}]), "/v1/chat/completions")
        asked.post(completion(["a", "b"], stream=True), "/v1/completions")
        asked.post({"input": ["one", "two"]}, "/v1/embeddings")
        asked.post({"prompt": "q" * 10_000})
        lines = log.wait(5)
    assert (lines[0]["prompt"], lines[0]["answer"]) == ("Where?", "Paris.")
    assert lines[1]["prompt"] == "user: hi"
    assert (lines[2]["prompt"], lines[2]["answer"]) == ("a\n---\nb", "Pari\n---\nPari")
    assert (lines[3]["prompt"], "answer" in lines[3]) == ("one\ntwo", False)
    assert (lines[4]["status"], lines[4]["prompt"]) == (413, "q" * 2000 + "…")
