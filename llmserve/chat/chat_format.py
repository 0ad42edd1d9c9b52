"""How one model converses: its template, and the formats of its calls and thoughts.

What a template can do with tools is found out by giving it some, as llama.cpp does: its code
may ignore them, want arguments as text, or take no message without content.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from msgspec.structs import replace

from llmserve.chat.prompted_tools import add_instructions, as_plain_turns, describe_tools
from llmserve.chat.template import USUAL_SHAPE, CallShape, ChatTemplate
from llmserve.chat.tools.formats.detect import detect_format, detect_thinking
from llmserve.chat.tools.formats.harmony import HARMONY
from llmserve.chat.tools.formats.hermes import GENERIC
from llmserve.core import Message, Tool, ToolCall, ToolUse
from llmserve.errors import InvalidRequestError

_RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
_SWITCHES = ("enable_thinking", "thinking")  # by which templates turn thoughts on and off
_EFFORT = "reasoning_effort"
_EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high"}  # what models know

_PROBE_TOOL = Tool("probe_tool", "A probe.", '{"type": "object", "properties": {}}')
_PROBE_CALL = ToolCall("probeid01", "probe_tool", '{"probe_key": "probe_value"}')
_PROBE_USER = Message("user", "probe_question")


class ChatStyle:
    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        known = detect_format(template.source)
        self._is_known = known is not None
        self.format = known or GENERIC
        self.thinking = None if self.format.has_channels else detect_thinking(template.source)

    @property
    def thinks(self) -> bool:
        return self.format.has_channels or self.thinking is not None

    def render(
        self,
        messages: Sequence[Message],
        use: ToolUse | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that the model continues. Raises `InvalidRequestError`."""
        tools = [as_function(tool) for tool in use.tools] if use and use.choice != "none" else []
        if not tools and not any(m.tool_calls or m.role == "tool" for m in messages):
            return self._template.render(messages, variables=variables)
        if tools and not self._lists_tools:
            assert use is not None
            writing = self.format.writing
            text = describe_tools(tools, writing, parallel=use.parallel and writing.most != 1)
            messages = add_instructions(messages, text, has_system=self._takes_system)
        listed = [{"type": "function", "function": tool} for tool in tools]
        shape = self._shape
        if shape is None:
            messages = as_plain_turns(messages, self.format.writing)
        elif not shape.takes_several:
            messages = _one_call_each(messages)
        return self._template.render(
            messages,
            listed if self._lists_tools else None,
            variables=variables,
            shape=shape.calls if shape else USUAL_SHAPE,
        )

    def starts_in_thought(self, text: str) -> bool:
        """Whether the prompt `text` has opened a thought, which the answer goes on with."""
        return self.thinking is not None and text.rstrip().endswith(self.thinking.open)

    # -- what the template is told about thinking -------------------------------------------------

    def variables(self, effort: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of a reasoning effort, and of those that the request names itself, which count more.

        Raises `InvalidRequestError` for what would change nothing.
        """
        found = self._of_effort(effort)
        for name, value in given.items():
            if name in self._template.variables and name not in _RESERVED:
                found[name] = value
            elif not (name in _SWITCHES and value is False and not self.thinks):
                known = sorted(self._template.variables - _RESERVED)
                raise InvalidRequestError(
                    f"the model's chat template has no variable {name!r} to set;"
                    f" it reads: {', '.join(known) or 'none'}",
                    param=f"chat_template_kwargs.{name}",
                )
        return found

    def _of_effort(self, effort: str | None) -> dict[str, Any]:
        if effort is None or (effort == "none" and not self.thinks):
            return {}
        if not self.thinks:
            raise InvalidRequestError(
                f"reasoning_effort is {effort!r}, but this model does not think; leave it out",
                param=_EFFORT,
            )
        switches = [name for name in _SWITCHES if name in self._template.variables]
        has_effort = _EFFORT in self._template.variables
        if effort == "none" and not switches and (self.format is HARMONY or not has_effort):
            raise InvalidRequestError(
                "reasoning_effort is 'none', but this model always thinks; use 'low'",
                param=_EFFORT,
            )
        variables: dict[str, Any] = dict.fromkeys(switches, effort != "none")
        if has_effort:
            variables[_EFFORT] = _EFFORTS.get(effort, effort)
        return variables

    # -- what the template can do with tools ------------------------------------------------------

    @functools.cached_property
    def _lists_tools(self) -> bool:
        if not self._is_known:
            return False  # it may, but then asks for calls that could not be read
        listed = [{"type": "function", "function": as_function(_PROBE_TOOL)}]
        return _PROBE_TOOL.name in (self._template.attempt([_PROBE_USER], listed) or "")

    @functools.cached_property
    def _takes_system(self) -> bool:
        text = self._template.attempt([Message("system", "probe_system"), _PROBE_USER])
        return text is not None and "probe_system" in text

    @functools.cached_property
    def _shape(self) -> "_Shape | None":
        """How it shows calls and their results, if it does."""
        if not self._is_known:
            return None
        call = Message("assistant", "", tool_calls=(_PROBE_CALL,))
        result = Message("tool", "probe_result", tool_call_id=_PROBE_CALL.id)
        second = replace(_PROBE_CALL, id="probeid02", name="second_tool")
        for has_objects, has_null in product((True, False), repeat=2):
            calls = CallShape(has_objects, has_null, self.format.short_ids)
            text = self._template.attempt([_PROBE_USER, call, result], shape=calls) or ""
            if "probe_result" in text and _shows_arguments(text):
                several = [replace(call, tool_calls=(_PROBE_CALL, second)), result]
                both = self._template.attempt([_PROBE_USER, *several], shape=calls) or ""
                return _Shape(calls, takes_several=second.name in both)
        return None


class _Shape(NamedTuple):
    calls: CallShape
    takes_several: bool  # calls in one message


def _shows_arguments(text: str) -> bool:
    """As JSON or one by one: neither as text in JSON nor as Python writes them."""
    wrong = ('\\"probe_key', "'probe_key'")
    return "probe_key" in text and "probe_value" in text and not any(w in text for w in wrong)


def as_function(tool: Tool) -> dict[str, Any]:
    """What templates expect in `function`; some fail where a key is missing."""
    parameters = tool.parameters or '{"type": "object", "properties": {}}'
    return {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": json.loads(parameters),
    }


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Several calls of one message as messages with their results between, for templates that
    show one call only.
    """
    results = {m.tool_call_id: m for m in messages if m.role == "tool"}
    split: list[Message] = []
    moved: set[str] = set()
    for message in messages:
        if len(message.tool_calls) < 2:
            if message.tool_call_id not in moved:
                split.append(message)
            continue
        for index, call in enumerate(message.tool_calls):
            one = replace(message, tool_calls=(call,))
            split.append(one if index == 0 else replace(one, content="", reasoning=None))
            if result := results.get(call.id):
                moved.add(call.id)
                split.append(result)
    return split
