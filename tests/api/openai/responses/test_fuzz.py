"""Anything may be posted to /v1/responses: never a 5xx, never bare, and every stream ends."""

from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from tests.api.test_fuzz import bounded, mostly, some_of, text
from tests.budget import examples
from tests.serving import fake_service

pytestmark = pytest.mark.fuzz

PATH = "/v1/responses"
ids = st.sampled_from(["a", "b"])
parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text"] * 9 + ["input_image"]), "text": text}
    ),
    max_size=2,
)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "developer"] * 4 + ["tool"]),
        "content": text | parts,
    }
)
calls = st.fixed_dictionaries(
    {
        "type": st.just("function_call"),
        "call_id": ids,
        "name": st.just("look"),
        "arguments": st.sampled_from(["{}", '{"a": [1]}', ""] * 4 + ["[]", "{"]),
    }
)
outputs = st.fixed_dictionaries(
    {"type": st.just("function_call_output"), "call_id": ids, "output": text | parts}
)
thoughts = st.fixed_dictionaries(
    {
        "type": st.just("reasoning"),
        "summary": st.just([]),
        "content": st.lists(
            st.fixed_dictionaries({"type": st.just("reasoning_text"), "text": text}), max_size=2
        ),
    }
)
items = st.lists(
    messages | calls | outputs | thoughts | some_of({"type": text, "id": text}), max_size=4
)
tools = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["function"] * 9 + ["web_search"]), "name": ids},
        optional={"parameters": mostly(st.just({"type": "object"})), "strict": st.booleans()},
    ),
    max_size=2,
)
fields = some_of(
    {
        "instructions": text,
        "stream": st.booleans(),
        "tools": tools,
        "tool_choice": st.sampled_from(["none", "auto"] * 4 + ["required", "any"])
        | st.fixed_dictionaries({"type": st.just("function"), "name": ids}),
        "parallel_tool_calls": st.booleans(),
        "text": st.fixed_dictionaries(
            {},
            optional={"format": st.fixed_dictionaries({"type": st.just("json_object")})},
        ),
        "reasoning": st.fixed_dictionaries(
            {"effort": st.sampled_from(["none"] * 9 + ["low", "x"])}
        ),
        "top_logprobs": st.integers(-1, 21).map(abs),
        "max_output_tokens": st.integers(1, 12),
        "previous_response_id": st.sampled_from([None] * 9 + ["x"]),
        "metadata": st.dictionaries(text, text, max_size=2),
    }
)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    """With room for a prompt that describes tools."""
    with fake_service(num_cells=4096, max_batch=512) as service, service.client() as running:
        yield running
        service.wait_idle()


def check(client: httpx2.Client, body: bytes) -> None:
    """The answer is a response, whole or at the end of a stream, or an error with its envelope."""
    response = client.post(PATH, content=body)
    assert response.headers["x-request-id"]
    if response.headers["content-type"].startswith("text/event-stream"):
        last = response.text.removesuffix("\n\n").rpartition("\ndata: ")[2]
        answer = msgspec.json.decode(last)["response"]
        assert answer["status"] in ("completed", "incomplete"), response.text
        Response.model_validate(answer)
    elif response.status_code == 200:
        Response.model_validate(response.json())
    else:
        assert response.status_code in (400, 404, 413), response.text
        error = response.json()["error"]
        assert sorted(error) == ["code", "message", "param", "type"]
        assert 0 < len(error["message"]) < 5000


@settings(bounded, max_examples=examples(150))
@given(mostly(text | items), fields)
def test_items_and_fields(client: httpx2.Client, given_input: Any, more: dict[str, Any]) -> None:
    body = {"max_output_tokens": 6, "input": given_input, **more}
    check(client, msgspec.json.encode(body))


@settings(bounded, max_examples=examples(60))
@given(items, fields, st.data())
def test_a_damaged_byte(
    client: httpx2.Client, given_input: Any, more: dict[str, Any], data: st.DataObject
) -> None:
    body = {"max_output_tokens": 3, "input": given_input, **more}
    encoded = bytearray(msgspec.json.encode(body))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    check(client, bytes(encoded))


def test_the_same_service_still_answers(client: httpx2.Client) -> None:
    check(client, msgspec.json.encode({"input": "hi", "max_output_tokens": 3}))
