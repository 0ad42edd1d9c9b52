"""`response_format` of POST /inference, over the fake."""

import json
import re
from typing import Any

import pytest

from tests.serving import FakeService, http_client, sse_events

BIT = {"type": "json_schema", "json_schema": {"name": "bit", "schema": {"enum": [0, 1]}}}
DATE = {"type": "regex", "regex": "20[0-9]{2}-0[1-9]-[12][0-9]"}


def post(service: FakeService, **fields: Any) -> Any:
    body = {"prompt": "p", "parameters": {"max_tokens": 50}, "details": True} | fields
    with http_client(service.base_url) as client:
        return client.post("/inference", json=body)


def answer(service: FakeService, **fields: Any) -> tuple[str, str]:
    """Text and finish reason."""
    response = post(service, **fields)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["generated_text"], body["details"]["finish_reason"]


def refused(service: FakeService, wanted: Any, **fields: Any) -> dict[str, Any]:
    response = post(service, response_format=wanted, **fields)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_each_type(service: FakeService) -> None:
    assert answer(service, response_format=BIT)[0] in ("0", "1")
    text, reason = answer(service, response_format=DATE)
    assert re.fullmatch(DATE["regex"], text)
    assert reason == "stop"
    grammar = {"type": "grammar", "grammar": 'start: "yes" | "no"'}
    assert answer(service, response_format=grammar)[0] in ("yes", "no")
    grammar = {"type": "grammar", "grammar": 'root ::= "yes" | "no"'}
    for syntax in (None, "gbnf"):
        assert answer(service, response_format={**grammar, "syntax": syntax})[0] in ("yes", "no")
    assert answer(service, response_format={"type": "json_object"})[0].startswith("{")


def test_text_and_null_change_nothing(service: FakeService) -> None:
    free = answer(service, parameters={"max_tokens": 9, "seed": 1})
    for wanted in ({"type": "text"}, None):
        got = answer(service, response_format=wanted, parameters={"max_tokens": 9, "seed": 1})
        assert got == free


def test_stream(service: FakeService) -> None:
    *deltas, last = sse_events(post(service, response_format=DATE, stream=True).text)
    assert re.fullmatch(DATE["regex"], last["generated_text"])
    assert "".join(delta["delta"] for delta in deltas) == last["generated_text"]


def test_schema_reaches_the_engine_as_it_was_written(service: FakeService) -> None:
    """Order and escapes included: `b` before `a`, and a key beyond ASCII."""
    properties = {name: {"const": 1} for name in ("b", "é", "a")}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    wanted = {"type": "json_schema", "json_schema": {"schema": {**schema, **CLOSED}}}
    text, reason = answer(service, response_format=wanted, parameters={"max_tokens": 400})
    assert reason == "stop"
    assert list(json.loads(text)) == ["b", "é", "a"]


CLOSED = {"additionalProperties": False}


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({}, "response_format.type"),
        ("json_object", "response_format"),
        ({"type": "text", "schema": {}}, "response_format.schema"),
        ({"type": "regex"}, "response_format.regex"),
        ({"type": "regex", "regex": ""}, "response_format.regex"),
        ({"type": "regex", "regex": "("}, "response_format.regex"),
        ({"type": "regex", "regex": "a" * 2**20}, "response_format.regex"),
        ({"type": "grammar", "grammar": "start: start"}, "response_format.grammar"),
        ({"type": "grammar", "grammar": "root ::= ("}, "response_format.grammar"),
        (
            {"type": "grammar", "grammar": 'root ::= "a"', "syntax": "lark"},
            "response_format.grammar",
        ),
        ({"type": "grammar", "grammar": "x", "syntax": "ebnf"}, "response_format.syntax"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": 1}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "strikt": True}},
            "response_format.json_schema.strikt",
        ),
    ],
)
def test_400_names_the_field(service: FakeService, wanted: Any, param: str) -> None:
    error = refused(service, wanted)
    assert error["param"] == param
    assert param in error["message"]


def test_unknown_type_tells_the_known(service: FakeService) -> None:
    message = refused(service, {"type": "xml"})["message"]
    for name in ("text", "json_object", "json_schema", "regex", "grammar"):
        assert name in message


@pytest.mark.parametrize("parameters", [{"stop": "x"}, {"ignore_eos": True}])
def test_contradictions(service: FakeService, parameters: dict[str, Any]) -> None:
    (name,) = parameters
    assert refused(service, DATE, parameters=parameters)["param"] == f"parameters.{name}"


@pytest.mark.parametrize("opening", ["[", '{"not":', '{"a":['])
def test_deep_bodies_leave_the_server_alive(service: FakeService, opening: str) -> None:
    """The body's decoder meets them before the constraint's checks do."""
    schema = opening * 60_000 + "1" + "".join({"[": "]", "{": "}"}.get(c, "") for c in
                                              reversed(opening)) * 60_000  # fmt: skip
    body = '{"prompt":"p","response_format":{"type":"json_schema","json_schema":{"schema":'
    with http_client(service.base_url) as client:
        response = client.post("/inference", content=body + schema + "}}}")
        assert response.status_code == 400
    assert answer(service, response_format=BIT)[1] == "stop"
