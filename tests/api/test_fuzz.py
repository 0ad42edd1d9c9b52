"""Anything may be posted to /inference: the answer is never a 5xx, never late, never bare."""

from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.budget import examples
from tests.serving import FakeService, sse_events

pytestmark = pytest.mark.fuzz

# The shared service is the point: whatever came before must not matter.
bounded = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values that are right most of the time, else anything at all."""
    return st.integers(0, 9).flatmap(lambda n: strategy if n else json_values)


def some_of(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    wanted = st.fixed_dictionaries({}, optional={k: mostly(v) for k, v in fields.items()})
    stray = st.dictionaries(st.text(max_size=12), json_values, max_size=1)
    return st.integers(0, 19).flatmap(
        lambda n: wanted if n else st.tuples(wanted, stray).map(lambda pair: pair[0] | pair[1])
    )


text = st.text(max_size=60)
parameters = some_of(
    {
        "temperature": st.floats(-0.1, 2.1),
        "max_tokens": st.integers(0, 20) | st.integers(),
        "top_p": st.floats(-0.1, 1.1),
        "frequency_penalty": st.floats(-2.1, 2.1),
        "presence_penalty": st.floats(-2.1, 2.1),
        "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=17),
        "seed": st.integers(-1, 2**63),
        "top_k": st.integers(-1, 300) | st.integers(),
        "min_p": st.floats(-0.1, 1.1),
        "logit_bias": st.dictionaries(
            st.integers(-1, 300).map(str), st.floats(-101, 101), max_size=5
        ),
        "ignore_eos": st.booleans(),
    }
)
response_formats = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "regex", "grammar", "x"])},
    optional={
        "json_schema": st.fixed_dictionaries({"schema": json_values}),
        "regex": st.text(max_size=20),
        "grammar": st.text(max_size=20).map("start: {}".format),
    },
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.text(max_size=8), "content": text}), max_size=4
)
requests = some_of(
    {
        "model": st.sampled_from(["fake", "default", "nope", "../fake", ""]),
        "prompt": text,
        "messages": messages,
        "mode": st.sampled_from(["completion", "instruct", "chat", "poem"]),
        "system": text,
        "stream": st.booleans(),
        "details": st.booleans(),
        "parameters": parameters,
        "response_format": response_formats,
    }
)
valid_looking = st.fixed_dictionaries({"prompt": text, "parameters": parameters}) | (
    st.fixed_dictionaries({"messages": messages, "parameters": parameters})
)


@pytest.fixture(scope="module")
def client(service: FakeService) -> Iterator[httpx2.Client]:
    with service.client() as running:
        yield running


def check(client: httpx2.Client, body: bytes) -> None:
    """The answer is an answer, a stream with an end, or an error with its envelope."""
    response = client.post("/inference", content=body)
    assert response.status_code < 500, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        last = sse_events(response.text)[-1]
        assert list(last) == ["generated_text", "details"]
    elif response.status_code == 200:
        assert isinstance(response.json()["generated_text"], str)
    else:
        assert response.status_code in (400, 404, 413)
        error = response.json()["error"]
        assert list(error) == ["type", "code", "message", "param"]
        assert 0 < len(error["message"]) < 5000


@settings(bounded, max_examples=examples(200))
@given(requests | valid_looking)
@example({"prompt": "x", "parameters": {"seed": 2**64, "max_tokens": 1}})
@example({"prompt": "x", "stream": True, "parameters": {"max_tokens": 1, "temperature": 5e-324}})
@example({"prompt": "x", "parameters": {"max_tokens": 3, "temperature": 2, "min_p": 1, "top_k": 1}})
@example({"prompt": "x", "parameters": {"max_tokens": 3, "top_p": 5e-324, "temperature": 1}})
@example({"prompt": "x", "parameters": {"max_tokens": 3, "logit_bias": {str(2**31): 1}}})
@example({"prompt": "\x00", "mode": "completion", "parameters": {"max_tokens": 1}})
def test_requests_that_are_nearly_right(client: httpx2.Client, body: Any) -> None:
    check(client, msgspec.json.encode(body))


@settings(bounded, max_examples=examples(60))
@given(json_values)
def test_any_json(client: httpx2.Client, value: Any) -> None:
    check(client, msgspec.json.encode(value))


@settings(bounded, max_examples=examples(60))
@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"prompt":' * 50_000)
@example(b'{"prompt": "x", "parameters": {"max_tokens": 1' + b"0" * 5000 + b"}}")
def test_any_bytes(client: httpx2.Client, body: bytes) -> None:
    check(client, body)


@settings(bounded, max_examples=examples(60))
@given(requests | valid_looking, st.data())
def test_requests_with_a_damaged_byte(
    client: httpx2.Client, body: Any, data: st.DataObject
) -> None:
    encoded = bytearray(msgspec.json.encode(body))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    check(client, bytes(encoded))


@settings(bounded, max_examples=examples(60))
@given(st.lists(st.tuples(st.sampled_from(["parameters", "prompt", "messages"]), json_values)))
def test_repeated_keys(client: httpx2.Client, members: list[tuple[str, Any]]) -> None:
    body = ", ".join(f'"{key}": {msgspec.json.encode(value).decode()}' for key, value in members)
    check(client, f"{{{body}}}".encode())
