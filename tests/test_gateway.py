"""Fallback: who answers when the model that was asked for cannot, and when nobody may."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmserve.errors import ModelFileError
from tests.api.openai.helpers import chat, chunks, completion, expected, ok
from tests.remote import hostile as h
from tests.remote.serving import KEY_ENV, provider, remote_service
from tests.serving import FakeService, fake_service, raw_inference, sse_events, wait_until

GREEDY = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
ASK: dict[str, Any] = {
    "model": "cloud", "prompt": "hello", "mode": "completion", "parameters": GREEDY,
    "details": True,
}  # fmt: skip
EXTRA = ("ignore_eos", "top_k", "min_p")
DOWN = "http://127.0.0.1:1/v1"


@pytest.fixture(scope="module")
def upstream() -> Iterator[h.Hostile]:
    with h.hostile() as running:
        yield running


@pytest.fixture
def service(upstream: h.Hostile) -> Iterator[FakeService]:
    remote = provider(upstream.url, timeout=0.5, extra_parameters=EXTRA, api_key_env=KEY_ENV)
    with remote_service(remote, fallback=("default",)) as running:
        yield running
        wait_until(lambda: running.gateway.num_active == 0)
        model = running.gateway.remotes.model(running.config.names["cloud"])
        assert model.num_active == 0
        assert running.gateway.pool.look(running.config.default).num_leases == 0


def answered_by(response: Any) -> str:
    """Who says that it answered, after checking that all say the same."""
    assert response.status_code == 200, response.text
    model: str = response.json()["details"]["model"]
    assert response.headers["x-llmserve-model"] == model
    return model


@pytest.mark.parametrize(
    "script",
    [
        h.error(500, "oh"),
        h.error(429, "quota"),
        h.error(402, "pay"),
        h.hangs_at_once,
        h.hangs(),
        h.cuts(h.delta("")),
        h.answers(200, b"<html>log in here", content_type="text/html"),  # a hotel's network
        h.answers(302, b"", location="http://log-in.example/"),
    ],
    ids=["500", "429", "402", "no head", "no body", "cut", "portal", "redirect"],
)
def test_the_fallback_answers_before_the_first_part(
    service: FakeService, upstream: h.Hostile, script: h.Script
) -> None:
    upstream.play(script)
    response = service.post(ASK)
    assert answered_by(response) == "fake"
    assert response.json()["generated_text"] == expected("hello")
    assert service.metric("llmserve_fallbacks_total", model="cloud", to="fake") == 1
    assert service.metric("llmserve_requests_total", model="fake", outcome="length") == 1
    assert service.metric("llmserve_requests_total", model="cloud") == 0


def test_every_dialect_says_who_answered(service: FakeService, upstream: h.Hostile) -> None:
    upstream.play(h.error(500, "down"))
    for path, body in {
        "/v1/chat/completions": chat(model="cloud"),
        "/v1/completions": completion(model="cloud"),
    }.items():
        response = service.post(body, path)
        assert ok(response)["model"] == "fake"
        assert response.headers["x-llmserve-model"] == "fake"
        streamed = service.post({**body, "stream": True}, path)
        assert {chunk["model"] for chunk in chunks(streamed)} == {"fake"}
        assert streamed.headers["x-llmserve-model"] == "fake"
    streamed = service.post({**ASK, "stream": True})
    assert sse_events(streamed.text)[-1]["details"]["model"] == "fake"
    assert streamed.headers["x-llmserve-model"] == "fake"


def test_without_need_nobody_falls_back(service: FakeService, upstream: h.Hostile) -> None:
    upstream.play(h.good)
    assert answered_by(service.post(ASK)) == "cloud"
    assert service.metric("llmserve_fallbacks_total") == 0


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (h.error(401, "who?"), 502, "provider_auth"),
        (h.error(404, "what?"), 502, "provider_model"),
        (h.error(400, "bad"), 400, "invalid_request"),
    ],
)
def test_what_somebody_should_mend_is_not_covered_up(
    service: FakeService, upstream: h.Hostile, script: h.Script, status: int, code: str
) -> None:
    upstream.play(script)
    response = service.post(ASK)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_never_after_the_first_part(service: FakeService, upstream: h.Hostile) -> None:
    upstream.play(h.cuts(h.delta("Hel")))
    first, last = sse_events(service.post({**ASK, "stream": True}).text)
    assert first == {"delta": "Hel"}
    assert last["error"]["code"] == "provider_error"
    assert service.metric("llmserve_fallbacks_total") == 0


def test_over_the_limits_here_the_fallback_answers(upstream: h.Hostile) -> None:
    upstream.play(h.hangs(h.delta("Hel")))
    limits: dict[str, Any] = {"max_concurrency": 1, "max_queue": 0, "fallback": ("fake",)}
    remote = provider(upstream.url, extra_parameters=EXTRA)
    with remote_service(remote, **limits) as service:
        with service.connect(raw_inference({**ASK, "stream": True})) as connection:
            assert b"200" in connection.recv(100)
            assert answered_by(service.post(ASK)) == "fake"
        wait_until(lambda: service.gateway.num_active == 0)


@pytest.mark.parametrize(
    "fields",
    [{"prompt": [104, 105]}, {"logit_bias": {"5": 1}}],
    ids=["tokens", "bias"],
)
def test_token_ids_mean_nothing_to_another_model(
    service: FakeService, upstream: h.Hostile, fields: dict[str, Any]
) -> None:
    upstream.play(h.error(500, "down"))
    body = {**completion(model="cloud"), **fields}
    response = service.post(body, "/v1/completions")
    assert response.status_code == 502
    assert service.metric("llmserve_fallbacks_total") == 0


# -- chains --------------------------------------------------------------------------------------


def test_a_chain_is_tried_in_order_and_what_a_member_cannot_do_is_passed_over(
    upstream: h.Hostile,
) -> None:
    upstream.play(h.good)
    models: dict[str, dict[str, Any]] = {
        "claude": {"remote": provider(upstream.url, protocol="anthropic")},  # has no completions
        "other": {"remote": provider(upstream.url, extra_parameters=EXTRA)},
    }
    with remote_service(provider(DOWN, extra_parameters=EXTRA), models=models,
                        fallback=("claude", "other", "fake")) as service:  # fmt: skip
        assert answered_by(service.post(ASK)) == "other"
        assert service.metric("llmserve_fallbacks_total") == 2


def test_when_all_fail_the_error_of_the_one_asked_for_is_told(upstream: h.Hostile) -> None:
    upstream.play(h.error(429, "quota", retry_after="33"))
    models: dict[str, dict[str, Any]] = {"other": {"remote": provider(DOWN)}}
    with remote_service(provider(upstream.url), models=models, fallback=("other",)) as service:
        response = service.post({**ASK, "parameters": {}})
        assert (response.status_code, response.headers["retry-after"]) == (429, "33")
        assert "model 'cloud'" in response.json()["error"]["message"]


def test_a_local_model_that_cannot_load_falls_back_to_a_remote_one(upstream: h.Hostile) -> None:
    upstream.play(h.good)
    models: dict[str, dict[str, Any]] = {
        "fake": {"aliases": ("default",), "fallback": ("cloud",)},
        "cloud": {"remote": provider(upstream.url, extra_parameters=EXTRA)},
    }
    with fake_service(models=models, load_error=ModelFileError("truncated")) as service:
        response = service.post({**ASK, "model": "fake"})
        assert answered_by(response) == "cloud"
        assert response.json()["generated_text"] == "Hello"
        service.num_expected_errors = len(service.errors)  # the pool's own line about the load


def test_a_local_queue_that_is_full_falls_back(upstream: h.Hostile) -> None:
    upstream.play(h.good)
    models: dict[str, dict[str, Any]] = {
        "fake": {"aliases": ("default",), "fallback": ("cloud",), "max_queue": 0},
        "cloud": {"remote": provider(upstream.url, extra_parameters=EXTRA)},
    }
    with (
        fake_service(models=models, gated=True) as service,
        ThreadPoolExecutor() as pool,
    ):
        running = [pool.submit(service.post, {**ASK, "model": "fake"}) for _ in range(4)]
        wait_until(lambda: service.num_running == 4 or service.gateway.num_active == 4)
        wait_until(lambda: service.engines and service.engines["fake"]._num_active == 4)
        assert answered_by(service.post({**ASK, "model": "fake"})) == "cloud"
        service.step(1000)
        assert {answered_by(each.result()) for each in running} == {"fake"}


# -- an outage in the middle of it all -----------------------------------------------------------


def test_the_provider_dies_while_16_requests_run() -> None:
    """Those that have begun end with a clear error, those that have not are answered here."""
    with h.hostile() as upstream, ThreadPoolExecutor(16) as pool:

        async def half_of_them_begin(exchange: h.Exchange) -> None:
            await exchange.send(h.HEAD)
            if len(upstream.requests) % 2:
                await exchange.chunk(h.delta("Hel"))
            await exchange.gone()

        upstream.play(half_of_them_begin)
        remote = provider(upstream.url, extra_parameters=EXTRA)
        with remote_service(remote, fallback=("fake",)) as service:
            asks = [{**ASK, "stream": True, "prompt": f"hello {i}"} for i in range(16)]
            running = [pool.submit(service.post, ask) for ask in asks]
            wait_until(lambda: upstream.num_running == 16)
            upstream.die()
            num_begun = 0
            for index, each in enumerate(running):
                *deltas, last = sse_events(each.result().text)
                if deltas[0] == {"delta": "Hel"}:
                    num_begun += 1
                    assert len(deltas) == 1
                    assert last["error"]["code"] == "provider_error"
                    assert "cut its answer off" in last["error"]["message"]
                else:
                    assert last["details"]["model"] == "fake"
                    assert last["generated_text"] == expected(f"hello {index}")
            assert num_begun == 8
            service.wait_idle()
            assert service.metric("llmserve_fallbacks_total") == 8
            assert answered_by(service.post(ASK)) == "fake"
            model = service.gateway.remotes.model(service.config.names["cloud"])
            assert model.state == "open", "so that it costs nothing any more"
