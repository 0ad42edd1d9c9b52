"""The grammar of calls: what it takes is what the parser reads, and the model's format."""

import contextlib
import functools
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from llmserve.chat.prompted_tools import write_calls
from llmserve.chat.tools.formats.detect import FORMATS
from llmserve.chat.tools.formats.model import Format, markers_of, states_of
from llmserve.chat.tools.grammar import call_grammar
from llmserve.chat.tools.parser import Parser
from llmserve.chat.tools.schemas import argument_schema, types_of, value_types
from llmserve.core import Tool, ToolCall, ToolUse
from llmserve.engine.structured.grammar import SCHEMA_OPTIONS
from llmserve.errors import InvalidRequestError
from tests.api.test_fuzz import json_values
from tests.chat.tools.understood import run, understand
from tests.fakes import EOS, FakeRuntime

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "level": {"enum": ["low", 'très "haut"', "a/b\\c"]},
        "flags": {"type": "array", "items": {"$ref": "#/$defs/flag"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["text"],
    "$defs": {"flag": {"type": "boolean"}},
}
TOOLS = (Tool("note", None, json.dumps(SCHEMA)), Tool("note.all"), Tool("any-thing", "", "{}"))
CONTROL_TOKENS = {  # the formats whose markers are control tokens in real vocabularies
    "mistral",
    "mistral-array",
    "deepseek",
    "deepseek-3.1",
    "llama3",
    "harmony",
}

texts = st.text('ab <>\n"\\é}{', max_size=12)
arguments = st.fixed_dictionaries(
    {"text": texts},
    optional={
        "count": st.integers(-5, 5000),
        "level": st.sampled_from(SCHEMA["properties"]["level"]["enum"]),
        "flags": st.lists(st.booleans(), max_size=3),
        "note": st.none() | st.text("abc ", min_size=1, max_size=5),
    },
).map(lambda values: {key: values[key] for key in SCHEMA["properties"] if key in values})
calls: st.SearchStrategy[list[tuple[str, Any]]] = st.lists(
    st.tuples(st.just("note"), arguments) | st.sampled_from([("note.all", {}), ("any-thing", {})]),
    min_size=1,
    max_size=3,
)


def runtime_of(written: Format, *, with_controls: bool) -> FakeRuntime:
    markers = (
        [m for m in markers_of(written, None, with_calls=True) if len(m) > 3]
        if with_controls
        else []
    )
    return FakeRuntime(controls=markers)


def controls_of(runtime: FakeRuntime, written: Format) -> dict[str, int]:
    found = {m: runtime.find_marker(m) for m in markers_of(written, None, with_calls=True)}
    return {text: marker.token for text, marker in found.items() if marker}


@functools.cache
def tokenizer_of(vocab_size: int) -> LLTokenizer:
    return FakeRuntime(controls=[f"<{i}>" for i in range(vocab_size - EOS - 1)]).grammar_tokenizer()


def matcher_of(runtime: FakeRuntime, grammar: str) -> LLMatcher:
    tokenizer = tokenizer_of(runtime.info.vocab_size)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


@pytest.mark.parametrize("with_controls", [False, True])
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(said=st.sampled_from(["", "Hm <b> [x] "]), wanted=calls, required=st.booleans())
def test_what_is_written_is_taken_and_read(
    name: str, with_controls: bool, said: str, wanted: list[tuple[str, Any]], required: bool
) -> None:
    written = FORMATS[name]
    if written.writing.most == 1:
        wanted = wanted[:1]
    if required or not written.writing.trigger or written.has_channels:
        said = ""
    text = said + write_calls(
        [ToolCall("", tool, json.dumps(values, ensure_ascii=False)) for tool, values in wanted],
        written.writing,
    )
    runtime = runtime_of(written, with_controls=with_controls and name in CONTROL_TOKENS)
    use = ToolUse(TOOLS, choice="required" if required else "auto")
    grammar = call_grammar(use, written, controls_of(runtime, written), options=SCHEMA_OPTIONS)
    matcher = matcher_of(runtime, grammar)
    for token in runtime.tokenize(text, add_special=False):
        assert matcher.consume_token(token), (text, matcher.get_error()[:200])
    assert matcher.is_accepting()

    parser = Parser(states_of(written, None, with_calls=True), value_types=value_types(TOOLS))
    found = understand(run(parser, [text]))
    assert found.text == said.rstrip()
    assert [(tool, json.loads(values)) for tool, values in found.calls] == _as_read(wanted, written)


def _as_read(wanted: list[tuple[str, Any]], written: Format) -> list[tuple[str, Any]]:
    """Bare strings that look like null are null where they may be."""
    if written.writing.arguments == "json":
        return wanted
    return [(tool, values | _nulls(values)) for tool, values in wanted]


def _nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"note": None} if values.get("note") == "null" else {}


@pytest.mark.parametrize("name", FORMATS)
def test_required_takes_nothing_else(name: str) -> None:
    written = FORMATS[name]
    runtime = FakeRuntime()
    use = ToolUse(TOOLS, choice="required")
    matcher = matcher_of(runtime, call_grammar(use, written, {}, options=SCHEMA_OPTIONS))
    assert not matcher.is_accepting()
    assert not matcher.consume_token(ord("x"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_tool_is_called_once(name: str) -> None:
    written = FORMATS[name]
    use = ToolUse(TOOLS, choice="required", name="note.all")
    matcher = matcher_of(FakeRuntime(), call_grammar(use, written, {}, options=SCHEMA_OPTIONS))
    for token in write_calls([ToolCall("", "note.all", "{}")], written.writing).encode():
        assert not matcher.is_stopped()
        assert matcher.consume_token(token)
    assert matcher.is_stopped()


schemas = json_values | st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "string", "array"]) | json_values,
        "properties": st.dictionaries(st.text("ab<", max_size=2), json_values) | json_values,
        "required": st.lists(st.text("ab", max_size=2)) | json_values,
        "enum": st.lists(json_values) | json_values,
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/a", "x"]),
        "anyOf": json_values,
        "x-guidance": json_values,
    },
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.dictionaries(st.text("ab"), schemas) | schemas)
def test_any_schema_is_a_grammar_or_a_refusal(name: str, schema: Any) -> None:
    if not isinstance(schema, dict):
        return  # refused before
    for wrapped in (schema, {"type": "object", "properties": {"a": schema, "b": schema}}):
        tool = Tool("f", None, json.dumps(wrapped))
        with contextlib.suppress(InvalidRequestError):
            source = call_grammar(ToolUse((tool,)), FORMATS[name], {}, options=SCHEMA_OPTIONS)
            LLMatcher(tokenizer_of(EOS + 1), LLMatcher.grammar_from_lark(source), log_level=0)
        value_types([tool])


@pytest.mark.parametrize(
    ("given_", "used"),
    [
        (None, {"type": "object", "properties": {}, "additionalProperties": False}),
        ("{}", {"type": "object", "properties": {}, "additionalProperties": False}),
        ('{"type": "object"}', {"type": "object"}),
        (
            '{"properties": {"a": {}}}',
            {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        ),
        (
            '{"properties": {}, "additionalProperties": true}',
            {"type": "object", "properties": {}, "additionalProperties": True},
        ),
        (
            '{"properties": {}, "anyOf": [{}]}',
            {"type": "object", "properties": {}, "anyOf": [{}]},
        ),
    ],
)
def test_arguments_have_no_others_than_are_listed(given_: str | None, used: Any) -> None:
    assert argument_schema(given_, "f") == used


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": "number"}, {"number", "integer"}),
        ({"enum": ["a", 1]}, {"string", "integer", "number"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/x"}]}, {"string", "object"}),
        ({"$ref": "#/$defs/x"}, {"object"}),
        ({"$ref": "#/$defs/loop"}, {"string", "any"}),
        ({}, {"string", "any"}),
        (True, {"string", "any"}),
    ],
)
def test_types(schema: Any, types: set[str]) -> None:
    root = {"$defs": {"x": {"type": "object"}, "loop": {"$ref": "#/$defs/loop"}}}
    assert types_of(schema, root) == types
