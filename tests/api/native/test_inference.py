"""POST /inference over a real uvicorn and a fake model."""

import itertools
import math
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import msgspec
import pytest

from llmserve.api.native.inference import StreamEncoder, to_core
from llmserve.api.native.schemas import InferenceRequest, Parameters
from llmserve.core import Delta, Mode, SamplingParams
from llmserve.errors import EngineError, ModelFileError
from tests.fakes import EOS, reference_greedy
from tests.serving import (
    FakeService,
    fake_service,
    raw_inference,
    raw_request,
    sse_events,
    wait_until,
)

GREEDY = {"temperature": 0, "ignore_eos": True}


def ask(prompt: str = "hello", /, *, max_tokens: int = 4, **fields: Any) -> dict[str, Any]:
    """A greedy completion."""
    parameters = {**GREEDY, "max_tokens": max_tokens, **fields.pop("parameters", {})}
    return {"prompt": prompt, "mode": "completion", "parameters": parameters, **fields}


def expected(prompt: str, max_tokens: int) -> str:
    """The fake model's greedy answer, which must not contain an end token."""
    tokens = reference_greedy(prompt.encode(), max_tokens)
    assert EOS not in tokens, "choose another prompt"
    return bytes(tokens).decode(errors="replace")


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error, after checking the envelope."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["type", "code", "message", "param"]
    assert isinstance(error["message"], str)
    assert error["message"]
    return dict(error)


# -- answers -------------------------------------------------------------------------------------


def test_the_answer_is_exactly_the_generated_text(service: FakeService) -> None:
    response = service.post(ask())
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"generated_text": expected("hello", 4)}


def test_details_on_request(service: FakeService) -> None:
    body = service.post(ask(details=True, parameters={"seed": 7})).json()
    assert list(body) == ["generated_text", "details"]
    details = body["details"]
    timings = details.pop("timings")
    assert details == {
        "model": "fake",
        "finish_reason": "length",
        "stop_sequence": None,
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "generated_tokens": 4,
        "seed": 7,
    }
    assert list(timings) == [
        *("queue_s", "prefill_s", "ttft_s", "decode_s", "tokens_per_s"),
        *("queue_position", "expected_queue_s"),
    ]
    assert all(math.isfinite(value) and value >= 0 for value in timings.values())
    assert timings["ttft_s"] == pytest.approx(timings["queue_s"] + timings["prefill_s"])


def test_the_drawn_seed_repeats_the_answer(service: FakeService) -> None:
    sampled = {"temperature": 2, "max_tokens": 30, "ignore_eos": True}
    first = service.post(ask(details=True, parameters=sampled)).json()
    seed = first["details"]["seed"]
    again = service.post(ask(details=True, parameters={**sampled, "seed": seed})).json()
    assert again["generated_text"] == first["generated_text"]


def test_a_stop_sequence_ends_the_answer_and_is_not_shown(service: FakeService) -> None:
    whole = expected("stop here", 12)
    stop = whole[5:7]
    cut = whole[: whole.index(stop)]
    for stops in (stop, [stop, "never"]):
        request = ask("stop here", max_tokens=12, details=True, parameters={"stop": stops})
        body = service.post(request).json()
        assert body["generated_text"] == cut
        assert body["details"]["finish_reason"] == "stop"
        assert body["details"]["stop_sequence"] == stop


def test_without_max_tokens_the_context_is_the_limit() -> None:
    with fake_service(num_cells=64) as service:
        request = {"prompt": "x" * 20, "mode": "completion", "details": True, "parameters": GREEDY}
        details = service.post(request).json()["details"]
        assert details["finish_reason"] == "length"
        assert details["prompt_tokens"] + details["generated_tokens"] == 64


def test_a_prompt_of_many_bytes_and_characters_is_kept(service: FakeService) -> None:
    details = service.post(ask("żółć\u0000\U0001f600\r\n", details=True)).json()["details"]
    assert details["prompt_tokens"] == len("żółć\u0000\U0001f600\r\n".encode())


def test_the_content_type_of_the_request_does_not_matter(service: FakeService) -> None:
    body = msgspec.json.encode(ask())
    with service.client() as client:
        for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/json"}):
            assert client.post("/inference", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("name", [None, "fake", "default", "other", "nickname"])
def test_names_and_aliases_reach_their_model(two_models: FakeService, name: str | None) -> None:
    assert two_models.post(ask(model=name)).status_code == 200
    used = "other" if name in ("other", "nickname") else "fake"
    assert two_models.runtimes[used].batch_sizes


@pytest.fixture(scope="module")
def two_models() -> Iterator[FakeService]:
    models = {"fake": {"aliases": ("default",)}, "other": {"aliases": ("nickname",)}}
    with fake_service(models=models) as running:
        yield running


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        (None, SamplingParams(temperature=0.7)),
        (Parameters(top_p=0.5), SamplingParams(temperature=0.7, top_p=0.5)),
        (Parameters(temperature=0), SamplingParams(temperature=0)),
    ],
)
def test_only_the_temperature_has_a_default_that_changes_the_distribution(
    given: Parameters | None, sampling: SamplingParams
) -> None:
    assert to_core(InferenceRequest(prompt="x", parameters=given)).sampling == sampling


# -- modes ---------------------------------------------------------------------------------------

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prompt": "hi", "mode": "completion"}, "hi"),
        ({"prompt": "hi"}, "<user>hi\n<assistant>"),
        ({"prompt": "hi", "mode": "instruct"}, "<user>hi\n<assistant>"),
        ({"prompt": "hi", "system": "s"}, "<system>s\n<user>hi\n<assistant>"),
        ({"prompt": "", "mode": "instruct"}, "<user>\n<assistant>"),
        ({"messages": USER}, "<user>hi\n<assistant>"),
        ({"messages": USER, "mode": "chat"}, "<user>hi\n<assistant>"),
        (
            {"messages": [{"role": "system", "content": "s"}, *USER]},
            "<system>s\n<user>hi\n<assistant>",
        ),
    ],
)
def test_modes_build_the_text(service: FakeService, fields: dict[str, Any], text: str) -> None:
    request = {**fields, "details": True, "parameters": {**GREEDY, "max_tokens": 3}}
    body = service.post(request).json()
    assert body["details"]["prompt_tokens"] == len(text)
    assert body["generated_text"] == expected(text, 3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "hi", "messages": USER}, "prompt"),
        ({"prompt": "hi", "mode": "chat"}, "mode"),
        ({"messages": USER, "mode": "completion"}, "mode"),
        ({"messages": USER, "mode": "instruct"}, "mode"),
        ({"prompt": "hi", "mode": "completion", "system": "s"}, "system"),
        ({"messages": USER, "system": "s"}, "system"),
        ({"prompt": "", "mode": "completion"}, "prompt"),
    ],
)
def test_wrong_combinations_are_refused(
    service: FakeService, fields: dict[str, Any], param: str
) -> None:
    assert error_of(service.post(fields), 400)["param"] == param


def test_a_model_without_a_template_completes() -> None:
    with fake_service(chat_template=None) as service:
        parameters = {**GREEDY, "max_tokens": 3}
        body = service.post({"prompt": "hi", "parameters": parameters}).json()
        assert body == {"generated_text": expected("hi", 3)}
        assert error_of(service.post({"messages": USER}), 400)["param"] == "mode"


def test_the_default_mode_of_a_model() -> None:
    with fake_service(models={"fake": {"default_mode": Mode.COMPLETION}}) as service:
        body = service.post({"prompt": "hi", "parameters": {**GREEDY, "max_tokens": 3}}).json()
        assert body == {"generated_text": expected("hi", 3)}


# -- streams -------------------------------------------------------------------------------------


def test_a_stream_is_deltas_and_then_everything(service: FakeService) -> None:
    with service.client() as client:
        request = ask(max_tokens=20, stream=True, parameters={"seed": 1})
        response = client.post("/inference", json=request)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    *deltas, last = sse_events(response.text)
    assert all(list(event) == ["delta"] and event["delta"] for event in deltas)
    assert list(last) == ["generated_text", "details"]
    assert "".join(event["delta"] for event in deltas) == last["generated_text"]
    assert last["generated_text"] == expected("hello", 20)
    assert last["details"]["generated_tokens"] == 20
    assert last["details"]["seed"] == 1


def test_a_stream_and_a_folded_answer_are_the_same_text(service: FakeService) -> None:
    streamed = sse_events(service.post(ask(max_tokens=30, stream=True)).text)[-1]
    assert service.post(ask(max_tokens=30)).json()["generated_text"] == streamed["generated_text"]


def test_a_stream_that_ends_with_its_first_token(service: FakeService) -> None:
    events = sse_events(service.post(ask(max_tokens=1, stream=True)).text)
    assert events[-1]["details"]["generated_tokens"] == 1


def test_a_delta_is_sent_as_soon_as_it_is_there() -> None:
    always_a = {"logit_bias": {str(ord("A")): 100}}
    request = ask(max_tokens=8, stream=True, parameters=always_a)
    with (
        fake_service(gated=True) as service,
        service.client() as client,
        client.stream("POST", "/inference", json=request) as response,
    ):
        lines = response.iter_lines()
        for _ in range(8):
            service.step()
            assert _next_event(lines) == {"delta": "A"}
        assert _next_event(lines)["generated_text"] == "A" * 8
        assert list(lines) == [""]


def _next_event(lines: Iterator[str]) -> dict[str, Any]:
    line = next(line for line in lines if line.startswith("data: "))
    event: dict[str, Any] = msgspec.json.decode(line.removeprefix("data: "))
    return event


def test_comments_keep_a_silent_stream_alive() -> None:
    with (
        fake_service(gated=True, server={"keep_alive_s": 0.01}) as service,
        service.client() as client,
        client.stream("POST", "/inference", json=ask(stream=True)) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        for _ in range(3):  # while the first step of the prefill is held
            assert next(lines) == ": keep-alive"
            assert next(lines) == ""
        service.step(4)
        rest = [line for line in lines if line.startswith("data: ")]
        assert msgspec.json.decode(rest[-1].removeprefix("data: "))["generated_text"]


def test_comments_say_how_the_queue_stands() -> None:
    with (
        fake_service(gated=True, server={"keep_alive_s": 0.01}, num_slots=1) as service,
        service.client() as client,
        client.stream("POST", "/inference", json=ask(max_tokens=2, stream=True)) as running,
    ):
        first = running.iter_lines()
        assert next(first) == ": keep-alive"
        with client.stream("POST", "/inference", json=ask(stream=True)) as waiting:
            service.step()
            lines = waiting.iter_lines()
            comment = next(line for line in lines if line.startswith(": queued"))
            assert re.fullmatch(r": queued position=1 expected_wait_s=\d+\.\d", comment)
            service.step()  # the last of the one that runs; from now on the other has the slot
            assert next(line for line in lines if line == ": keep-alive")
            service.step(10)
            events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
            timings = msgspec.json.decode(events[-1])["details"]["timings"]
            assert timings["queue_position"] == 1
            assert timings["expected_queue_s"] > 0


def test_no_comments_between_events_that_come_in_time(service: FakeService) -> None:
    assert ": keep-alive" not in service.post(ask(max_tokens=30, stream=True)).text


# -- errors --------------------------------------------------------------------------------------


def test_400_for_what_is_not_json(service: FakeService) -> None:
    with service.client() as client:
        error = error_of(client.post("/inference", content=b"{nope"), 400)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"
    assert error["param"] is None


def test_400_names_the_field_and_its_range(service: FakeService) -> None:
    error = error_of(service.post(ask(parameters={"temperature": 3})), 400)
    assert error["param"] == "parameters.temperature"
    assert "3" in error["message"]
    assert "from 0 to 2" in error["message"]


def test_400_for_a_typo(service: FakeService) -> None:
    error = error_of(service.post({"prompt": "x", "parameters": {"max_token": 5}}), 400)
    assert error["param"] == "parameters.max_token"
    assert "did you mean max_tokens?" in error["message"]


def test_400_for_a_token_beyond_the_vocabulary(service: FakeService) -> None:
    error = error_of(service.post(ask(parameters={"logit_bias": {"257": 1}})), 400)
    assert error["param"] == "parameters.logit_bias.257"


@pytest.mark.parametrize("stream", [False, True])
def test_404_for_an_unknown_model_tells_the_known(two_models: FakeService, stream: bool) -> None:
    error = error_of(two_models.post(ask(model="gpt", stream=stream)), 404)
    assert error["type"] == "not_found_error"
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert all(name in error["message"] for name in ("default", "fake", "nickname", "other"))


@pytest.mark.parametrize("stream", [False, True])
def test_413_for_a_long_prompt_has_both_numbers(stream: bool) -> None:
    with fake_service(num_cells=64) as service:
        error = error_of(service.post(ask("x" * 64, stream=stream)), 413)
        assert error["code"] == "too_large"
        assert error["param"] == "prompt"
        assert error["message"].count("64") == 2
        error = error_of(service.post({"messages": [{"role": "u", "content": "x" * 99}]}), 413)
        assert error["param"] == "messages"
        assert service.post(ask("x" * 63)).status_code == 200


def test_413_for_a_long_body_has_both_numbers() -> None:
    with fake_service(server={"max_body_bytes": 1024}) as service:
        error = error_of(service.post(ask("x" * 2000)), 413)
        size = len(httpx2.Request("POST", "http://x", json=ask("x" * 2000)).content)
        assert f"{size} bytes" in error["message"]
        assert "1024" in error["message"]


def test_429_when_the_queue_is_full() -> None:
    with (
        fake_service(gated=True, models={"fake": {"max_queue": 1}}, num_slots=1) as service,
        ThreadPoolExecutor(2) as threads,
    ):
        accepted = [threads.submit(service.post, ask(max_tokens=1)) for _ in range(2)]
        wait_until(lambda: service.gateway.num_active == 2)
        for stream in (False, True):
            response = service.post(ask(stream=stream))
            error = error_of(response, 429)
            assert error["type"] == "rate_limit_error"
            assert error["code"] == "queue_full"
            assert 1 <= int(response.headers["retry-after"]) <= 120
        assert service.metric("llmserve_requests_total", model="fake", outcome="queue_full") == 2
        service.step(2)
        assert [f.result().status_code for f in accepted] == [200, 200]
        service.step(1)
        assert service.post(ask(max_tokens=1)).status_code == 200


def test_503_when_no_slot_becomes_free_in_time() -> None:
    """A status where none has been sent, else an event of the stream."""
    with (
        fake_service(
            gated=True, models={"fake": {"queue_timeout": 3600.0}}, num_slots=1
        ) as service,
        ThreadPoolExecutor(3) as threads,
    ):
        running = threads.submit(service.post, ask(max_tokens=9))
        wait_until(lambda: service.runtime.decoding.is_set())
        late = [threads.submit(service.post, ask(stream=stream)) for stream in (False, True)]
        engine = service.engines["fake"]
        wait_until(lambda: len(engine._requests) == 3)
        engine._worker._queue_timeout_s = 0.0  # as if an hour had passed
        service.step()
        whole, streamed = (future.result() for future in late)
        error = error_of(whole, 503)
        assert error["code"] == "queue_timeout"
        assert "3600 s of queue_timeout" in error["message"]
        assert int(whole.headers["retry-after"]) >= 1
        assert streamed.status_code == 200
        (event,) = sse_events(streamed.text)
        assert event["error"]["code"] == "queue_timeout"
        service.step(10)
        assert running.result().status_code == 200


def test_503_while_the_model_loads() -> None:
    with fake_service(loaded=False, server={"load_wait_s": 0}) as service:
        for response in (service.post(ask()), service.post(ask(stream=True))):
            error = error_of(response, 503)
            assert error["type"] == "unavailable_error"
            assert error["code"] == "model_loading"
            assert int(response.headers["retry-after"]) >= 1
        assert error_of(service.get("/ready"), 503)["code"] == "model_loading"
        assert service.get("/health").status_code == 200
        service.load_gate.set()
        wait_until(lambda: service.get("/ready").status_code == 200)
        assert service.post(ask()).status_code == 200


def test_a_request_waits_for_its_model() -> None:
    with fake_service(loaded=False) as service, ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(service.post, ask()) for _ in range(3)]
        wait_until(lambda: service.gateway.num_active == 3)
        service.load_gate.set()
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]


def test_503_when_the_model_cannot_be_loaded() -> None:
    with fake_service(load_error=ModelFileError("none.gguf: broken")) as service:
        error = error_of(service.post(ask()), 503)
        assert error["code"] == "model_unavailable"
        assert "broken" in error["message"]
        assert service.get("/ready").status_code == 503
        wait_until(lambda: service.errors)
        service.num_expected_errors = len(service.errors)
        assert all("cannot load fake: none.gguf: broken" in line for line in service.errors)


def test_503_while_draining() -> None:
    with fake_service(gated=True) as service, ThreadPoolExecutor(2) as threads:
        running = threads.submit(service.post, ask(max_tokens=2))
        wait_until(lambda: service.gateway.num_active == 1)
        drained = threads.submit(service.run, service.gateway.drain(30))
        wait_until(lambda: service.get("/ready").status_code == 503)
        response = service.post(ask())
        assert error_of(response, 503)["code"] == "shutting_down"
        assert int(response.headers["retry-after"]) >= 1
        assert error_of(service.get("/ready"), 503)["code"] == "shutting_down"
        assert service.get("/health").status_code == 200
        assert not drained.done()
        service.step(2)
        assert running.result().json() == {"generated_text": expected("hello", 2)}
        drained.result(30)


def test_what_runs_at_the_end_is_cancelled() -> None:
    with fake_service(gated=True, num_slots=1) as service, ThreadPoolExecutor(2) as threads:
        requests = [ask(max_tokens=3000, details=True), ask(max_tokens=3000, stream=True)]
        answers = [threads.submit(service.post, request) for request in requests]

        def one_is_queued() -> bool:
            service.step()
            return service.metric("llmserve_queue_depth") == 1

        wait_until(one_is_queued)  # both have reached the worker
        service.run(service.gateway.close())
        folded, streamed = (answer.result() for answer in answers)
        assert folded.status_code == 200
        details = [folded.json()["details"], sse_events(streamed.text)[-1]["details"]]
        assert [d["finish_reason"] for d in details] == ["cancelled", "cancelled"]
        one_waited, one_ran = sorted(d["generated_tokens"] for d in details)
        assert one_waited == 0 < one_ran
        assert error_of(service.post(ask()), 503)["code"] == "shutting_down"


class _BrokenAfter:
    """The model's decode, which fails after some steps."""

    def __init__(self, service: FakeService, error: Exception, num_steps: int) -> None:
        self._decode = service.runtime.decode
        self._error = error
        self._left = num_steps

    def __call__(self, chunks: Any) -> Any:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return self._decode(chunks)


def test_an_error_after_the_start_is_an_event_and_then_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_service() as service:
        error = EngineError("llama_decode failed with code -3")
        monkeypatch.setattr(service.runtime, "decode", _BrokenAfter(service, error, 5))
        events = sse_events(service.post(ask("abc", max_tokens=20, stream=True)).text)
        assert all("delta" in event for event in events[:-1])
        assert events[-1] == {
            "error": {
                "type": "server_error",
                "code": "engine_error",
                "message": "llama_decode failed with code -3",
                "param": None,
            }
        }
        folded = error_of(service.post(ask()), 500)
        assert folded["code"] == "engine_error"
        assert service.metric("llmserve_requests_total", outcome="engine_error") == 2
        service.wait_idle()
        service.num_expected_errors = 2  # the worker's log
        assert len(service.errors) == 2


def test_a_bug_tells_the_client_nothing_but_that(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_service() as service:

        def fail(*args: Any) -> None:
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(service.gateway, "resolve", fail)
        for stream in (False, True):
            error = error_of(service.post(ask(stream=stream)), 500)
            assert error["code"] == "internal_error"
            assert "secret" not in error["message"]
        assert service.metric("llmserve_requests_total", outcome="internal_error") == 2
        wait_until(lambda: len(service.errors) == 2)
        service.num_expected_errors = 2


def test_a_bug_in_mid_stream_is_an_error_event() -> None:
    with fake_service() as service:
        service.metrics.inter_token = None  # type: ignore[assignment]
        events = sse_events(service.post(ask(max_tokens=30, stream=True)).text)
        assert events[-1]["error"]["code"] == "internal_error"
        service.wait_idle()
        assert "a stream failed" in service.errors[0]
        service.num_expected_errors = 1


# -- other routes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "route_not_found"),
        ("POST", "/inferenc", 404, "route_not_found"),
        ("POST", "/inference/", 404, "route_not_found"),
        ("POST", "/../etc/passwd", 404, "route_not_found"),
        ("GET", "/inference", 405, "method_not_allowed"),
        ("PUT", "/inference", 405, "method_not_allowed"),
        ("OPTIONS", "/inference", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
    ],
)
def test_wrong_routes_and_methods_get_the_same_envelope(
    service: FakeService, method: str, path: str, status: int, code: str
) -> None:
    with service.client() as client:
        response = client.request(method, path)
    error = error_of(response, status)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert method in error["message"]
    if status == 405:
        assert response.headers["allow"]


def test_head(service: FakeService) -> None:
    with service.client() as client:
        assert client.head("/health").status_code == 200
        assert client.head("/inference").status_code == 405
        assert client.head("/nope").content == b""


@pytest.mark.parametrize("host", ["[", "a b", "x" * 300, "", "[::1]:8000", "evil@host"])
def test_a_strange_host_header_is_no_bug(service: FakeService, host: str) -> None:
    with service.connect(f"GET /nope HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) as connection:
        assert connection.recv(65536).split()[1] in (b"404", b"400", b"403")


def test_health(service: FakeService) -> None:
    response = service.get("/health")
    assert response.status_code == 200
    assert response.json() == {"status": "ok"}


def test_ready(service: FakeService) -> None:
    response = service.get("/ready")
    assert response.status_code == 200
    assert response.json() == {"status": "ready"}


def test_metrics_move() -> None:
    with fake_service() as service:
        assert service.post(ask(max_tokens=6)).status_code == 200
        assert service.post(ask(max_tokens=6, model="nope")).status_code == 404
        response = service.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        seen = service.metric
        assert seen("llmserve_requests_total", model="fake", outcome="length") == 1
        assert seen("llmserve_requests_total", model="", outcome="model_not_found") == 1
        assert seen("llmserve_prompt_tokens_total", model="fake") == 5
        assert seen("llmserve_generated_tokens_total", model="fake") == 6
        assert seen("llmserve_time_to_first_token_seconds_count", model="fake") == 1
        assert 1 <= seen("llmserve_inter_token_seconds_count", model="fake") <= 5
        assert seen("llmserve_batch_tokens_count", model="fake") == 6
        assert seen("llmserve_batch_tokens_sum", model="fake") == 5 + 5
        assert seen("llmserve_step_seconds_count", model="fake") == 6
        assert seen("llmserve_step_over_expected_count", model="fake") == 6
        assert seen("llmserve_step_prompt_tokens_count", model="fake") == 1
        assert seen("llmserve_step_prompt_tokens_sum", model="fake") == 5
        assert seen("llmserve_queue_wait_seconds_count", model="fake") == 1
        for name in ("llmserve_queue_depth", "llmserve_running_requests"):
            assert f'{name}{{model="fake"}} 0.0' in response.text


def test_metrics_show_the_queue() -> None:
    with fake_service(gated=True, num_slots=1) as service, ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(service.post, ask(max_tokens=100)) for _ in range(3)]

        def two_are_queued() -> bool:
            service.step()  # the worker looks for new requests between steps
            return service.metric("llmserve_queue_depth") == 2

        wait_until(two_are_queued)
        assert service.metric("llmserve_running_requests") == 1
        service.step(300)
        assert all(answer.result().status_code == 200 for answer in answers)
        wait_until(lambda: service.metric("llmserve_queue_depth") == 0)


def test_metrics_count_who_made_room() -> None:
    with fake_service(gated=True, num_slots=1) as service, ThreadPoolExecutor(2) as threads:
        batch = threads.submit(service.post, ask("in no hurry", max_tokens=9, priority="batch"))
        wait_until(lambda: service.metric("llmserve_running_requests") == 1)
        service.step(2)
        asked = threads.submit(service.post, ask("at once", max_tokens=2))
        wait_until(lambda: len(service.engines["fake"]._requests) == 2)
        service.step(50)
        assert asked.result().json() == {"generated_text": expected("at once", 2)}
        assert batch.result().json() == {"generated_text": expected("in no hurry", 9)}
        assert service.metric("llmserve_preemptions_total", model="fake") == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"priority": "urgent"}, "priority"), ({"deterministic": "yes"}, "deterministic")],
)
def test_400_for_scheduling_that_there_is_not(
    service: FakeService, fields: dict[str, Any], param: str
) -> None:
    assert error_of(service.post(ask(**fields)), 400)["param"] == param


def test_a_deterministic_request_has_a_seed_of_its_own(service: FakeService) -> None:
    hot = {"temperature": 1.5, "max_tokens": 20}
    bodies = [
        service.post(ask(parameters=hot, deterministic=True, details=True)).json() for _ in "ab"
    ]
    assert bodies[0]["generated_text"] == bodies[1]["generated_text"]
    assert [body["details"]["seed"] for body in bodies] == [0, 0]
    assert service.post(ask(parameters=hot, details=True)).json()["details"]["seed"] != 0


def test_metrics_forget_a_client_that_left() -> None:
    with fake_service(gated=True) as service:
        with service.connect(raw_inference(ask(max_tokens=100))):
            wait_until(lambda: service.gateway.num_active == 1)
            service.step(2)
            wait_until(lambda: service.metric("llmserve_running_requests") == 1)
        wait_until(lambda: service.gateway.num_active == 0)
        service.step(1)
        wait_until(lambda: service.num_running == 0)
        wait_until(lambda: service.metric("llmserve_running_requests") == 0, timeout_s=1)


def test_the_callers_words_make_no_time_series(service: FakeService) -> None:
    for name in ("x" * 50, 'a"b\n'):
        error_of(service.post(ask(model=name)), 404)
    assert "xxx" not in service.get("/metrics").text


# -- connections ---------------------------------------------------------------------------------


def _read_answers(connection: socket.socket, count: int) -> bytes:
    data = b""
    while data.count(b'"generated_text"') < count:
        part = connection.recv(65536)
        assert part, data
        data += part
    return data


def test_one_connection_serves_many_requests(service: FakeService) -> None:
    with service.client() as client:
        for index in range(20):
            body = ask(f"request {index}", stream=index % 2 == 0)
            response = client.post("/inference", json=body)
            assert response.status_code == 200
            assert response.extensions["network_stream"]
        assert error_of(client.post("/inference", json={}), 400)
        assert client.post("/inference", json=ask()).status_code == 200


def test_pipelined_requests_are_answered_in_order(service: FakeService) -> None:
    prompts = [f"prompt number {index}" for index in range(8)]
    data = b"".join(raw_inference(ask(prompt)) for prompt in prompts)
    with service.connect(data) as connection:
        answer = _read_answers(connection, 8)
    texts = [msgspec.json.decode(body) for body in re.findall(rb"\{.*?\"\}", answer)]
    assert [text["generated_text"] for text in texts] == [expected(p, 4) for p in prompts]


def test_a_pipelined_request_after_a_stream(service: FakeService) -> None:
    with service.connect(raw_inference(ask(stream=True)) + raw_inference(ask())) as connection:
        answer = _read_answers(connection, 2)
    assert answer.count(b"HTTP/1.1 200") == 2


def test_http_1_0(service: FakeService) -> None:
    body = msgspec.json.encode(ask(stream=True))
    head = f"POST /inference HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    with service.connect(head.encode() + body) as connection:
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert b'"generated_text"' in answer
    assert b"chunked" not in answer


def test_a_body_is_asked_for_only_when_it_is_wanted(service: FakeService) -> None:
    body = msgspec.json.encode(ask())
    head = raw_request("POST", "/inference", body, "Expect: 100-continue\r\n")[: -len(body)]
    with service.connect(head) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


Leave = Callable[[FakeService, socket.socket], None]


def _before_the_first_event(service: FakeService, connection: socket.socket) -> None:
    wait_until(lambda: service.gateway.num_active == 1)


def _in_prefill(service: FakeService, connection: socket.socket) -> None:
    wait_until(service.runtime.decoding.is_set)
    service.step(2)  # 64 of many prompt tokens each
    wait_until(lambda: service.num_running == 1)


def _in_mid_stream(service: FakeService, connection: socket.socket) -> None:
    service.step(10)
    seen = b""
    while b'"delta"' not in seen:
        seen += connection.recv(65536)


@pytest.mark.parametrize(
    ("stream", "prompt", "leave"),
    [
        (False, "short", _before_the_first_event),
        (True, "short", _before_the_first_event),
        (False, "long " * 200, _in_prefill),
        (True, "long " * 200, _in_prefill),
        (True, "short", _in_mid_stream),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_frees_its_slot(
    stream: bool, prompt: str, leave: Leave, reset: bool
) -> None:
    with fake_service(gated=True, num_slots=1) as service:
        request = raw_inference(ask(prompt, max_tokens=1000, stream=stream))
        with service.connect(request) as connection:
            leave(service, connection)
            if reset:  # close with a reset instead of a FIN
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
        wait_until(lambda: service.gateway.num_active == 0)
        service.step(1)  # a step that is being computed may end; no more are needed
        wait_until(lambda: service.num_running == 0)
        assert service.metric("llmserve_requests_total", outcome="disconnected") == 1
        service.step(100)
        assert service.post(ask(max_tokens=3)).status_code == 200


def test_a_client_that_leaves_the_queue() -> None:
    with fake_service(gated=True, num_slots=1) as service, ThreadPoolExecutor(1) as threads:
        first = threads.submit(service.post, ask(max_tokens=2))
        wait_until(lambda: service.gateway.num_active == 1)
        with service.connect(raw_inference(ask(max_tokens=5))):
            wait_until(lambda: service.gateway.num_active == 2)
        wait_until(lambda: service.gateway.num_active == 1)
        service.step(2)
        assert first.result().json() == {"generated_text": expected("hello", 2)}
        service.wait_idle()
        assert len(service.runtime.batch_sizes) == 2


def test_a_client_that_leaves_while_the_model_loads() -> None:
    with fake_service(loaded=False) as service:
        with service.connect(raw_inference(ask())):
            wait_until(lambda: service.gateway.num_active == 1)
        wait_until(lambda: service.gateway.num_active == 0)
        service.load_gate.set()
        assert service.post(ask()).status_code == 200


def _slow_reader(service: FakeService, max_tokens: int) -> socket.socket:
    """A connection that has read the start of a long stream."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", service.port))
    connection.sendall(raw_inference(ask(max_tokens=max_tokens, stream=True)))
    assert connection.recv(100)
    return connection


def test_a_slow_reader_gets_everything_and_holds_up_nobody() -> None:
    with fake_service(send_buffer_bytes=4096) as service, _slow_reader(service, 4000) as slow:
        assert service.post(ask()).status_code == 200
        wait_until(lambda: service.num_running == 0)  # its slot does not wait for it
        assert service.gateway.num_active == 1
        data = b""
        while b'"generated_tokens":4000' not in data:
            data += slow.recv(65536)
        service.wait_idle()


def test_a_slow_reader_that_leaves() -> None:
    with fake_service(send_buffer_bytes=4096) as service:
        with _slow_reader(service, 4000):
            wait_until(lambda: service.num_running == 0)
            assert service.gateway.num_active == 1
        service.wait_idle()
        assert service.metric("llmserve_requests_total", outcome="disconnected") == 1


def test_many_clients_at_once() -> None:
    names = (f"client {index}" for index in itertools.count())
    usable = (name for name in names if EOS not in reference_greedy(name.encode(), 12))
    prompts = list(itertools.islice(usable, 50))
    with fake_service() as service, ThreadPoolExecutor(50) as threads:
        answers = threads.map(lambda p: service.post(ask(p, max_tokens=12)).json(), prompts)
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer == {"generated_text": expected(prompt, 12)}
        service.wait_idle()
        assert service.metric("llmserve_requests_total", outcome="length") == 50


def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    with fake_service() as service:

        def visit(index: int) -> None:
            body = ask("x" * (index % 100 + 1), max_tokens=500, stream=index % 2 == 0)
            with service.connect(raw_inference(body)) as connection:
                connection.settimeout(0.0002 * (index % 50) + 1e-6)
                try:
                    while connection.recv(4096):
                        pass
                except TimeoutError:
                    pass

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(visit, range(200)))
        service.wait_idle()
        assert service.post(ask()).json() == {"generated_text": expected("hello", 4)}
    # fake_service checks for tasks that are left over and for errors in the log.


# -- the encoder -----------------------------------------------------------------------------------


def test_a_delta_without_text_is_no_event() -> None:
    encoder = StreamEncoder()
    assert encoder.encode(Delta("")) == b""
    assert encoder.encode(Delta("a")) == b'data: {"delta":"a"}\n\n'
