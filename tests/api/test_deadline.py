"""The time that a request may take, in every dialect."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serving import FakeService, fake_service, sse_events, wait_until

ENDLESS = {"temperature": 0, "max_tokens": 1000, "ignore_eos": True}
NATIVE = {"prompt": "hello", "mode": "completion", "parameters": ENDLESS}
CHAT = {"messages": [{"role": "user", "content": "hello"}], **ENDLESS}
REQUESTS = [
    ("/inference", NATIVE),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "n": 2}),
    ("/v1/completions", {"prompt": "hello", **ENDLESS}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 1000, "ignore_eos": True}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_504_and_the_slot_is_free(path: str, body: dict[str, Any]) -> None:
    with fake_service(gated=True) as service:
        response = service.post({**body, "timeout": 0.1}, path)
        assert response.status_code == 504
        error = response.json()["error"]
        assert error["code"] == "deadline_exceeded"
        assert "0.1 s" in error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
        check_freed(service)


def check_freed(service: FakeService) -> None:
    wait_until(lambda: service.gateway.num_active == 0)
    service.step(1)  # the one that was being computed
    wait_until(lambda: service.num_running == 0)
    assert service.metric("llmserve_requests_total", outcome="deadline_exceeded") >= 1
    assert service.metric("llmserve_requests_total", outcome="disconnected") <= 1  # a sister choice


def test_a_stream_that_has_begun_ends_with_the_error() -> None:
    with fake_service(gated=True) as service, ThreadPoolExecutor(1) as threads:
        body = {**NATIVE, "stream": True, "timeout": 1.0}
        answer = threads.submit(service.post, body)
        wait_until(lambda: service.gateway.num_active == 1)
        service.step(4)
        response = answer.result()
        assert response.status_code == 200
        *deltas, last = sse_events(response.text)
        assert deltas
        assert last["error"]["code"] == "deadline_exceeded"
        check_freed(service)


def test_the_servers_limit_counts_where_it_is_shorter() -> None:
    with fake_service(gated=True, server={"request_timeout": 0.1}) as service:
        for body in (NATIVE, {**NATIVE, "timeout": 60}):
            response = service.post(body)
            assert response.status_code == 504
            assert "0.1 s" in response.json()["error"]["message"]
        check_freed(service)


def test_the_time_in_the_queue_counts() -> None:
    with fake_service(gated=True, num_slots=1) as service, ThreadPoolExecutor(1) as threads:
        first = threads.submit(service.post, {**NATIVE, "parameters": {**ENDLESS, "max_tokens": 2}})
        wait_until(lambda: service.metric("llmserve_running_requests") == 1)
        assert service.post({**NATIVE, "timeout": 0.1}).status_code == 504
        service.step(3)
        assert first.result().status_code == 200


def test_the_time_of_a_load_counts() -> None:
    with fake_service(loaded=False) as service:
        assert service.post({**NATIVE, "timeout": 0.1}).status_code == 504
        service.load_gate.set()
        assert service.post({**NATIVE, "parameters": {"max_tokens": 1}}).status_code == 200


def test_an_answer_in_time_is_as_ever(service: FakeService) -> None:
    short = {**NATIVE, "parameters": {**ENDLESS, "max_tokens": 4}}
    assert service.post({**short, "timeout": 60}).json() == service.post(short).json()


@pytest.mark.parametrize("timeout", [0, -1, "5", 1e9])
@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_a_timeout_that_is_none_is_refused(
    service: FakeService, path: str, body: dict[str, Any], timeout: object
) -> None:
    response = service.post({**body, "timeout": timeout}, path)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "timeout"
