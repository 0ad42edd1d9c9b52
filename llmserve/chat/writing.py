"""Calls -> the text that a model writes for them."""

import json
from collections.abc import Sequence

from llmserve.chat.tools.formats.table import Writing
from llmserve.core import ToolCall


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
