"""Tools, choices and calls of chat completions <-> core's."""

import msgspec
from msgspec import Raw

from llmserve import core
from llmserve.api.openai.formats import object_text
from llmserve.api.schemas.openai_chat import ChatRequest
from llmserve.api.schemas.openai_tools import (
    AllowedChoice,
    AnswerCall,
    Call,
    CallDelta,
    CalledFunction,
    FunctionDelta,
    NamedChoice,
    Tool,
    ToolChoice,
)
from llmserve.core import ToolCallDelta
from llmserve.errors import InvalidRequestError


def tool_use(wire: ChatRequest) -> core.ToolUse | None:
    """Raises `InvalidRequestError`s that name the field."""
    tools = to_tools(wire.tools or [])
    choice = wire.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequestError("tool_choice is given, but no tools are", param="tool_choice")
        return None
    parallel = wire.parallel_tool_calls is not False
    return _choose(core.ToolUse(tools, parallel=parallel), choice)


def to_tools(wire: list[Tool]) -> tuple[core.Tool, ...]:
    found: dict[str, core.Tool] = {}
    for index, tool in enumerate(wire):
        path, function = f"tools[{index}].function", tool.function
        if function.name in found:
            raise InvalidRequestError(
                f"{path}.name is {function.name!r}, like that of another tool; rename one",
                param=f"{path}.name",
            )
        parameters = object_text(function.parameters or Raw(), path=f"{path}.parameters")
        found[function.name] = core.Tool(function.name, function.description, parameters)
    return tuple(found.values())


def _choose(use: core.ToolUse, choice: ToolChoice | None) -> core.ToolUse:
    match choice:
        case None:
            return use
        case NamedChoice(function):
            path = "tool_choice.function.name"
            (only,) = _named(use, [function.name], path)
            return msgspec.structs.replace(use, choice="required", name=only.name)
        case AllowedChoice(allowed):
            path = "tool_choice.allowed_tools.tools"
            tools = _named(use, [tool.function.name for tool in allowed.tools], path)
            return msgspec.structs.replace(use, tools=tools, choice=allowed.mode)
        case _:
            return msgspec.structs.replace(use, choice=choice)


def _named(use: core.ToolUse, names: list[str], path: str) -> tuple[core.Tool, ...]:
    known = [tool.name for tool in use.tools]
    for name in names:
        if name not in known:
            raise InvalidRequestError(
                f"{path} has {name!r}, which is none of the tools: {', '.join(known)}", param=path
            )
    return tuple(tool for tool in use.tools if tool.name in names)


def to_calls(wire: list[Call], path: str) -> tuple[core.ToolCall, ...]:
    """Those of an earlier answer. Their arguments must be what templates can show."""
    return tuple(_to_call(call, f"{path}[{i}].function.arguments") for i, call in enumerate(wire))


def _to_call(wire: Call, path: str) -> core.ToolCall:
    arguments = wire.function.arguments.strip() or "{}"
    try:
        is_object = isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidRequestError(
            f"{path} is {arguments[:80]!r}; it must be the text of a JSON object", param=path
        )
    return core.ToolCall(wire.id, wire.function.name, arguments)


def answer_call(call: core.ToolCall) -> AnswerCall:
    return AnswerCall(call.id, "function", CalledFunction(call.name, call.arguments))


def call_delta(event: ToolCallDelta) -> CallDelta:
    kind = None if event.id is None else "function"
    return CallDelta(event.index, FunctionDelta(event.arguments, event.name), event.id, kind)
