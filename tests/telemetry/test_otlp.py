"""The switch, and the whole way: a real server, its lines in JSON and its spans over HTTP."""

import gzip
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmserve.api.server import listen
from llmserve.telemetry.otlp import start_export
from tests.cli.test_cli import EMBEDDED
from tests.serving import TIMEOUT_S, command_environment, server_process, wait_until

CANARY = "canary-44aa"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


class Collector:
    """What an OTLP receiver got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.exports: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.exports.append(ExportTraceServiceRequest.FromString(body))
        self.headers.append(dict(request.headers))
        return Response(b"", media_type="application/x-protobuf")

    @property
    def names(self) -> list[str]:
        return sorted(
            span.name
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        )

    @property
    def service_names(self) -> set[str]:
        return {
            pair.value.string_value
            for export in self.exports
            for resource in export.resource_spans
            for pair in resource.resource.attributes
            if pair.key == "service.name"
        }


@contextmanager
def collector() -> Iterator[Collector]:
    with listen("127.0.0.1", 0) as listener:
        found = Collector(f"http://127.0.0.1:{listener.getsockname()[1]}")
        app = Starlette(routes=[Route("/v1/traces", found.receive, methods=["POST"])])
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield found
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)


def test_a_real_server(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text("[server]\npreload = false\n" + EMBEDDED)
    with collector() as receiver:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{CANARY}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        with server_process(path, "--log-level=debug", env=environment) as process:
            words = {"prompt": f"Repeat: {CANARY}", "parameters": {"max_tokens": 8}}
            answer = process.post("/inference", words).json()["generated_text"]
            chat = {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 4}
            assert process.post("/v1/chat/completions", chat).status_code == 200
            assert process.post("/inference", {"prompt": {"a": CANARY}}).status_code == 400
            process.signal(15)
            assert process.wait() == 0
        expected = ["POST /inference", "POST /inference", "POST /v1/chat/completions"]
        assert receiver.names == sorted([*expected, "chat smollm2", "chat smollm2"])
        assert receiver.service_names == {"llmserve"}
        assert receiver.headers[0]["authorization"] == f"Bearer {CANARY}"
        assert all(CANARY not in str(export) for export in receiver.exports)
    lines = [json.loads(line) for line in process.log]
    assert {line["level"] for line in lines} >= {"debug", "info"}
    told = [line for line in lines if line["event"].startswith("POST ")]
    assert [line["status"] for line in told if line["logger"] == "llmserve.request"] == [
        200, 200, 400,
    ]  # fmt: skip
    first = told[0]["request_id"]
    (loading,) = [line for line in lines if line["event"].startswith("loading smollm2")]
    assert loading["request_id"] == first, "it was loaded for that one"
    native = [line for line in lines if line["logger"] == "llmserve.engine.llama"]
    assert native
    assert not any("request_id" in line for line in native), "its process serves others too"
    log = "".join(process.log)
    assert "trace_id" in log
    assert CANARY not in log
    assert answer.strip() not in log


def test_a_collector_that_is_gone_holds_nothing_up(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(EMBEDDED)
    with server_process(path, "--log-format=text", "--log-prompts", env=ENDPOINT) as process:
        words = {"prompt": CANARY, "mode": "completion", "parameters": {"max_tokens": 1}}
        assert process.post("/inference", words).status_code == 200
        process.signal(15)
        assert process.wait() == 0
    log = "".join(process.log)
    assert f"prompt={CANARY}" in log
    assert "[info     ] POST /inference 200" in log


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin"}, "not zipkin"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "not otlp, grpc"),
    ],
)
def test_no_traces(
    environment: dict[str, str], words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert start_export(environment) is None
    assert (words or "") in caplog.text
    assert bool(caplog.text) is bool(words)


def test_the_extra_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert start_export(ENDPOINT) is None
    assert "scripts/setup --with otel" in caplog.text


def test_the_service_can_have_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setattr(logging.getLogger("llmserve.telemetry.otlp"), "disabled", True)
    with collector() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        export = start_export({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
        assert export
        export.tracing._tracer.start_span("one").end()
        export.close()
        wait_until(lambda: receiver.names == ["one"])
        assert receiver.service_names == {"mine"}


def test_what_is_not_wanted_is_not_imported() -> None:
    code = (
        "import sys; import llmserve.api.server; from llmserve.telemetry.otlp import start_export;"
        "start_export({}); print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=command_environment()
    )
    assert done.stdout == "[]\n", done.stderr
