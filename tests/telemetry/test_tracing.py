"""Spans by the GenAI conventions, of the real SDK, kept in memory."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from llmserve.core import EventStream
from llmserve.engine.runtime import EmbeddingLimits
from llmserve.gateway import Gateway
from llmserve.telemetry.tracing import Tracing
from tests.api.openai.helpers import chat, completion
from tests.remote import hostile as h
from tests.remote.serving import KEY, KEY_ENV, provider, remote_service
from tests.serving import FakeService, fake_service, raw_inference, wait_until

CANARY = "canary-0b7e"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1", "baggage": "a=b"}
EMBEDDING = EmbeddingLimits(8, max_len=4096, max_batch=64, max_inputs=4, num_cells=4096)


class Spans:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    def clear(self) -> None:
        self._exporter.clear()

    def wait(self, count: int = 2) -> list[ReadableSpan]:
        """In the order of their ends; the answer can be there before the span of its request."""
        wait_until(lambda: len(self._exporter.get_finished_spans()) >= count, "spans")
        return list(self._exporter.get_finished_spans())


@pytest.fixture(scope="module")
def spans() -> Spans:
    return Spans()


@pytest.fixture(scope="module")
def running(spans: Spans) -> Iterator[FakeService]:
    with fake_service(tracing=spans.tracing, answer=CANARY, embedding=EMBEDDING) as running:
        yield running


@pytest.fixture
def service(running: FakeService, spans: Spans) -> FakeService:
    spans.clear()
    return running


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_chat(service: FakeService, spans: Spans) -> None:
    service.post(chat(model="default", seed=7, frequency_penalty=1), "/v1/chat/completions")
    inner, outer = spans.wait()
    found = attributes(inner)
    assert inner.name == "chat default"
    assert inner.kind is SpanKind.INTERNAL
    assert inner.parent == outer.context
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0
    assert found.pop("llmserve.queue_s") >= 0
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llmserve",
        "gen_ai.request.model": "default",
        "gen_ai.response.model": "fake",
        "gen_ai.output.type": "text",
        "gen_ai.request.temperature": 0,
        "gen_ai.request.top_p": 1,
        "gen_ai.request.frequency_penalty": 1,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
    }
    (first,) = inner.events
    assert first.name == "first_token"
    assert inner.start_time is not None
    assert inner.end_time is not None
    assert inner.start_time <= first.timestamp <= inner.end_time


def test_its_request(service: FakeService, spans: Spans) -> None:
    response = service.post(chat(), "/v1/chat/completions")
    _, outer = spans.wait()
    assert (outer.name, outer.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert outer.parent is None
    assert attributes(outer) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "llmserve.request_id": response.headers["x-request-id"],
    }


def test_every_name_is_one_of_the_conventions(service: FakeService, spans: Spans) -> None:
    service.post({"prompt": "x", "parameters": {"top_k": 5, "presence_penalty": 1}})
    service.post({"input": "x"}, "/v1/embeddings")
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    known.add("gen_ai.embeddings.dimension.count")
    for span in spans.wait(4):
        assert {name for name in attributes(span) if name.startswith("gen_ai.")} <= known


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/inference", {"prompt": "x"}, "chat fake"),
        ("/inference", {"prompt": "x", "mode": "completion"}, "text_completion fake"),
        ("/v1/completions", completion(), "text_completion fake"),
        ("/v1/completions", completion([1, 2]), "text_completion fake"),
        ("/v1/responses", {"input": "x", "max_output_tokens": 2}, "chat fake"),
        ("/v1/embeddings", {"input": ["x"], "model": "fake"}, "embeddings fake"),
    ],
)
def test_operations(service: FakeService, spans: Spans, path: str, body: Any, name: str) -> None:
    assert service.post(body, path).status_code == 200
    inner, outer = spans.wait()
    assert inner.name == name
    assert attributes(inner)["gen_ai.operation.name"] == name.split()[0]
    assert outer.name == f"POST {path}"


def test_embeddings(service: FakeService, spans: Spans) -> None:
    service.post({"input": ["one", "two"], "dimensions": 4}, "/v1/embeddings")
    found = attributes(spans.wait()[0])
    assert found["gen_ai.usage.input_tokens"] == 6
    assert found["gen_ai.embeddings.dimension.count"] == 4


def test_json_is_an_output_type(service: FakeService, spans: Spans) -> None:
    body = chat(response_format={"type": "json_object"}, ignore_eos=False)
    service.post(body, "/v1/chat/completions")
    assert attributes(spans.wait()[0])["gen_ai.output.type"] == "json"


def test_choices_are_spans_of_one_request(service: FakeService, spans: Spans) -> None:
    service.post(chat(n=3, stream=True), "/v1/chat/completions")
    *inner, outer = spans.wait(4)
    assert [span.parent for span in inner] == [outer.context] * 3


def test_a_trace_is_continued(service: FakeService, spans: Spans) -> None:
    with service.client() as client:
        client.post("/inference", json={"prompt": "x"}, headers=CALLER)
    inner, outer = spans.wait()
    assert outer.parent is not None
    assert f"{outer.parent.trace_id:032x}" == f"{inner.context.trace_id:032x}" == TRACE
    assert f"{outer.parent.span_id:016x}" == PARENT


def test_unless_its_header_makes_no_sense(
    service: FakeService, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with service.client() as client:
        client.headers["tracestate"] = f"{CANARY} {CANARY}"
        for header in ("00-xyz", "", "é", "00-" + "0" * 32 + f"-{PARENT}-01", "x" * 10_000):
            headers = [(b"traceparent", header.encode())]
            response = client.post("/inference", json={"prompt": "x"}, headers=headers)
            assert response.status_code == 200
        headers = [(b"traceparent", CALLER["traceparent"].encode())]
        assert client.post("/inference", json={"prompt": "x"}, headers=headers).status_code == 200
    assert all(span.parent is None for span in spans.wait(12)[1:-1:2])
    assert CANARY not in caplog.text


def test_what_the_caller_does_not_sample_is_not_kept(service: FakeService, spans: Spans) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    with service.client() as client:
        client.post("/inference", json={"prompt": "x"}, headers=headers)
    service.post({"prompt": "x"})
    assert len(spans.wait()) == 2
    assert all(span.context and f"{span.context.trace_id:032x}" != TRACE for span in spans.wait())


def test_probes_are_not_traced(service: FakeService, spans: Spans) -> None:
    for path in ("/health", "/ready", "/metrics", "/models"):
        service.get(path)
    (only,) = spans.wait(1)
    assert only.name == "GET /models"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "route"),
    [
        ("/inference", {"prompt": 1}, 400, "invalid_request", "/inference"),
        ("/inference", {"prompt": "x", "model": CANARY}, 404, "model_not_found", "/inference"),
        (f"/{CANARY}", {}, 404, "route_not_found", None),
    ],
)
def test_refusals(
    service: FakeService, spans: Spans, path: str, body: Any, status: int, code: str, route: Any
) -> None:
    service.post(body, path)
    (only,) = spans.wait(1)
    found = attributes(only)
    assert (found["http.response.status_code"], found["error.type"]) == (status, code)
    assert only.name == (f"POST {route}" if route else "POST"), "few names"
    assert only.status.status_code is StatusCode.UNSET, "the server did its part"


def test_an_error_of_the_model(service: FakeService, spans: Spans) -> None:
    service.post({"prompt": CANARY * 1000})
    inner, _ = spans.wait()
    assert attributes(inner)["error.type"] == "too_large"
    assert inner.status.status_code is StatusCode.ERROR
    assert inner.status.description is None
    assert inner.events == ()


def test_a_caller_that_leaves(spans: Spans) -> None:
    spans.clear()
    with fake_service(tracing=spans.tracing, gated=True) as service:
        with service.connect(raw_inference({"prompt": "x", "stream": True})):
            wait_until(service.runtime.decoding.is_set)
        wait_until(lambda: service.gateway.num_active == 0)
        service.step(3)
        service.wait_idle()
        inner, outer = spans.wait()
    for span in (inner, outer):
        assert attributes(span)["error.type"] == "disconnected"
        assert span.status.status_code is StatusCode.UNSET


def test_no_span_has_words(service: FakeService, spans: Spans) -> None:
    body = chat(messages=[{"role": "user", "content": CANARY}], stop=[CANARY], n=2, stream=True)
    service.post(body, "/v1/chat/completions")
    service.post({"prompt": CANARY, "system": CANARY})
    service.post({"prompt": {CANARY: CANARY}})
    service.post({"input": CANARY}, f"/v1/embeddings?q={CANARY}")
    told = "".join(span.to_json() for span in spans.wait(8))
    assert "first_token" in told
    assert CANARY not in told


def test_nor_has_that_of_a_bug(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(self: Gateway, *arguments: object) -> EventStream:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(Gateway, "_answer", break_down)
    spans.clear()
    with fake_service(tracing=spans.tracing) as service:
        service.num_expected_errors = 1
        assert service.post({"prompt": "x"}).status_code == 500
        for span in spans.wait():
            assert attributes(span)["error.type"] == "internal_error"
            assert span.status.status_code is StatusCode.ERROR
            assert CANARY not in span.to_json()


# -- providers -----------------------------------------------------------------------------------


def test_a_provider_continues_the_trace(spans: Spans) -> None:
    spans.clear()
    with h.hostile() as upstream:
        remote = provider(upstream.url, api_key_env=KEY_ENV)
        with remote_service(remote, service_options={"tracing": spans.tracing}) as service:
            upstream.play(h.error(500, CANARY), h.good)
            with service.client() as client:
                body = {"model": "cloud", "prompt": CANARY}
                assert client.post("/inference", json=body, headers=CALLER).status_code == 200
            inner, _ = spans.wait()
            assert (inner.name, inner.kind) == ("chat cloud", SpanKind.CLIENT)
            assert inner.context
            for request in upstream.requests:
                sent = f"00-{TRACE}-{inner.context.span_id:016x}-01"
                assert request.headers["traceparent"] == sent
                assert request.headers["tracestate"] == "vendor=1"
                assert "baggage" not in request.headers
            assert len(upstream.requests) == 2
            assert attributes(inner)["gen_ai.usage.input_tokens"] == 5
            told = "".join(span.to_json() for span in spans.wait())
            assert CANARY not in told
            assert KEY not in told


def test_who_answered_instead(spans: Spans) -> None:
    spans.clear()
    remote = provider("http://127.0.0.1:1/v1")
    options = {"tracing": spans.tracing}
    with remote_service(remote, fallback=("fake",), service_options=options) as service:
        service.post({"model": "cloud", "prompt": "x", "parameters": {"max_tokens": 2}})
        found = attributes(spans.wait()[0])
    assert (found["gen_ai.request.model"], found["gen_ai.response.model"]) == ("cloud", "fake")


def test_an_error_in_mid_stream(spans: Spans) -> None:
    spans.clear()
    with h.hostile() as upstream:
        options = {"tracing": spans.tracing}
        with remote_service(provider(upstream.url), service_options=options) as service:
            upstream.play(h.streams(h.delta("Hel"), h.event({"error": {"message": CANARY}})))
            service.post({"model": "cloud", "prompt": "x", "stream": True})
            inner, outer = spans.wait()
    assert attributes(inner)["error.type"] == attributes(outer)["error.type"] == "provider_error"
    assert inner.status.status_code is StatusCode.ERROR
    assert CANARY not in inner.to_json() + outer.to_json()


def test_without_tracing_nothing_is_sent() -> None:
    with h.hostile() as upstream, remote_service(provider(upstream.url)) as service:
        upstream.play(h.good)
        with service.client() as client:
            client.post("/inference", json={"model": "cloud", "prompt": "x"}, headers=CALLER)
        (request,) = upstream.requests
        assert "traceparent" not in request.headers
