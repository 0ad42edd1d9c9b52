"""Errors in OpenAI's words, and the id of every answer."""

import re

import pytest

from llmserve.errors import ModelFileError
from tests.api.openai.helpers import CHAT, COMPLETIONS, chat, completion, error_of, ok
from tests.serving import FakeService, fake_service, raw_request, wait_until

INVALID = "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model(service: FakeService, stream: bool) -> None:
    for path, body in ((CHAT, chat()), (COMPLETIONS, completion())):
        error = error_of(service.post({**body, "model": "gpt-5", "stream": stream}, path), 404)
        assert (error["type"], error["code"]) == (INVALID, "model_not_found")
        assert error["param"] == "model"
        assert "gpt-5" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_a_400_with_its_code(stream: bool) -> None:
    with fake_service(num_cells=64) as service:
        long = [{"role": "user", "content": "x" * 99}]
        error = error_of(service.post(chat(messages=long, stream=stream), CHAT), 400)
        assert (error["type"], error["code"]) == (INVALID, "context_length_exceeded")
        assert error["param"] == "messages"
        assert "maximum context length" in error["message"]
        assert "64" in error["message"]
        error = error_of(service.post(completion("x" * 64), COMPLETIONS), 400)
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
        assert service.post({"prompt": "x" * 999}).status_code == 413  # natively it stays so


def test_a_body_over_the_cap_is_a_413() -> None:
    with fake_service(server={"max_body_bytes": 1024}) as service:
        error = error_of(service.post(completion("x" * 2000), COMPLETIONS), 413)
        assert (error["type"], error["code"]) == (INVALID, "request_too_large")


def test_not_json(service: FakeService) -> None:
    with service.client() as client:
        error = error_of(client.post(CHAT, content=b"{nope"), 400)
    assert (error["type"], error["param"]) == (INVALID, None)


def test_a_model_without_a_template() -> None:
    with fake_service(chat_template=None) as service:
        error = error_of(service.post(chat(), CHAT), 400)
        assert error["param"] == "messages"
        ok(service.post(completion(), COMPLETIONS))


def test_unavailable() -> None:
    with fake_service(loaded=False, server={"load_wait_s": 0}) as service:
        response = service.post(chat(), CHAT)
        error = error_of(response, 503)
        assert (error["type"], error["code"]) == ("server_error", "model_loading")
        assert int(response.headers["retry-after"]) >= 1
    with fake_service(load_error=ModelFileError("none.gguf: broken")) as service:
        error = error_of(service.post(chat(), CHAT), 503)
        assert (error["type"], error["code"]) == ("server_error", "model_unavailable")
        wait_until(lambda: service.errors)
        service.num_expected_errors = len(service.errors)


def test_a_bug_tells_nothing_and_has_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_service() as service:

        def fail(*args: object) -> None:
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(service.gateway, "resolve", fail)
        error = error_of(service.post(chat(), CHAT), 500)
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "secret" not in error["message"]
        wait_until(lambda: service.errors)
        service.num_expected_errors = 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nope", 404),
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1", 404),
    ],
)
def test_wrong_routes(service: FakeService, method: str, path: str, status: int) -> None:
    with service.client() as client:
        assert error_of(client.request(method, path), status)["type"] == INVALID


# -- ids -----------------------------------------------------------------------------------------


def test_every_answer_has_its_own_id(service: FakeService) -> None:
    responses = [
        service.post(chat(), CHAT),
        service.post(chat(stream=True), CHAT),
        service.post(chat(n=0), CHAT),
        service.get("/health"),
        service.get("/nope"),
        service.post({"prompt": "x", "parameters": {"max_tokens": 1}}),
    ]
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("req_[0-9a-f]{32}", each) for each in ids)


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("abc-1.2:3_X", True), ("x" * 128, True), ("x" * 129, False), ("a b", False)],
)
def test_a_proxys_id_is_kept_if_it_is_harmless(
    service: FakeService, given: str, is_kept: bool
) -> None:
    request = raw_request("GET", "/health", headers=f"X-Request-Id: {given}\r\n")
    with service.connect(request) as connection:
        head = connection.recv(65536).decode()
    (answered,) = re.findall(r"x-request-id: (.*)\r\n", head)
    assert (answered == given) == is_kept
