"""Anything may be posted to OpenAI's routes: never a 5xx, never bare, and every stream ends."""

from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.api.openai.helpers import CHAT, COMPLETIONS, DONE, allowed, call, named, tool
from tests.api.test_fuzz import bounded, json_values, some_of, text
from tests.budget import examples
from tests.serving import FakeService, fake_service

pytestmark = pytest.mark.fuzz

shared: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["fake", "default", "nope", "../fake", ""]),
    "n": st.integers(0, 4),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "temperature": st.floats(-0.1, 2.1),
    "top_p": st.floats(-0.1, 1.1),
    "frequency_penalty": st.floats(-2.1, 2.1),
    "presence_penalty": st.floats(-2.1, 2.1),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "seed": st.integers(-(2**63), 2**63),
    "logit_bias": st.dictionaries(st.integers(-1, 300).map(str), st.floats(-101, 101), max_size=4),
    "top_k": st.integers(-2, 300),
    "min_p": st.floats(-0.1, 1.1),
    "ignore_eos": st.booleans(),
    "user": text,
    "grammar": st.sampled_from(['root ::= "a" | root "b"', "start: /a+/", "root ::= ("]) | text,
    "structured_outputs": st.dictionaries(
        st.sampled_from(["regex", "grammar", "choice", "json", "json_object"]),
        text | json_values,
        max_size=2,
    ),
}
parts = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": text}),
    max_size=3,
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
            "content": text | parts | st.none(),
        },
        optional={
            "tool_calls": st.lists(
                st.builds(call, st.sampled_from(["{}", '{"a": 1}', "", "[1]", "{"])), max_size=2
            ),
            "tool_call_id": text,
            "reasoning_content": text,
        },
    ),
    max_size=3,
)
schemas = json_values | st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "object", "array"]),
        "properties": st.dictionaries(text, json_values, max_size=3) | json_values,
        "required": st.lists(text, max_size=2) | json_values,
        "x-guidance": json_values,
    },
)
tools = st.lists(st.builds(tool, st.sampled_from("fgh"), parameters=schemas), max_size=3)
choices = st.sampled_from(["none", "auto", "required", named("f"), allowed("auto", "f", "g")])
chats = some_of(
    {
        **shared,
        "max_completion_tokens": st.integers(0, 20),
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(-1, 21),
        "response_format": st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "json_object", "json_schema"])},
            optional={"json_schema": json_values},
        ),
        "tools": json_values | tools,
        "tool_choice": choices,
        "parallel_tool_calls": st.booleans(),
        "reasoning_effort": st.sampled_from(["none", "low"]),
        "chat_template_kwargs": json_values,
    }
)
prompts = (
    text
    | st.lists(text, max_size=3)
    | st.lists(st.integers(-1, 300), max_size=5)
    | st.lists(st.lists(st.integers(0, 300), max_size=5), max_size=3)
    | json_values
)
completions = some_of(
    {
        **shared,
        "echo": st.booleans(),
        "max_tokens": st.integers(-1, 20),
        "logprobs": st.integers(-1, 6),
        "best_of": st.integers(0, 3),
        "suffix": text,
    }
)


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    """With room for a prompt that describes tools."""
    with fake_service(num_cells=4096, max_batch=512) as running:
        yield running
        running.wait_idle()


@pytest.fixture(scope="module")
def client(service: FakeService) -> Iterator[httpx2.Client]:
    with service.client() as running:
        yield running


def check(client: httpx2.Client, path: str, body: bytes) -> None:
    """The answer is an answer, a stream with an end, or an error with its envelope."""
    response = client.post(path, content=body)
    assert response.status_code < 500, response.text
    assert response.headers["x-request-id"]
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith(DONE), response.text
    elif response.status_code == 200:
        assert response.json()
    else:
        assert response.status_code in (400, 404, 413)
        error = response.json()["error"]
        assert sorted(error) == ["code", "message", "param", "type"]
        assert 0 < len(error["message"]) < 5000


@settings(bounded, max_examples=examples(150))
@given(messages, chats)
@example([{"role": "user", "content": "x"}], {"seed": 2**63 - 1, "n": 2, "max_tokens": 1})
@example([{"role": "user", "content": "x"}], {"top_p": 0, "max_tokens": 1, "temperature": 2})
def test_chats(client: httpx2.Client, messages: Any, fields: dict[str, Any]) -> None:
    body = {"max_tokens": 6, "messages": messages, **fields}
    check(client, CHAT, msgspec.json.encode(body))


@settings(bounded, max_examples=examples(100))
@given(tools, choices, st.booleans(), st.integers(1, 60))
def test_tools(
    client: httpx2.Client, tools: Any, choice: Any, stream: bool, max_tokens: int
) -> None:
    user = [{"role": "user", "content": "x"}]
    fields = {"tools": tools, "tool_choice": choice, "stream": stream, "max_tokens": max_tokens}
    check(client, CHAT, msgspec.json.encode({"messages": user, **fields}))


@settings(bounded, max_examples=examples(150))
@given(prompts, completions)
def test_completions(client: httpx2.Client, prompt: Any, fields: dict[str, Any]) -> None:
    check(client, COMPLETIONS, msgspec.json.encode({"max_tokens": 6, "prompt": prompt, **fields}))


@settings(bounded, max_examples=examples(100))
@given(
    st.sampled_from(["/tokenize", "/detokenize", "/apply-template", CHAT, COMPLETIONS]),
    some_of(
        {
            "content": text,
            "prompt": text,
            "tokens": st.lists(st.integers(-1, 300)),
            "messages": messages,
            "add_special": st.booleans(),
        }
    )
    | json_values,
)
def test_the_text_routes_and_any_json(client: httpx2.Client, path: str, body: Any) -> None:
    if isinstance(body, dict) and path in (CHAT, COMPLETIONS):
        body = {"max_tokens": 3, **body}  # or it may go on to the end of the context
    check(client, path, msgspec.json.encode(body))


@settings(bounded, max_examples=examples(60))
@given(st.sampled_from([CHAT, COMPLETIONS]), chats, st.data())
def test_a_damaged_byte(
    client: httpx2.Client, path: str, body: dict[str, Any], data: st.DataObject
) -> None:
    text = {"messages": [{"role": "user", "content": "ab"}]} if path == CHAT else {"prompt": "a"}
    encoded = bytearray(msgspec.json.encode({"max_tokens": 3, **text, **body}))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    check(client, path, bytes(encoded))
