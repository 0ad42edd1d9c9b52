"""What a model thinks is no part of the generated text of POST /inference."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.chat.templates import QWEN3
from tests.serving import FakeService, fake_service, sse_events

ANSWER = "<think>\nHm, hm.\n</think>\n\nHello."


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    with fake_service(answer=ANSWER, num_cells=1024, chat_template=QWEN3) as running:
        yield running


def ask(service: FakeService, **fields: Any) -> Any:
    body = {"prompt": "hi", "parameters": {"temperature": 0, "max_tokens": 100}, **fields}
    response = service.post(body)
    assert response.status_code == 200, response.text
    return sse_events(response.text) if fields.get("stream") else response.json()


@pytest.mark.parametrize("mode", ["instruct", "chat"])
def test_reasoning_is_in_the_details(service: FakeService, mode: str) -> None:
    prompt: dict[str, Any] = {"mode": mode}
    if mode == "chat":
        prompt = {"messages": [{"role": "user", "content": "hi"}], "prompt": None}
    assert ask(service, **prompt) == {"generated_text": "Hello."}
    body = ask(service, details=True, **prompt)
    assert body["generated_text"] == "Hello."
    assert body["details"]["reasoning"] == "Hm, hm."


def test_a_stream_has_it_in_events_of_its_own(service: FakeService) -> None:
    *parts, last = ask(service, stream=True)
    assert {tuple(part) for part in parts} == {("delta",), ("reasoning",)}
    assert "".join(part.get("reasoning", "") for part in parts) == "Hm, hm."
    assert "".join(part.get("delta", "") for part in parts) == "Hello."
    assert last["generated_text"] == "Hello."
    assert last["details"]["reasoning"] == "Hm, hm."


def test_a_completion_is_all_text(service: FakeService) -> None:
    body = ask(service, mode="completion", details=True)
    assert body["generated_text"] == ANSWER
    assert "reasoning" not in body["details"]
