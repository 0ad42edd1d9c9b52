"""Tools and thoughts of chat completions, over a fake model that says what it is told to."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from llmserve import core
from tests.api.openai.helpers import CHAT, allowed, chunks, error_of, named, ok, tool
from tests.api.openai.test_chat import converted
from tests.chat.templates import QWEN3
from tests.serving import FakeService, fake_service

CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
TOOLS = [tool("weather", description="The weather.", parameters=CITY), tool("now")]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
THOUGHT = "<think>\nHm.\n</think>\n\n"


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    with fake_service(answer="", num_cells=8192, max_batch=512, chat_template=QWEN3) as running:
        running.post({"prompt": "load it", "parameters": {"max_tokens": 1}})
        yield running


def ask(service: FakeService, answer: str, **fields: Any) -> httpx2.Response:
    service.runtime.answer = answer  # type: ignore[attr-defined]
    user = [{"role": "user", "content": "hi"}]
    body = {"messages": user, "tools": TOOLS, "temperature": 0, "max_tokens": 300, **fields}
    return service.post(body, CHAT)


def test_an_answer_with_calls(service: FakeService) -> None:
    body = ok(ask(service, f"{THOUGHT}{CALL}\n{NOW}"))
    (choice,) = body["choices"]
    calls = choice["message"].pop("tool_calls")
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "reasoning_content": "Hm.",
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    ids = [call.pop("id") for call in calls]
    assert all(re.fullmatch("call_[a-zA-Z0-9]{24}", each) for each in ids)
    assert ids[0] != ids[1]
    assert calls == [
        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]
    usage = body["usage"]
    num_thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < num_thought < usage["completion_tokens"]


def test_an_answer_without_calls(service: FakeService) -> None:
    (choice,) = ok(ask(service, "No need."))["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "No need.",
        "refusal": None,
        "annotations": [],
    }
    assert choice["finish_reason"] == "stop"


def test_a_stream_with_calls(service: FakeService) -> None:
    answer = f"{THOUGHT}Look: {CALL}\n{NOW}"
    options = {"include_usage": True}
    parts = chunks(ask(service, answer, stream=True, stream_options=options))
    assert parts[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    deltas = [part["choices"][0]["delta"] for part in parts[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert parts[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Look:"
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    assert all(sorted(delta) == ["tool_calls"] for delta in deltas if "tool_calls" in delta)
    for index, name, arguments in ((0, "weather", '{"city": "Oslo"}'), (1, "now", "{}")):
        first, *rest = [piece for piece in pieces if piece["index"] == index]
        assert sorted(first) == ["function", "id", "index", "type"]
        assert first["type"] == "function"
        assert first["function"] == {"name": name, "arguments": ""}
        assert all(sorted(piece) == ["function", "index"] for piece in rest)
        assert len(rest) == len(arguments)  # every token of this model is a character
        assert "".join(piece["function"]["arguments"] for piece in rest) == arguments


@pytest.mark.parametrize("stream", [False, True])
def test_choices_have_calls_of_their_own(service: FakeService, stream: bool) -> None:
    response = ask(service, CALL, n=2, stream=stream)
    if not stream:
        calls = [c["message"]["tool_calls"] for c in ok(response)["choices"]]
        assert [[call["function"]["name"] for call in each] for each in calls] == [["weather"]] * 2
        assert calls[0][0]["id"] != calls[1][0]["id"]
        return
    names = [
        (choice["index"], call["function"]["name"])
        for part in chunks(response)
        for choice in part["choices"]
        for call in choice["delta"].get("tool_calls", ())
        if "name" in call["function"]
    ]
    assert sorted(names) == [(0, "weather"), (1, "weather")]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"tool_choice": "required"}, {"weather", "now"}),
        ({"tool_choice": named("weather")}, {"weather"}),
        ({"tool_choice": named("now")}, {"now"}),
        ({"tool_choice": allowed("required", "now")}, {"now"}),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, {"weather"}),
    ],
)
def test_a_choice_is_enforced(service: FakeService, fields: Any, names: set[str]) -> None:
    """Of a model that would only talk."""
    body = ok(ask(service, "Never!", parallel_tool_calls=False, **fields))
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in names | {"now"}
    arguments = json.loads(call["function"]["arguments"])
    assert arguments in ({"city": "Oslo"}, {"city": "Rome"}, {})
    assert bool(arguments) == (call["function"]["name"] == "weather")


def test_none_is_text(service: FakeService) -> None:
    (choice,) = ok(ask(service, CALL, tool_choice="none"))["choices"]
    assert choice["message"]["content"] == CALL
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_a_call_cut_short_is_a_length(service: FakeService) -> None:
    (choice,) = ok(ask(service, CALL, max_tokens=len(CALL) - 25))["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert '{"city": "Oslo"}'.startswith(call["function"]["arguments"])


def test_the_conversation_goes_back_into_the_template(service: FakeService) -> None:
    """As it came, with the result; null content and nulls elsewhere are fine."""
    message = ok(ask(service, f"{THOUGHT}{CALL}"))["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "12 C"}
    messages = [{"role": "user", "content": "hi"}, message, result]
    body = {"messages": messages, "tools": TOOLS}
    prompt = ok(service.post(body, "/apply-template"))["prompt"]
    assert f"<|im_start|>assistant\n{CALL}<|im_end|>" in prompt
    assert "<tool_response>\n12 C\n</tool_response>" in prompt
    assert '"name": "weather"' in prompt
    ok(ask(service, "12 degrees.", messages=messages))


def test_effort_and_the_templates_variables(service: FakeService) -> None:
    messages = [{"role": "user", "content": "hi"}]
    closed = "<think>\n\n</think>\n\n"

    def prompt(**fields: Any) -> str:
        text: str = ok(service.post({"messages": messages, **fields}, "/apply-template"))["prompt"]
        return text

    assert not prompt().endswith(closed)
    assert not prompt(reasoning_effort="low").endswith(closed)
    assert prompt(reasoning_effort="none").endswith(closed)
    assert prompt(chat_template_kwargs={"enable_thinking": False}).endswith(closed)
    both = {"enable_thinking": False}
    assert prompt(reasoning_effort="high", chat_template_kwargs=both).endswith(closed)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_enforced(service: FakeService, stream: bool) -> None:
    tools = [*TOOLS, tool("bad", parameters={"type": "object", "not": {}})]
    error = error_of(ask(service, "x", tools=tools, stream=stream), 400)
    assert error["param"] == "tools[2].function.parameters"


def test_fields_reach_the_core() -> None:
    request = converted(tools=TOOLS, reasoning_effort="low", chat_template_kwargs={"a": 1})
    assert request.reasoning_effort == "low"
    assert request.template_variables == {"a": 1}
    assert request.tool_use is not None
    weather, now = request.tool_use.tools
    assert (weather.name, weather.description) == ("weather", "The weather.")
    assert json.loads(weather.parameters or "") == CITY
    assert now == core.Tool("now")
    assert (request.tool_use.choice, request.tool_use.parallel) == ("auto", True)
    assert converted(tools=[]).tool_use is None
