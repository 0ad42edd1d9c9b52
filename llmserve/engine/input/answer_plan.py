"""core.Request -> how its answer is read, and what it must match, for one model.

A request that can only be answered with text is read as text: its plan has no reading.
"""

import functools
from typing import NamedTuple

from llmserve.chat.chat_format import ChatStyle
from llmserve.chat.tools.formats.model import markers_of
from llmserve.chat.tools.grammar import call_grammar
from llmserve.chat.tools.schemas import ANY_OBJECT, value_types
from llmserve.core import Constraint, Request, ToolUse
from llmserve.engine.output.parser import Reading
from llmserve.engine.runtime import Runtime
from llmserve.engine.structured.grammar import SCHEMA_OPTIONS
from llmserve.engine.structured.limits import MAX_SOURCE_BYTES, check_size

MAX_CALLS_BYTES = 4 * MAX_SOURCE_BYTES  # of the grammar of all tools together


class AnswerPlan(NamedTuple):
    reading: Reading | None
    constraint: Constraint | None


class Answering:
    """May be used by several threads at once."""

    def __init__(self, style: ChatStyle, runtime: Runtime) -> None:
        self._style = style
        self._runtime = runtime

    def plan(self, request: Request, conversation: str) -> AnswerPlan:
        """`conversation` is what the template made of it. Raises `InvalidRequestError`."""
        style, use = self._style, request.tool_use
        if use is not None and (use.choice == "none" or not use.tools):
            use = None
        if use is None and not style.thinks:
            return AnswerPlan(None, request.constraint)
        in_thought = style.starts_in_thought(conversation)
        reading = Reading(
            format=style.format.name,
            thinking=style.thinking,
            with_calls=use is not None,
            starts_in_thought=in_thought,
            value_types=value_types(use.tools) if use and self._writes_parameters else {},
            controls={
                self._controls[marker]: marker.encode()
                for marker in markers_of(style.format, style.thinking, with_calls=use is not None)
                if marker in self._controls
            },
            opening=None if in_thought else self._opening(conversation),
        )
        return AnswerPlan(reading, self._constraint(use, request) if use else request.constraint)

    @property
    def _writes_parameters(self) -> bool:
        return self._style.format.writing.arguments == "parameters"

    def _constraint(self, use: ToolUse, request: Request) -> Constraint:
        grammar = call_grammar(
            use,
            self._style.format,
            self._controls,
            options=SCHEMA_OPTIONS,
            text_schema=_text_schema(request.constraint) if use.choice == "auto" else None,
        )
        check_size(grammar, "tools", MAX_CALLS_BYTES)
        return Constraint("calls", grammar)

    @functools.cached_property
    def _controls(self) -> dict[str, int]:
        """The markers of the format that are control tokens of this model."""
        markers = markers_of(self._style.format, self._style.thinking, with_calls=True)
        found = {marker: self._runtime.find_marker(marker) for marker in markers}
        return {
            text: marker.token for text, marker in found.items() if marker and marker.is_control
        }

    def _opening(self, conversation: str) -> int | None:
        """The token of a thought that the model may begin, unless the prompt has had one."""
        thinking = self._style.thinking
        if thinking is None or conversation.rstrip().endswith(thinking.close):
            return None
        marker = self._runtime.find_marker(thinking.open)
        return marker.token if marker else None


def _text_schema(constraint: Constraint | None) -> str | None:
    """What an answer without calls must match."""
    if constraint is None:
        return None
    if constraint.kind == "json":
        return ANY_OBJECT
    assert constraint.kind == "json_schema", "checked by `validate`"
    return constraint.source
