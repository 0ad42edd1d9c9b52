"""Tools for models whose template has none: in the system message, and as plain turns.

The model is told the functions and how to call one, in the format that its answers are read in.
Its earlier calls are shown as it would have written them, and results as turns of the user.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from llmserve.chat.tools.formats.model import Writing
from llmserve.core import Message, ToolCall

_PROMPT = """\
You can call functions. They are, with the JSON schemas of their parameters:
{tools}

To call a function, answer in exactly this form:
{example}
{several}
The user's next message then has the result. If you need no function, answer as usual."""


def describe_tools(tools: Sequence[dict[str, Any]], writing: Writing, *, parallel: bool) -> str:
    """What the model has to know. `tools` are as OpenAI's `function` objects."""
    example = write_calls([ToolCall("", "FUNCTION_NAME", '{"PARAMETER": "VALUE"}')], writing)
    several = "Several calls may follow each other." if parallel else "Make only one call."
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _PROMPT.format(tools=listed, example=example, several=several)


def add_instructions(
    messages: Sequence[Message], text: str, *, has_system: bool
) -> tuple[Message, ...]:
    """With `text` in the system message, or in the first turn where a template takes none."""
    role = "system" if has_system else "user"
    first = messages[0] if messages and messages[0].role in ("system", role) else None
    if first is None:
        return (Message(role, text), *messages)
    content = f"{first.content}\n\n{text}" if has_system else f"{text}\n\n{first.content}"
    return (replace(first, content=content), *messages[1:])


def as_plain_turns(messages: Iterable[Message], writing: Writing) -> tuple[Message, ...]:
    """Calls as text, and results as what the user says; turns of one role are joined."""
    turns: list[Message] = []
    for message in messages:
        has_result = message.role == "tool"
        plain = _plain(message, writing)
        joins = turns and turns[-1].role == "user" == plain.role
        if joins and (has_result or _is_result(turns[-1])):
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n{plain.content}")
        else:
            turns.append(plain)
    return tuple(turns)


def _plain(message: Message, writing: Writing) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = write_calls(message.tool_calls, writing)
    content = f"{message.content}\n{calls}" if message.content else calls
    return replace(message, content=content, tool_calls=())


def _is_result(message: Message) -> bool:
    return message.content.startswith("<tool_response>")


def write_calls(calls: Sequence[ToolCall], writing: Writing) -> str:
    """Their arguments must be JSON objects."""
    written = writing.between.join(_write(call, writing) for call in calls)
    return f"{writing.begin}{written}{writing.end}"


def _write(call: ToolCall, writing: Writing) -> str:
    arguments = call.arguments
    if writing.arguments == "parameters":
        values = json.loads(arguments)
        arguments = "".join(_parameter(name, value) for name, value in values.items())
    return f"{writing.before_name}{call.name}{writing.before_arguments}{arguments}{writing.after}"


def _parameter(name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"<parameter={name}>\n{text}\n</parameter>\n"
