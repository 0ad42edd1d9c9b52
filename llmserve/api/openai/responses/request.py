"""A request for a response -> core, and what of it comes back with the answer."""

import secrets
import time

import msgspec
from msgspec import UNSET, Raw

from llmserve import core
from llmserve.api.http.decode import decode_kind
from llmserve.api.openai.params import refuse, sampling, seeds
from llmserve.api.openai.response_format import format_constraint, object_text
from llmserve.api.openai.responses.history import to_messages
from llmserve.api.openai.responses.items import ReasoningEcho, ResponseBody, TextEcho
from llmserve.api.openai.responses.schemas import (
    AllowedChoice,
    FunctionTool,
    NamedChoice,
    Reasoning,
    ResponsesRequest,
    TextConfig,
    TextFormat,
    ToolChoice,
)
from llmserve.api.openai.tools import named_tools, open_use, unique_tools
from llmserve.wire.fields import stop_strings
from llmserve.wire.validation import MissingFieldError

_REFUSED: dict[str, tuple[object, ...]] = {  # with the values that ask for nothing
    "access_programs": (),
    "context_management": ([],),
    "image": (),
    "moderation": (),
    "prompt": (),
    "truncation": ("disabled",),
}
_REFUSED_STATE: dict[str, tuple[object, ...]] = {
    "background": (False,),
    "conversation": (),
    "previous_response_id": (),
}
_REFUSED_OF_TEXT: dict[str, tuple[object, ...]] = {"verbosity": ("medium",)}
_REFUSED_OF_REASONING: dict[str, tuple[object, ...]] = {
    "context": ("auto",),
    "mode": ("standard",),
    # Nothing here could make it short; as detailed as it gets is what the model thought.
    "summary": ("auto", "detailed"),
    "generate_summary": ("auto", "detailed"),
}
_REFUSED_OF_TOOLS: dict[str, tuple[object, ...]] = {
    "allowed_callers": (["direct"],),
    "async_": (False,),
}


def to_core(wire: ResponsesRequest) -> core.Request:
    """Raises `InvalidRequestError`s that name the field."""
    refuse(wire, _REFUSED)
    refuse(wire, _REFUSED_STATE, reason="nothing is stored; send the whole history as input")
    text = wire.text or TextConfig()
    refuse(text, _REFUSED_OF_TEXT, prefix="text.")
    reasoning = wire.reasoning or Reasoning()
    refuse(reasoning, _REFUSED_OF_REASONING, prefix="reasoning.")
    (seed,) = seeds(wire, 1)
    return core.Request(
        model=wire.model,
        messages=to_messages(wire.input, wire.instructions),
        mode=core.Mode.CHAT,
        sampling=sampling(wire),
        max_tokens=wire.max_output_tokens,
        stop=stop_strings(wire.stop),
        seed=seed,
        num_logprobs=(wire.top_logprobs or 0) if wants_logprobs(wire) else None,
        constraint=_constraint(text.format),
        priority=wire.priority or "interactive",
        deterministic=bool(wire.deterministic),
        timeout_s=wire.timeout,
        cache_prompt=wire.cache_prompt is not False,
        tool_use=_tool_use(wire),
        reasoning_effort=reasoning.effort,
    )


def wants_logprobs(wire: ResponsesRequest) -> bool:
    return bool(wire.top_logprobs) or "message.output_text.logprobs" in (wire.include or ())


def wants_summary(wire: ResponsesRequest) -> bool:
    return wire.reasoning is not None and _summary(wire.reasoning) is not None


def to_echo(wire: ResponsesRequest, asked: core.Request) -> ResponseBody:
    """The answer before it begins; its model is known when it does."""
    reasoning = wire.reasoning or Reasoning()
    format_ = wire.text.format if wire.text and wire.text.format else TextFormat("text")
    return ResponseBody(
        id=f"resp_{secrets.token_hex(24)}",
        created_at=int(time.time()),
        instructions=wire.instructions,
        max_output_tokens=wire.max_output_tokens,
        max_tool_calls=wire.max_tool_calls,
        metadata=wire.metadata or {},
        model=wire.model or "",
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        prompt_cache_key=wire.prompt_cache_key,
        reasoning=ReasoningEcho(reasoning.effort, _summary(reasoning)),
        safety_identifier=wire.safety_identifier,
        temperature=asked.sampling.temperature,
        text=TextEcho(format_),
        tool_choice=wire.tool_choice or "auto",
        tools=wire.tools or [],
        top_logprobs=wire.top_logprobs or 0,
        top_p=1.0 if wire.top_p is None else wire.top_p,
        user=wire.user,
    )


def _summary(wire: Reasoning) -> str | None:
    return wire.summary or wire.generate_summary


def _constraint(wire: TextFormat | None) -> core.Constraint | None:
    if wire is None:
        return None
    path = "text.format.schema"
    if wire.type == "json_schema" and wire.schema is UNSET:
        raise MissingFieldError(f"{path} is missing", param=path)
    return format_constraint(wire.type, wire.schema or Raw(), path=path)


def _tool_use(wire: ResponsesRequest) -> core.ToolUse | None:
    paths = {f"tools[{i}]": raw for i, raw in enumerate(wire.tools or ())}
    tools = unique_tools({path: _tool(raw, path) for path, raw in paths.items()})
    use = open_use(tools, wire.tool_choice, wire.parallel_tool_calls)
    return use and _choose(use, wire.tool_choice or "auto")


def _tool(raw: Raw, path: str) -> core.Tool:
    wire = decode_kind(raw, {"function": FunctionTool}, at=path)
    refuse(wire, _REFUSED_OF_TOOLS, prefix=f"{path}.")
    parameters = object_text(wire.parameters or Raw(), path=f"{path}.parameters")
    return core.Tool(wire.name, wire.description, parameters)


def _choose(use: core.ToolUse, choice: ToolChoice) -> core.ToolUse:
    match choice:
        case NamedChoice(name):
            (only,) = named_tools(use, [name], "tool_choice.name")
            return msgspec.structs.replace(use, choice="required", name=only.name)
        case AllowedChoice(mode, allowed):
            names = [tool.name for tool in allowed]
            tools = named_tools(use, names, "tool_choice.tools")
            return msgspec.structs.replace(use, tools=tools, choice=mode)
        case _:
            return msgspec.structs.replace(use, choice=choice)
