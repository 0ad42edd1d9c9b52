"""Answers with calls and thoughts, from the request to the events, of a model with a script."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import msgspec
import pytest

from llmserve.chat.tools.parser import Segment
from llmserve.core import (
    Constraint,
    Delta,
    Event,
    Finished,
    FinishReason,
    Message,
    Mode,
    Queued,
    Request,
    SamplingParams,
    Started,
    Tool,
    ToolUse,
)
from llmserve.engine.engine import LocalEngine
from llmserve.engine.input.answer_plan import Answering
from llmserve.engine.input.prompt import load_style
from llmserve.errors import InvalidRequestError
from tests.chat import templates
from tests.chat.tools.understood import Understood, understand
from tests.fakes import FakeRuntime, ScriptedRuntime
from tests.policies import policy

WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "unit"],
}
WEATHER = Tool("get_weather", "The weather.", json.dumps(WEATHER_SCHEMA))
NOW = Tool("now", "The time.")
AUTO = ToolUse((WEATHER, NOW))
USER = (Message("user", "Hi"),)
GREEDY = SamplingParams(temperature=0)

CONTROLS = {  # as the models' vocabularies have them
    templates.NEMO: ["[TOOL_CALLS]", "[INST]", "[/INST]"],
    templates.SMALL32: ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    templates.LLAMA32: ["<|python_tag|>", "<|eot_id|>"],
    templates.GPT_OSS: ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>"],
    templates.DEEPSEEK_R1: [
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ],
    templates.DEEPSEEK_V31: [
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<think>", "</think>"),
    ],
}
TEMPLATES = {
    "hermes": templates.HERMES2,
    "qwen3": templates.QWEN3,
    "llama3": templates.LLAMA32,
    "nemo": templates.NEMO,
    "small": templates.SMALL32,
    "coder": templates.QWEN3_CODER,
    "gpt-oss": templates.GPT_OSS,
    "r1": templates.DEEPSEEK_R1,
    "v3.1": templates.DEEPSEEK_V31,
    "generic": templates.CHATML,
    "gemma": templates.GEMMA,
}


def ask(runtime: FakeRuntime, request: Request) -> list[Event]:
    async def one() -> list[Event]:
        engine = LocalEngine("fake", runtime, policy=policy())
        try:
            return [event async for event in engine.generate(request)]
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(one(), timeout=60))


def scripted(answer: str, template: str, controls: Sequence[str] = ()) -> ScriptedRuntime:
    return ScriptedRuntime(
        answer,
        num_cells=8192,
        num_slots=1,
        max_batch=512,
        chat_template=template,
        controls=controls or CONTROLS.get(template, ()),
    )


def chat(use: ToolUse | None, **fields: Any) -> Request:
    base = Request(messages=USER, mode=Mode.CHAT, tool_use=use, sampling=GREEDY, max_tokens=400)
    return msgspec.structs.replace(base, **fields)


def say(answer: str, template: str, use: ToolUse | None = AUTO, **fields: Any) -> list[Event]:
    """The events of a model that would say `answer`."""
    return ask(scripted(answer, template), chat(use, **fields))


def read(events: Sequence[Event]) -> Understood:
    return understand(
        [Segment(0, e) for e in events if not isinstance(e, Started | Queued | Finished)]
    )


def end(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def calls(events: Sequence[Event]) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in read(events).calls]


# -- what a model writes by itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "answer", "text", "reasoning", "found"),
    [
        (
            "hermes",
            'Well.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", '
            '"unit": "C"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
            "Well.",
            "",
            [("get_weather", {"city": "Oslo", "unit": "C"}), ("now", {})],
        ),
        (
            "qwen3",
            "<think>\nMaybe <tool_call>?\n</think>\n\n"
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
            "",
            "Maybe <tool_call>?",
            [("now", {})],
        ),
        ("qwen3", "<think>\nHm.\n</think>\n\nHello {}!", "Hello {}!", "Hm.", []),
        ("llama3", '<|python_tag|>{"name": "now", "parameters": {}}', "", "", [("now", {})]),
        ("llama3", "Hello!", "Hello!", "", []),
        ("nemo", '[TOOL_CALLS][{"name": "now", "arguments": {}}]', "", "", [("now", {})]),
        ("small", "Hi.[TOOL_CALLS]now[ARGS]{}", "Hi.", "", [("now", {})]),
        (
            "coder",
            "<tool_call>\n<function=now>\n</function>\n</tool_call>",
            "",
            "",
            [("now", {})],
        ),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Time.<|end|><|start|>assistant<|channel|>commentary"
            " to=functions.now <|constrain|>json<|message|>{}",
            "",
            "Time.",
            [("now", {})],
        ),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Easy.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Hello!",
            "Hello!",
            "Easy.",
            [],
        ),
        (
            "r1",
            "Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now"
            "\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "",
            "Hm.",
            [("now", {})],
        ),
        (
            "v3.1",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
            "<｜tool▁calls▁end｜>",
            "",
            "",
            [("now", {})],
        ),
        (
            "generic",
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
            "",
            "",
            [("now", {})],
        ),
    ],
)
def test_auto(
    template: str, answer: str, text: str, reasoning: str, found: list[tuple[str, Any]]
) -> None:
    events = say(answer, TEMPLATES[template])
    assert isinstance(events[0], Started)
    got = read(events)
    assert (got.text, got.reasoning, calls(events)) == (text, reasoning, found)
    assert end(events).reason is (FinishReason.TOOL_CALLS if found else FinishReason.STOP)
    assert (end(events).usage.reasoning_tokens > 0) == bool(reasoning)


def test_auto_guards_a_call_from_its_beginning() -> None:
    """The script has an unknown tool; the grammar makes it one of those that there are."""
    wild = 'Hm. <tool_call>\n{"name": "rm_rf", "arguments": {"city": 1'
    events = say(wild, templates.HERMES2, max_tokens=200)
    assert read(events).text == "Hm."
    (name, arguments), *_ = read(events).calls
    assert name in ("get_weather", "now")
    if end(events).reason is FinishReason.TOOL_CALLS:
        jsonschema.validate(json.loads(arguments), WEATHER_SCHEMA if name != "now" else {})


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", [None, "get_weather"])
def test_required(template: str, name: str | None) -> None:
    """A model that would only chat has to call, whatever its format is."""
    tools = (WEATHER, NOW) if template != "coder" else (NESTED, NOW)
    use = ToolUse(tools, choice="required", name=name, parallel=False)
    script = "No.</think>No!" if template == "r1" else "I will not call anything!"
    events = say(script, TEMPLATES[template], use, max_tokens=2000)
    assert end(events).reason is FinishReason.TOOL_CALLS
    assert read(events).text == ""
    ((called, arguments),) = calls(events)
    assert called == name or name is None
    schema = json.loads({t.name: t for t in tools}[called].parameters or "{}")
    jsonschema.validate(arguments, schema)
    assert set(arguments) <= set(schema.get("properties", {}))


NESTED = Tool(
    "get_weather",
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 2, "maxLength": 8},
                "unit": {"enum": ["C", "F"]},
                "deep": {"$ref": "#/$defs/deep"},
            },
            "required": ["city", "deep"],
            "$defs": {"deep": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        }
    ),
)


def test_required_lets_a_model_think_first() -> None:
    use = ToolUse((NOW,), choice="required", parallel=False)
    runtime = scripted(
        "<think>\nWhat time?\n</think>\n\nNo.", templates.QWEN3, ["<think>", "</think>"]
    )
    events = ask(runtime, chat(use))
    assert read(events).reasoning == "What time?"
    assert calls(events) == [("now", {})]


def test_none_yields_no_calls() -> None:
    answer = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    events = say(answer, templates.HERMES2, ToolUse((NOW,), choice="none"))
    assert read(events) == Understood(answer, "", [])
    assert end(events).reason is FinishReason.STOP


def test_not_parallel_is_one_call() -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    use = ToolUse((NOW,), parallel=False)
    assert calls(say(f"{call}\n{call}", templates.HERMES2, use)) == [("now", {})]
    assert len(calls(say(f"{call}\n{call}", templates.HERMES2))) == 2


# -- what goes together ---------------------------------------------------------------------------


def test_response_format_is_for_the_text() -> None:
    schema = {"properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    constraint = Constraint("json_schema", json.dumps({"type": "object", **schema}))
    events = say("{Hello", templates.HERMES2, constraint=constraint)
    assert json.loads(read(events).text)["a"] == 1
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert calls(say(call, templates.HERMES2, constraint=constraint)) == [("now", {})]
    final = say("<|channel|>final<|message|>Hello", templates.GPT_OSS, constraint=constraint)
    assert json.loads(read(final).text)["a"] == 1


@pytest.mark.parametrize(
    ("template", "constraint"),
    [(templates.LLAMA32, Constraint("json")), (templates.HERMES2, Constraint("regex", "a+"))],
)
def test_response_format_that_calls_hide(template: str, constraint: Constraint) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        say("Hello", template, constraint=constraint)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("kind", ["json", "regex"])
def test_response_format_holds_after_the_thought(kind: Any) -> None:
    constraint = Constraint(kind, "x[0-9]{3}" if kind == "regex" else "")
    events = say("Let me think.</think>Hello", templates.DEEPSEEK_R1, None, constraint=constraint)
    got = read(events)
    assert got.reasoning == "Let me think."
    if kind == "json":
        assert isinstance(json.loads(got.text), dict)
    else:
        assert got.text[0] == "x"
        assert len(got.text) == 4
    channels = (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>"
    )
    events = say(channels, templates.GPT_OSS, None, constraint=constraint)
    assert read(events).reasoning == "Hm"
    assert read(events).text[0] in "x{"


def test_a_thought_cannot_end_an_answer_that_must_match() -> None:
    events = say("Hm", templates.DEEPSEEK_R1, None, constraint=Constraint("json"), max_tokens=30)
    assert end(events).reason is FinishReason.LENGTH


def test_stop_strings_are_for_the_text() -> None:
    answer = "<think>One STOP.</think>Two STOP three"
    events = say(answer, templates.QWEN3, None, stop=("STOP",))
    assert read(events) == Understood("Two ", "One STOP.", [])
    assert end(events).stop_sequence == "STOP"
    arguments = '{"city": "STOP", "unit": "C"}'
    call = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
    events = say(call, templates.HERMES2, stop=("STOP",))
    assert calls(events) == [("get_weather", {"city": "STOP", "unit": "C"})]


def test_log_probabilities_are_of_the_text() -> None:
    answer = "<think>\nHm.\n</think>\n\nHi <there\n<tool_call>\n"
    events = say(answer, templates.QWEN3, num_logprobs=1, max_tokens=len(answer))
    deltas = [event for event in events if isinstance(event, Delta)]
    listed = b"".join(entry.chosen.data for delta in deltas for entry in delta.logprobs)
    assert listed == b"Hi <there"


def test_without_tools_a_model_that_does_not_think_is_read_as_text() -> None:
    answer = "<think>x</think> <tool_call> [TOOL_CALLS]"
    events = say(answer, templates.HERMES2, None)
    assert read(events) == Understood(answer, "", [])
    assert end(events).usage.reasoning_tokens == 0


def test_markers_of_calls_stay_invisible_without_tools() -> None:
    """As all control tokens are, though those of the thought mean something."""
    source = templates.SMALL32 + "[THINK][/THINK]"
    runtime = scripted(
        "[THINK]Hm[/THINK]a[TOOL_CALLS]b", source, ["[THINK]", "[/THINK]", "[TOOL_CALLS]"]
    )
    assert read(ask(runtime, chat(None))) == Understood("ab", "Hm", [])


def test_completions_are_text() -> None:
    request = Request(prompt="x", mode=Mode.COMPLETION, sampling=GREEDY, max_tokens=100)
    events = ask(scripted("<think>x</think>", templates.QWEN3), request)
    assert read(events) == Understood("<think>x</think>", "", [])


def test_instruct_thinks_too() -> None:
    request = Request(prompt="x", mode=Mode.INSTRUCT, sampling=GREEDY, max_tokens=100)
    events = ask(scripted("<think>x</think>y", templates.QWEN3), request)
    assert read(events) == Understood("y", "x", [])


def test_a_thought_that_is_cut_short() -> None:
    events = say("<think>\nLong", templates.QWEN3, None, max_tokens=10)
    assert read(events).reasoning == "Lo"
    assert end(events).reason is FinishReason.LENGTH
    assert end(events).usage.reasoning_tokens == 4  # one of them ends the marker


# -- what is refused ------------------------------------------------------------------------------


BAD = "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ('{"type": "array"}', "tools[1].function.parameters.type"),
        ("[1]", BAD),
        ('{"type": "object", "properties": 5}', BAD),
        (
            '{"type": "object", "properties": {"a": {"type": "date"}}}',
            BAD,
        ),
        ('{"type": "object", "not": {}}', BAD),
        ('{"x-guidance": {"lenient": true}, "not": {}}', BAD),
        ('{"a":' * 100 + "1" + "}" * 100, BAD),
        ('{"a": "\ud800"}', BAD),
        (
            '{"type": "object", "description": "' + "x" * 70_000 + '"}',
            BAD,
        ),
    ],
)
def test_a_schema_that_cannot_be_used(parameters: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        say("x", templates.HERMES2, ToolUse((NOW, Tool("bad", parameters=parameters))))
    assert caught.value.param == param


def test_a_limit_that_a_bare_string_cannot_keep() -> None:
    zip_code = Tool("f", parameters='{"properties": {"zip": {"type": "string", "pattern": "^9"}}}')
    with pytest.raises(InvalidRequestError) as caught:
        say("x", templates.QWEN3_CODER, ToolUse((NOW, zip_code)))
    assert caught.value.param == "tools[1].function.parameters.properties.zip.pattern"


def test_ignore_eos_with_tools() -> None:
    with pytest.raises(InvalidRequestError, match="ignore_eos"):
        say("x", templates.HERMES2, sampling=SamplingParams(ignore_eos=True))


@pytest.mark.parametrize("effort", ["none", "low"])
def test_effort(effort: str) -> None:
    if effort == "none":
        say("x", templates.HERMES2, None, reasoning_effort=effort)
    else:
        with pytest.raises(InvalidRequestError, match="does not think"):
            say("x", templates.HERMES2, None, reasoning_effort=effort)


def test_only_what_can_be_more_than_text_is_read_as_such() -> None:
    """Anything else costs nothing: it has no reader at all."""

    def is_read(source: str, use: ToolUse | None) -> bool:
        runtime = scripted("", source)
        style = load_style(runtime.info)
        assert style is not None
        return Answering(style, runtime).plan(chat(use), "prompt").reading is not None

    none = ToolUse((NOW,), choice="none")
    assert [is_read(templates.HERMES2, use) for use in (None, none, AUTO)] == [False, False, True]
    assert [is_read(templates.QWEN3, use) for use in (None, none, AUTO)] == [True, True, True]
    assert not is_read(templates.CHATML, ToolUse(()))
