"""Tools, calls, results and thoughts through the templates of real families."""

import json
from typing import Any

import pytest

from llmserve.chat.chat_format import ChatStyle
from llmserve.chat.template import ChatTemplate
from llmserve.core import Message, Tool, ToolCall, ToolUse
from llmserve.errors import InvalidRequestError
from tests.chat import templates

WEATHER = Tool("get_weather", "The weather.", '{"type": "object", "properties": {"city": {}}}')
USE = ToolUse((WEATHER,))
USER = Message("user", "How warm is it?")
PARIS = ToolCall("call_abcdefghijklmnopqrstuvwx", "get_weather", '{"city": "Paris"}')
OSLO = ToolCall("call_2", "get_weather", '{"city": "Oslo"}')
CALLED = Message("assistant", "", tool_calls=(PARIS,))
RESULT = Message("tool", "21 C", tool_call_id=PARIS.id)
RESULT_OSLO = Message("tool", "9 C", tool_call_id=OSLO.id)


def style(source: str) -> ChatStyle:
    return ChatStyle(ChatTemplate(source, bos_text="<s>", eos_text="</s>"))


def render(source: str, *messages: Message, use: ToolUse | None = USE, **variables: Any) -> str:
    return style(source).render(messages, use, variables)


@pytest.mark.parametrize(
    "source",
    [
        templates.HERMES2,
        templates.QWEN3,
        templates.LLAMA32,
        templates.NEMO,
        templates.SMALL32,
        templates.QWEN3_CODER,
        templates.GPT_OSS,
    ],
)
def test_a_template_lists_the_tools_itself(source: str) -> None:
    text = render(source, USER)
    assert "get_weather" in text
    assert "You can call functions" not in text
    assert text.count("How warm is it?") == 1


@pytest.mark.parametrize(
    "source",
    [templates.CHATML, templates.GEMMA, templates.GLM, templates.DEEPSEEK_R1],
)
def test_or_a_prompt_does(source: str) -> None:
    """Also in the native format, where the template knows calls but no tools."""
    text = render(source, Message("user", "Be brief."), use=USE)
    assert "You can call functions" in text
    assert '{"name": "get_weather", "description": "The weather."' in text
    marker = "<｜tool▁call▁begin｜>" if source == templates.DEEPSEEK_R1 else "<tool_call>"
    assert f"{marker}" in text


def test_the_prompt_is_in_the_system_message() -> None:
    text = render(templates.CHATML, Message("system", "Be brief."), USER)
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions")
    assert text.count("<|im_start|>system") == 1
    text = render(templates.CHATML, USER)
    assert text.startswith("<|im_start|>system\nYou can call functions")
    text = render(templates.GEMMA, USER)  # which has no system messages
    assert text.startswith("<s><start_of_turn>user\nYou can call functions")
    assert text.count("<start_of_turn>user") == 1


@pytest.mark.parametrize(
    ("source", "call", "result"),
    [
        (
            templates.QWEN3,
            '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
            '{"city": "Paris"}}\n</tool_call><|im_end|>',
            "<tool_response>\n21 C\n</tool_response>",
        ),
        (
            templates.LLAMA32,
            '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>',
            "ipython<|end_header_id|>\n\n21 C<|eot_id|>",
        ),
        (
            templates.QWEN3_CODER,
            "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
            "<tool_response>\n21 C\n</tool_response>",
        ),
        (
            templates.GPT_OSS,
            "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
            '{"city": "Paris"}<|call|>',
            '<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"21 C"',
        ),
        (
            templates.DEEPSEEK_R1,
            '<｜tool▁sep｜>get_weather\n```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁output▁begin｜>",
            "21 C<｜tool▁output▁end｜>",
        ),
        (
            templates.DEEPSEEK_V31,
            'get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>',
            "21 C<｜tool▁output▁end｜>",
        ),
        (
            templates.CHATML,
            '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
            '{"city": "Paris"}}\n</tool_call><|im_end|>',
            "<|im_start|>user\n<tool_response>\n21 C\n</tool_response><|im_end|>",
        ),
        (
            templates.GEMMA,
            "<start_of_turn>model\n<tool_call>",
            "<start_of_turn>user\n<tool_response>\n21 C\n</tool_response><end_of_turn>",
        ),
    ],
)
@pytest.mark.parametrize("use", [USE, None])
def test_calls_and_results(source: str, call: str, result: str, use: ToolUse | None) -> None:
    """With the tools, and after they are gone."""
    text = render(source, USER, CALLED, RESULT, use=use)
    assert call in text
    assert result in text


@pytest.mark.parametrize("source", [templates.NEMO, templates.SMALL32])
def test_ids_of_nine_letters_and_digits(source: str) -> None:
    text = render(source, USER, CALLED, RESULT)
    ((_, first), *_) = [text.split(m)[:2] for m in ('"id": "', "[CALL_ID]") if m in text]
    short = first[:9]
    assert short.isalnum()
    assert text.count(short) == 2
    assert PARIS.id not in text
    kept = ToolCall("abcdEF123", "get_weather", "{}")
    assert "abcdEF123" in render(source, USER, Message("assistant", "", tool_calls=(kept,)))


@pytest.mark.parametrize("source", [templates.LLAMA32, templates.GPT_OSS])
def test_several_calls_where_a_message_takes_one(source: str) -> None:
    """Each with its result, in the order of the calls."""
    both = Message("assistant", "", tool_calls=(PARIS, OSLO))
    text = render(source, USER, both, RESULT, RESULT_OSLO, Message("user", "And?"))
    places = [text.index(word) for word in ("Paris", "21 C", "Oslo", "9 C", "And?")]
    assert places == sorted(places)


def test_results_are_one_turn_where_roles_alternate() -> None:
    both = Message("assistant", "Both.", tool_calls=(PARIS, OSLO))
    text = render(templates.GEMMA, USER, both, RESULT, RESULT_OSLO, Message("user", "And?"))
    assert text.count("<start_of_turn>user") == 2
    assert "21 C\n</tool_response>\n<tool_response>\n9 C\n</tool_response>\nAnd?" in text
    assert "Both.\n<tool_call>" in text


def test_none_hides_the_tools() -> None:
    for source in (templates.QWEN3, templates.CHATML):
        hidden = render(source, USER, use=ToolUse((WEATHER,), choice="none"))
        assert hidden == render(source, USER, use=None)


def test_arguments_that_are_not_json() -> None:
    broken = Message("assistant", "", tool_calls=(ToolCall("1", "f", "{"),))
    with pytest.raises(InvalidRequestError, match="not JSON"):
        render(templates.QWEN3, USER, broken)


# -- thoughts -------------------------------------------------------------------------------------


def test_earlier_thoughts_are_what_the_template_makes_of_them() -> None:
    thought = Message("assistant", "Hi", reasoning="Greet.")
    assert "Greet." not in render(templates.QWEN3, USER, thought, USER)
    assert "<think>\nGreet.\n</think>" in render(templates.QWEN3, USER, thought)
    text = render(
        templates.GPT_OSS, USER, Message("assistant", "", None, "Look.", (PARIS,)), RESULT
    )
    assert "<|channel|>analysis<|message|>Look.<|end|>" in text
    both = Message("assistant", "Text", None, "Look.", (PARIS,))
    assert "Text" in render(templates.GPT_OSS, USER, both, RESULT)


@pytest.mark.parametrize(
    ("source", "effort", "variables"),
    [
        (templates.QWEN3, None, {}),
        (templates.QWEN3, "none", {"enable_thinking": False}),
        (templates.QWEN3, "high", {"enable_thinking": True}),
        (templates.DEEPSEEK_V31, "none", {"thinking": False}),
        (templates.DEEPSEEK_V31, "low", {"thinking": True}),
        (templates.GPT_OSS, "minimal", {"reasoning_effort": "low"}),
        (templates.GPT_OSS, "high", {"reasoning_effort": "high"}),
        (templates.DEEPSEEK_R1, "high", {}),
        (templates.CHATML, "none", {}),
    ],
)
def test_effort(source: str, effort: str | None, variables: dict[str, Any]) -> None:
    assert style(source).variables(effort, {}) == variables


@pytest.mark.parametrize(
    ("source", "effort", "given", "param"),
    [
        (templates.CHATML, "low", {}, "reasoning_effort"),
        (templates.GPT_OSS, "none", {}, "reasoning_effort"),
        (templates.DEEPSEEK_R1, "none", {}, "reasoning_effort"),
        (templates.QWEN3, None, {"x": 1}, "chat_template_kwargs.x"),
        (templates.QWEN3, None, {"messages": []}, "chat_template_kwargs.messages"),
        (templates.CHATML, None, {"enable_thinking": True}, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_what_would_change_nothing(
    source: str, effort: str | None, given: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        style(source).variables(effort, given)
    assert caught.value.param == param


def test_variables_of_the_request() -> None:
    qwen, plain = style(templates.QWEN3), style(templates.CHATML)
    assert qwen.variables("high", {"enable_thinking": False}) == {"enable_thinking": False}
    assert plain.variables(None, {"enable_thinking": False}) == {}  # it never does
    text = render(templates.QWEN3, USER, use=None, enable_thinking=False)
    assert text.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("source", "variables", "expected"),
    [
        (templates.DEEPSEEK_R1, {}, True),
        (templates.DEEPSEEK_V31, {}, False),
        (templates.DEEPSEEK_V31, {"thinking": True}, True),
        (templates.QWEN3, {}, False),
        (templates.QWEN3, {"enable_thinking": False}, False),
        (templates.CHATML, {}, False),
    ],
)
def test_an_answer_may_start_in_a_thought(
    source: str, variables: dict[str, Any], expected: bool
) -> None:
    text = render(source, USER, use=None, **variables)
    assert style(source).starts_in_thought(text) is expected


def test_tools_are_as_openai_has_them() -> None:
    source = "{{ tools | tojson }}<tool_call>arguments"
    tools = json.loads(render(source, USER).removesuffix("<tool_call>arguments"))
    assert tools == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather.",
                "parameters": {"type": "object", "properties": {"city": {}}},
            },
        }
    ]
