"""What llama-server's and vLLM's fields make an answer match."""

import json
import re
from typing import Any

import pytest

from tests.api.openai.helpers import CHAT, COMPLETIONS, USER, error_of, ok
from tests.serving import FakeService

DATE = r"20[0-9]{2}-0[1-9]"
GBNF = 'root ::= year "-" "0" [1-9]\nyear ::= "20" [0-9]{2}'
LARK = f"start: /{DATE}/"
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["xy"]}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip


def post(service: FakeService, path: str, **fields: Any) -> Any:
    text: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": "p"}
    return service.post({**text, "max_tokens": 50, "seed": 1, **fields}, path)


def text_of(service: FakeService, path: str, **fields: Any) -> str:
    (choice,) = ok(post(service, path, **fields))["choices"]
    assert choice["finish_reason"] == "stop"
    text: str = choice["message"]["content"] if path == CHAT else choice["text"]
    return text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": GBNF},
        {"grammar": LARK},
        {"structured_outputs": {"grammar": GBNF}},
        {"structured_outputs": {"regex": DATE}},
        {"structured_outputs": {"choice": ["2024-01", "2024-02"]}},
    ],
)
def test_the_answer_matches(service: FakeService, path: str, fields: dict[str, Any]) -> None:
    assert re.fullmatch(DATE, text_of(service, path, **fields))


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_a_schema_or_its_text(service: FakeService, schema: Any) -> None:
    text = text_of(service, COMPLETIONS, structured_outputs={"json": schema})
    assert json.loads(text) == {"a": "xy"}


def test_any_object(service: FakeService) -> None:
    fields = {"structured_outputs": {"json_object": True}, "max_tokens": 4}
    body = ok(post(service, COMPLETIONS, **fields))
    assert body["choices"][0]["text"].startswith("{")


def test_as_many_choices_as_there_may_be(service: FakeService) -> None:
    for words in ([f"{number:04}" for number in range(1024)], ["0"] * 1024):
        assert text_of(service, COMPLETIONS, structured_outputs={"choice": words}) in words


@pytest.mark.parametrize("word", ['"', "a\nb", "é", "start: x", "\\"])
def test_a_choice_is_what_it_says(service: FakeService, word: str) -> None:
    assert text_of(service, COMPLETIONS, structured_outputs={"choice": [word]}) == word


@pytest.mark.parametrize(
    "fields",
    [{"grammar": ""}, {"structured_outputs": {}}, {"structured_outputs": {"json_object": False}}],
)
def test_what_asks_for_nothing(service: FakeService, fields: dict[str, Any]) -> None:
    free = ok(post(service, COMPLETIONS, ignore_eos=True))["choices"][0]["text"]
    assert ok(post(service, COMPLETIONS, ignore_eos=True, **fields))["choices"][0]["text"] == free


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": "root ::= " + "(" * 60_000}, "grammar"),
        ({"grammar": "start: start"}, "grammar"),
        ({"grammar": "a" * 70_000}, "grammar"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": 1}}, "structured_outputs.json"),
        ({"structured_outputs": {"structural_tag": ""}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"grammar": GBNF, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"grammar": GBNF, "stop": "x"}, "stop"),
        ({"grammar": GBNF, "ignore_eos": True}, "ignore_eos"),
    ],
    ids=str,
)
def test_a_refusal_names_the_field(
    service: FakeService, fields: dict[str, Any], param: str
) -> None:
    error = error_of(post(service, COMPLETIONS, **fields), 400)
    assert error["param"] == param
    assert len(error["message"]) < 500


def test_a_format_and_a_grammar(service: FakeService) -> None:
    response = post(service, CHAT, response_format={"type": "json_object"}, grammar=GBNF)
    error = error_of(response, 400)
    assert error["param"] == "grammar"
    assert "response_format and grammar" in error["message"]
