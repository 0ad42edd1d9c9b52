"""What is too much of something is refused before any work, in both dialects."""

from typing import Any

import httpx2
import msgspec
import pytest

from llmserve.api.http.decode import decode_body
from llmserve.api.openai.chat_schemas import ChatRequest
from tests.serving import FakeService

NATIVE, CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS = (
    "/inference",
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
)
TURN = {"role": "user", "content": "x"}
BASES: dict[str, dict[str, Any]] = {
    NATIVE: {"prompt": "x"},
    CHAT: {"messages": [TURN]},
    COMPLETIONS: {"prompt": "x"},
    RESPONSES: {"input": "x"},
    EMBEDDINGS: {"input": "x"},
}
TOOL = {"type": "function", "function": {"name": "f"}}
BIAS = {str(token): 1 for token in range(1025)}
PARTS = [{"type": "text", "text": "x"}] * 1025


def post(service: FakeService, path: str, body: bytes) -> httpx2.Response:
    with service.client() as client:
        return client.post(path, content=body)


def error_of(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    assert response.headers["x-request-id"]
    return dict(response.json()["error"])


# -- how many, how long --------------------------------------------------------------------------

TOO_MUCH = [
    # path; the field; a value that is one too many or too long
    (NATIVE, "messages", [TURN] * 4097),
    (CHAT, "messages", [TURN] * 4097),
    (RESPONSES, "input", [TURN] * 4097),
    (CHAT, "messages[0].content", PARTS),
    (NATIVE, "parameters.stop", ["x"] * 17),
    (NATIVE, "parameters.stop", "x" * 1025),
    (CHAT, "stop", ["x"] * 17),
    (COMPLETIONS, "stop", ["x" * 1025]),
    (RESPONSES, "stop", ["x"] * 17),
    (CHAT, "tools", [TOOL] * 129),
    (RESPONSES, "tools", [{"type": "function", "name": "f"}] * 129),
    (NATIVE, "parameters.logit_bias", BIAS),
    (CHAT, "logit_bias", BIAS),
    (COMPLETIONS, "logit_bias", BIAS),
    (RESPONSES, "logit_bias", BIAS),
    (CHAT, "n", 17),
    (COMPLETIONS, "n", 17),
    (COMPLETIONS, "best_of", 17),
    (COMPLETIONS, "prompt", ["x"] * 65),
    (EMBEDDINGS, "input", ["x"] * 2049),
    (NATIVE, "response_format.regex", "x" * 65537),
    (NATIVE, "response_format.grammar", "x" * 65537),
    (CHAT, "grammar", "x" * 65537),
    (CHAT, "structured_outputs.regex", "x" * 65537),
    (CHAT, "structured_outputs.choice", ["x"] * 1025),
]


def body_with(path: str, field: str, value: Any) -> dict[str, Any]:
    """The base of `path` with `value` at `field`."""
    if field == "messages[0].content":
        return {"messages": [{"role": "user", "content": value}]}
    group, _, name = field.rpartition(".")
    if not group:
        return {**BASES[path], name: value}
    kind = {"type": name} if group == "response_format" else {}
    return {**BASES[path], group: {**kind, name: value}}


@pytest.mark.parametrize(("path", "field", "value"), TOO_MUCH)
def test_one_too_many_is_refused_by_name(
    service: FakeService, path: str, field: str, value: Any
) -> None:
    response = post(service, path, msgspec.json.encode(body_with(path, field, value)))
    error = error_of(response)
    assert error["param"] in (field, f"{field}[0]", f"{field}[...]")
    assert len(error["message"]) < 500


# -- how deep, how wide --------------------------------------------------------------------------

DEPTH = 1_000_000
DEEP = [b"[" * DEPTH, b'{"a":' * DEPTH, b"[" * DEPTH + b"]" * DEPTH]
FIELDS = {
    NATIVE: ["prompt", "parameters", "response_format", "zzz"],
    CHAT: ["messages", "tools", "metadata", "chat_template_kwargs", "user", "functions"],
    COMPLETIONS: ["prompt", "user", "logit_bias", "structured_outputs"],
    RESPONSES: ["input", "tools", "text", "metadata", "user"],
    EMBEDDINGS: ["input", "user"],
}
PLACES = [(path, field) for path, fields in FIELDS.items() for field in fields]


def with_raw(path: str, field: str, value: bytes) -> bytes:
    """The base of `path`, with the text `value` for `field`."""
    base = {name: value for name, value in BASES[path].items() if name != field}
    head = msgspec.json.encode(base)[:-1] + (b"," if base else b"")
    return head + b'"%s":%s}' % (field.encode(), value)


@pytest.mark.parametrize(("path", "field"), PLACES)
def test_a_million_levels_are_a_400(service: FakeService, path: str, field: str) -> None:
    for value in DEEP:
        assert len(error_of(post(service, path, with_raw(path, field, value)))["message"]) < 500
    assert service.get("/health").status_code == 200


@pytest.mark.parametrize("path", BASES)
def test_a_body_of_nothing_but_levels_is_a_400(service: FakeService, path: str) -> None:
    for value in DEEP:
        error_of(post(service, path, value))


HUGE = [
    b"1e999",
    b"-1e999",
    b"9" * 100_000,
    b"1" + b"0" * 400,
    b"0." + b"1" * 100_000,
    b"1e-999999",
]


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_numbers_of_any_size_are_answered(service: FakeService, value: bytes) -> None:
    fields = {
        NATIVE: ["stream", "zzz"],
        CHAT: ["seed", "temperature", "n", "max_tokens", "user", "functions"],
        COMPLETIONS: ["prompt", "logprobs"],
        RESPONSES: ["top_p", "input"],
        EMBEDDINGS: ["dimensions"],
    }
    for path, names in fields.items():
        for name in names:
            base = (
                b'"max_tokens":1,' if path in (CHAT, COMPLETIONS) and name != "max_tokens" else b""
            )
            body = b"{" + base + with_raw(path, name, value)[1:]
            assert post(service, path, body).status_code in (200, 400)


@pytest.mark.parametrize("path", [NATIVE, CHAT, COMPLETIONS])
def test_of_a_repeated_key_the_last_counts(service: FakeService, path: str) -> None:
    """As for everybody who reads JSON in Python or JavaScript."""
    once = b'"max_tokens":2,"temperature":0,"ignore_eos":true'
    twice = b'"max_tokens":9,"temperature":2,' + once
    answers = []
    for fields in (once, twice):
        extra = b'"parameters":{%s}' % fields if path == NATIVE else fields
        body = msgspec.json.encode(BASES[path])[:-1] + b"," + extra + b"}"
        answer = post(service, path, body).json()
        answers.append(answer.get("generated_text") or answer["choices"])
    assert answers[0] == answers[1]


def test_what_cannot_change_the_answer_is_not_even_built() -> None:
    """Objects for all of it would hold up the streams for half a second."""
    user = b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}"
    wire = decode_body(with_raw(CHAT, "user", user), ChatRequest)
    assert isinstance(wire.user, msgspec.Raw)


def test_the_wrong_value_is_not_looked_up_in_a_large_body(service: FakeService) -> None:
    text = b'"' + b"x" * 300_000 + b'"'
    body = with_raw(NATIVE, "prompt", text)[:-1] + b',"stream":3}'
    assert error_of(post(service, NATIVE, body))["message"] == (
        "stream is wrong; it must be true or false"
    )
