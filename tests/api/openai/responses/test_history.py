"""Input items -> the messages of a chat template."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llmserve.api.openai.responses.history import to_messages
from llmserve.core import Message, ToolCall
from llmserve.errors import InvalidRequestError

CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "seen"}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm."}],
    "encrypted_content": None,
    "status": "completed",
}


def messages(*items: Any, instructions: str | None = None) -> tuple[Message, ...]:
    return to_messages([Raw(msgspec.json.encode(item)) for item in items], instructions)


def said(text: str, **fields: Any) -> dict[str, Any]:
    """A message of an answer, as it was got."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [part],
        **fields,
    }


def test_a_string_is_a_user() -> None:
    assert to_messages("hi", None) == (Message("user", "hi"),)
    assert to_messages("hi", "be brief") == (Message("system", "be brief"), Message("user", "hi"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "user", "content": "hi"}, Message("user", "hi")),
        ({"type": "message", "role": "system", "content": "hi"}, Message("system", "hi")),
        ({"role": "developer", "content": "hi"}, Message("system", "hi")),
        (
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_text", "text": "b", "prompt_cache_breakpoint": {}},
                ],
            },
            Message("user", "a\nb"),
        ),
        ({"role": "user", "content": []}, Message("user", "")),
        (said("x", phase="final_answer"), Message("assistant", "x")),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            Message("assistant", "No."),
        ),
    ],
)
def test_a_message(item: Any, message: Message) -> None:
    assert messages(item) == (message,)


def test_a_turn_of_the_assistant_is_one_message() -> None:
    other = {**CALL, "call_id": "c2", "id": "fc_2", "status": "completed", "async": False}
    assert messages(THOUGHT, said("I look."), CALL, other, OUTPUT, said("I saw.")) == (
        Message(
            "assistant",
            "I look.",
            reasoning="Hm.",
            tool_calls=(ToolCall("c1", "look", '{"a": 1}'), ToolCall("c2", "look", '{"a": 1}')),
        ),
        Message("tool", "seen", "look", tool_call_id="c1"),
        Message("assistant", "I saw."),
    )


def test_a_call_alone_is_a_turn() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages(CALL, {**OUTPUT, "output": parts}) == (
        Message("assistant", "", tool_calls=(ToolCall("c1", "look", '{"a": 1}'),)),
        Message("tool", "a\nb", "look", tool_call_id="c1"),
    )


def test_what_follows_an_answer_is_another_turn() -> None:
    assert messages(said("a"), said("b"), CALL, THOUGHT, said("c")) == (
        Message("assistant", "a"),
        Message("assistant", "b", tool_calls=(ToolCall("c1", "look", '{"a": 1}'),)),
        Message("assistant", "c", reasoning="Hm."),
    )


def test_thoughts_that_were_a_summary() -> None:
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}
    assert messages(summary, said("a")) == (Message("assistant", "a", reasoning="Hm"),)
    assert messages(summary, summary) == (Message("assistant", "", reasoning="HmHm"),)


IMAGE = {"type": "input_image", "image_url": "data:"}


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[0].type"),
        ({"type": "web_search_call", "id": "ws", "action": {}}, "input[0].type"),
        ({"content": "x"}, "input[0].role"),
        ({"role": "tool", "content": "x"}, "input[0].role"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": "x", "colour": "red"}, "input[0].colour"),
        ({"role": "user", "content": [IMAGE]}, "input[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "x", "file_id": "f"}]},
            "input[0].content[0].file_id",
        ),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"role": "user", "content": [{"text": "x"}]}, "input[0].content[0].type"),
        ({**CALL, "arguments": {}}, "input[0].arguments"),
        ({**CALL, "namespace": "n"}, "input[0].namespace"),
        ({**CALL, "async": True}, "input[0].async"),
        ({**CALL, "arguments": "[1]"}, "input[0].arguments"),
        (OUTPUT, "input[0].call_id"),
        ({**OUTPUT, "output": [IMAGE]}, "input[0].call_id"),
        ({**THOUGHT, "encrypted_content": "gAAA"}, "input[0].encrypted_content"),
        ({**THOUGHT, "content": [{"type": "other", "text": ""}]}, "input[0].content[0].type"),
        (["x"], "input[0]"),
        (None, "input[0]"),
    ],
)
def test_a_refusal_names_the_item(item: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        messages(item)
    assert refused.value.param == param
    assert param.removesuffix(".type") in refused.value.message


def test_a_reference_is_told_what_to_be_instead() -> None:
    with pytest.raises(InvalidRequestError, match="send the item itself"):
        messages({"type": "item_reference", "id": "msg_1"})
    with pytest.raises(InvalidRequestError, match="the types are: message, function_call,"):
        messages({"type": "other"})


def test_an_output_may_not_come_before_its_call() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        messages(OUTPUT, CALL)
    assert refused.value.param == "input[0].call_id"
    with pytest.raises(InvalidRequestError) as second:
        messages(CALL, {**OUTPUT, "output": [IMAGE]})
    assert second.value.param == "input[1].output[0]"
