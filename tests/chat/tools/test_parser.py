"""What is in recorded answers, however they are cut into pieces."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.chat.tools.formats.detect import FORMATS, THINKING
from llmserve.chat.tools.formats.model import START, THOUGHT, states_of
from llmserve.chat.tools.parser import Parser
from llmserve.core import Delta, ReasoningDelta, ToolCallDelta
from tests.chat.tools.recorded import RECORDED, TYPES, Recorded
from tests.chat.tools.understood import Understood, run, understand


def make_parser(recorded: Recorded) -> Parser:
    return Parser(
        states_of(recorded.format, recorded.thinking, with_calls=True),
        first=THOUGHT if recorded.in_thought else START,
        value_types=TYPES,
    )


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name: str) -> None:
    recorded = RECORDED[name]
    found = understand(run(make_parser(recorded), [recorded.output]))
    assert found.text == recorded.text
    assert found.reasoning == recorded.reasoning
    assert [(tool, json.loads(arguments)) for tool, arguments in found.calls] == list(
        recorded.calls
    )


@pytest.mark.parametrize("name", RECORDED)
def test_a_character_at_a_time(name: str) -> None:
    recorded = RECORDED[name]
    segments = run(make_parser(recorded), list(recorded.output))
    assert understand(segments) == understand(run(make_parser(recorded), [recorded.output]))
    assert sum(segment.num_chars for segment in segments) == len(recorded.output)


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>"),
    *("</think>", "<function=", "<parameter=", "</parameter>", "</function>", ">", "\n", " ", ";"),
    *("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "final", "analysis", "[", "]", ","),
    *("to=functions.f ", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```json", "```", "name", "<", "{", "}"),
    *('{"name": "f", "arguments": ', '{"a": "}\\""}', '"', "é", '{"parameters": {}, "name": "g"}'),
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from([None, *THINKING]),
    st.booleans(),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.data(),
)
def test_any_text_in_any_pieces(
    name: str, thinking: Any, in_thought: bool, text: str, data: st.DataObject
) -> None:
    recorded = Recorded(FORMATS[name], text, thinking=thinking, in_thought=in_thought and thinking)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = run(make_parser(recorded), [text])
    cut = run(make_parser(recorded), pieces)
    assert understand(cut) == understand(whole)
    assert sum(s.num_chars for s in cut) == len(text)
    for num_chars, part in cut:  # what is shown is what was written
        if isinstance(part, Delta | ReasoningDelta):
            assert part.text in text
            assert num_chars in (0, len(part.text))


@given(st.sampled_from(sorted(FORMATS)), st.text(max_size=60))
def test_without_calls_and_thoughts_all_is_text(name: str, text: str) -> None:
    states = states_of(FORMATS[name], None, with_calls=False)
    if not FORMATS[name].has_channels:
        assert understand(run(Parser(states), [text])) == Understood(text, "", [])


@pytest.mark.parametrize("name", FORMATS)
def test_no_marker_of_a_state_contains_another(name: str) -> None:
    for thinking in (None, *THINKING):
        for state in states_of(FORMATS[name], thinking, with_calls=True).values():
            exits = list(state.exits)
            assert not [(a, b) for a in exits for b in exits if a != b and a in b]
            assert set(state.exits.values()) <= set(
                states_of(FORMATS[name], thinking, with_calls=True)
            )


def test_arguments_come_in_pieces() -> None:
    parser = make_parser(RECORDED["hermes"])
    out = [s.part for piece in RECORDED["hermes"].output for s in parser.push(piece)]
    pieces = [part.arguments for part in out if isinstance(part, ToolCallDelta)]
    assert len(pieces) > 10


def test_a_long_value_comes_in_pieces() -> None:
    """Of Qwen3-Coder, which writes strings as they are."""
    parser = make_parser(RECORDED["qwen3-coder-lines"])
    out = [s.part for piece in RECORDED["qwen3-coder-lines"].output for s in parser.push(piece)]
    assert len([part for part in out if isinstance(part, ToolCallDelta)]) > 20


def test_a_call_that_is_cut_short_has_what_there_was() -> None:
    parser = make_parser(RECORDED["hermes"])
    found = understand(run(parser, [RECORDED["hermes"].output[:58]]))
    assert found.calls == [("get_weather", '{"city": ')]


def test_half_of_a_surrogate_pair_stays_escaped() -> None:
    """No answer could be sent with it, and JSON can say it in other words."""
    calls = r'<tool_call>{"parameters": {"a": "é\ud800"}, "name": "f"}</tool_call>'
    found = understand(run(make_parser(RECORDED["hermes"]), [calls]))
    assert found.calls == [("f", r'{"a": "\u00e9\ud800"}')]
    no_call = calls.replace('"f"', r'"\ud800"')
    assert understand(run(make_parser(RECORDED["hermes"]), [no_call])).text == no_call


def test_the_beginning_of_a_call_is_shown_if_no_more_comes() -> None:
    parser = make_parser(RECORDED["hermes"])
    assert understand(run(parser, ["Hm. <tool_call>\n{"])).text == "Hm. <tool_call>\n{"
