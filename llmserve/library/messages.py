"""Messages and tools, as OpenAI's chat completions have them -> core. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from llmserve.core import Message, Tool, ToolCall
from llmserve.errors import InvalidRequestError
from llmserve.wire.validation import MissingFieldError, convert

Messages: TypeAlias = Sequence[Message | Mapping[str, Any]]  # `Generation.message` is one


class _CalledFunction(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str  # JSON


class _Call(Struct, forbid_unknown_fields=True):
    id: str
    function: _CalledFunction
    type: Literal["function"] = "function"


class _Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Function(Struct, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # arguments follow the schema either way


class _Tool(Struct, forbid_unknown_fields=True):
    function: _Function
    type: Literal["function"] = "function"


def to_messages(given: Sequence[Any]) -> tuple[Message, ...]:
    """Raises `InvalidRequestError`s that name the message."""
    if not given or isinstance(given, str):
        raise InvalidRequestError(f"messages is {given!r:.80}; give a list", param="messages")
    return tuple(_message(each, f"messages[{index}]") for index, each in enumerate(given))


def _message(given: object, path: str) -> Message:
    if isinstance(given, Message):
        return given
    wire = convert(given, _Message, at=path)
    if wire.content is None and not wire.tool_calls:
        raise MissingFieldError(f"{path}.content is missing", param=f"{path}.content")
    if wire.role == "tool" and wire.tool_call_id is None:
        field = f"{path}.tool_call_id"
        raise MissingFieldError(f"{field} is missing: which call is this of?", param=field)
    return Message(
        role="system" if wire.role == "developer" else wire.role,
        content=wire.content or "",
        name=wire.name,
        reasoning=wire.reasoning,
        tool_calls=tuple(
            _call(call, f"{path}.tool_calls[{index}].function")
            for index, call in enumerate(wire.tool_calls or ())
        ),
        tool_call_id=wire.tool_call_id,
    )


def _call(wire: _Call, path: str) -> ToolCall:
    """Templates show the arguments, so they must be what they are said to be."""
    name, arguments = wire.function.name, wire.function.arguments
    try:
        msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequestError(
            f"{path}.arguments is {arguments[:80]!r}; it must be the text of a JSON object",
            param=f"{path}.arguments",
        ) from error
    return ToolCall(wire.id, name, arguments)


def to_tools(given: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Raises `InvalidRequestError`s that name the tool."""
    found: dict[str, Tool] = {}
    for index, each in enumerate(given):
        function = convert(each, _Tool, at=f"tools[{index}]").function
        if function.name in found:
            field = f"tools[{index}].function.name"
            raise InvalidRequestError(
                f"{field} is {function.name!r}, like that of another tool; rename one", param=field
            )
        schema = function.parameters
        text = None if schema is None else msgspec.json.encode(schema).decode()
        found[function.name] = Tool(function.name, function.description, text)
    return tuple(found.values())
