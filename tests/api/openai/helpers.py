"""Asking in OpenAI's dialect, and checking what every answer in it has."""

from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from llmserve.core import EventStream, Request
from tests.fakes import EOS, reference_greedy
from tests.serving import FakeService, sse_events

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]
DONE = "data: [DONE]\n\n"


def chat(**fields: Any) -> dict[str, Any]:
    """A greedy chat request of 4 tokens."""
    return {"messages": USER, "temperature": 0, "max_tokens": 4, "ignore_eos": True, **fields}


def completion(prompt: Any = "hello", **fields: Any) -> dict[str, Any]:
    """A greedy completion of 4 tokens."""
    return {"prompt": prompt, "temperature": 0, "max_tokens": 4, "ignore_eos": True, **fields}


def tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def call(arguments: str = "{}", **fields: Any) -> dict[str, Any]:
    """A call as an assistant's message has it."""
    function = {"name": "f", "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function, **fields}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def expected(prompt: str, num_tokens: int = 4) -> str:
    """The fake model's greedy continuation, which must not contain an end token."""
    tokens = reference_greedy(prompt.encode(), num_tokens)
    assert EOS not in tokens, "choose another prompt"
    return bytes(tokens).decode(errors="replace")


def ok(response: httpx2.Response) -> dict[str, Any]:
    """The body of an answer, after checking what all have."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body: dict[str, Any] = response.json()
    return body


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error, after checking the envelope."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    return error


def chunks(response: httpx2.Response) -> list[Any]:
    """Every chunk of a whole stream, after checking its end."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"]
    assert response.text.endswith(DONE)
    assert response.text.count("[DONE]") == 1
    return sse_events(response.text.removesuffix(DONE))


def script(
    monkeypatch: pytest.MonkeyPatch, service: FakeService, *streams: Sequence[Any]
) -> list[Request]:
    """Let the gateway answer with these events (or raise these errors) instead of the model's.

    Returns the list that the requests will be in.
    """
    requests: list[Request] = []

    async def generate(request: Request) -> EventStream:
        requests.append(request)
        for event in streams[len(requests) - 1]:
            if isinstance(event, Exception):
                raise event
            yield event

    monkeypatch.setattr(service.gateway, "generate", generate)
    return requests
