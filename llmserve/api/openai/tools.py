"""Tools, choices and calls of chat completions <-> core's; what responses do alike."""

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from llmserve import core
from llmserve.api.openai.chat_schemas import (
    AllowedChoice,
    AnswerCall,
    Call,
    CallDelta,
    CalledFunction,
    ChatRequest,
    FunctionDelta,
    NamedChoice,
    Tool,
    ToolChoice,
)
from llmserve.api.openai.response_format import object_text
from llmserve.core import ToolCallDelta
from llmserve.errors import InvalidRequestError


def tool_use(wire: ChatRequest) -> core.ToolUse | None:
    """Raises `InvalidRequestError`s that name the field."""
    use = open_use(to_tools(wire.tools or []), wire.tool_choice, wire.parallel_tool_calls)
    return use and _choose(use, wire.tool_choice)


def open_use(
    tools: tuple[core.Tool, ...], choice: object, parallel: bool | None
) -> core.ToolUse | None:
    """The use of `tools` before their `choice`, which there may not be if there are none."""
    if tools:
        return core.ToolUse(tools, parallel=parallel is not False)
    if choice not in (None, "none", "auto"):
        raise InvalidRequestError("tool_choice is given, but no tools are", param="tool_choice")
    return None


def to_tools(wire: list[Tool]) -> tuple[core.Tool, ...]:
    paths = {f"tools[{i}].function": tool for i, tool in enumerate(wire)}
    return unique_tools({path: _to_tool(tool, path) for path, tool in paths.items()})


def _to_tool(wire: Tool, path: str) -> core.Tool:
    function = wire.function
    parameters = object_text(function.parameters or Raw(), path=f"{path}.parameters")
    return core.Tool(function.name, function.description, parameters)


def unique_tools(tools: Mapping[str, core.Tool]) -> tuple[core.Tool, ...]:
    """Those at the paths. Raises `InvalidRequestError` for two of one name."""
    found: dict[str, core.Tool] = {}
    for path, tool in tools.items():
        if tool.name in found:
            raise InvalidRequestError(
                f"{path}.name is {tool.name!r}, like that of another tool; rename one",
                param=f"{path}.name",
            )
        found[tool.name] = tool
    return tuple(found.values())


def _choose(use: core.ToolUse, choice: ToolChoice | None) -> core.ToolUse:
    match choice:
        case None:
            return use
        case NamedChoice(function):
            path = "tool_choice.function.name"
            (only,) = named_tools(use, [function.name], path)
            return msgspec.structs.replace(use, choice="required", name=only.name)
        case AllowedChoice(allowed):
            path = "tool_choice.allowed_tools.tools"
            tools = named_tools(use, [tool.function.name for tool in allowed.tools], path)
            return msgspec.structs.replace(use, tools=tools, choice=allowed.mode)
        case _:
            return msgspec.structs.replace(use, choice=choice)


def named_tools(use: core.ToolUse, names: list[str], path: str) -> tuple[core.Tool, ...]:
    known = [tool.name for tool in use.tools]
    for name in names:
        if name not in known:
            raise InvalidRequestError(
                f"{path} has {name!r}, which is none of the tools: {', '.join(known)}", param=path
            )
    return tuple(tool for tool in use.tools if tool.name in names)


def to_calls(wire: list[Call], path: str) -> tuple[core.ToolCall, ...]:
    """Those of an earlier answer. Their arguments must be what templates can show."""
    return tuple(
        to_call(each.id, each.function.name, each.function.arguments, f"{path}[{i}].function")
        for i, each in enumerate(wire)
    )


def to_call(call_id: str, name: str, arguments: str, path: str) -> core.ToolCall:
    arguments = arguments.strip() or "{}"
    try:
        is_object = isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        is_object = False
    if not is_object:
        raise InvalidRequestError(
            f"{path}.arguments is {arguments[:80]!r}; it must be the text of a JSON object",
            param=f"{path}.arguments",
        )
    return core.ToolCall(call_id, name, arguments)


def answer_call(call: core.ToolCall) -> AnswerCall:
    return AnswerCall(call.id, "function", CalledFunction(call.name, call.arguments))


def call_delta(event: ToolCallDelta) -> CallDelta:
    kind = None if event.id is None else "function"
    return CallDelta(event.index, FunctionDelta(event.arguments, event.name), event.id, kind)
