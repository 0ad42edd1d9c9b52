"""A model's own chat template, rendered in jinja's immutable sandbox.

The template is code from a downloaded file (CVE-2024-34359): it never runs in any other
environment than `_environment`, and within the limits of `chat/meter.py`.
"""

import datetime
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.meta

from llmserve.chat.meter import OverLimitsError
from llmserve.chat.sandbox import Sandbox
from llmserve.core import Message, ToolCall
from llmserve.errors import InvalidRequestError

MAX_SOURCE_LEN = 128 * 1024  # characters; the largest known have 30,000
MAX_REASON_LEN = 500  # of a template's own words in an error
MAX_DATE_LEN = 256  # of a format: the C library can make 256 times as much of it


class CallShape(NamedTuple):
    """What templates do not agree on, of an assistant's message with calls."""

    has_objects: bool = True  # arguments are objects, or else JSON text
    has_null: bool = True  # content is null if there is no text, or else ""
    has_short_ids: bool = False  # nine letters and digits


USUAL_SHAPE = CallShape()


class ChatTemplate:
    """Messages -> the text that the model continues as the assistant.

    A source that is no template is no error here, because the model can still complete bare text:
    it is in `fault`, and `render` refuses.
    """

    def __init__(self, source: str, *, bos_text: str, eos_text: str) -> None:
        self.source = source
        self.fault: str | None = None
        self._constants = {"bos_token": bos_text, "eos_token": eos_text}
        self._compiled: Callable[[dict[str, Any]], str] | None = None
        if len(source) > MAX_SOURCE_LEN:
            self.fault = f"it has {len(source)} characters, over {MAX_SOURCE_LEN}"
            return
        try:
            self._compiled = _environment().compiled(source)
        except Exception as error:  # jinja's own, or Python's for a source nested too deeply
            self.fault = str(error) or type(error).__name__

    @functools.cached_property
    def variables(self) -> frozenset[str]:
        """The names that it reads and does not define."""
        if self._compiled is None:
            return frozenset()
        environment = _environment()
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(self.source)))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        shape: CallShape = USUAL_SHAPE,
    ) -> str:
        """`tools` are as OpenAI's. Raises `InvalidRequestError` with the template's own words if
        it refuses.
        """
        if self._compiled is None or self.fault is not None:
            raise InvalidRequestError(
                f"the model's chat template is broken: {self.fault}; use mode completion",
                param="mode",
            )
        turns = [_as_dict(message, shape) for message in messages]
        try:
            return self._compiled(
                {
                    **(variables or {}),
                    **self._constants,
                    "tools": tools or None,
                    "documents": None,
                    "messages": turns,
                    "add_generation_prompt": True,
                }
            )
        except OverLimitsError as error:
            raise InvalidRequestError(
                f"the model's chat template goes over its limits with these messages: {error}",
                param="messages",
            ) from error
        except Exception as error:
            # Whatever the template's code trips over: a wrong role order, a sandbox violation.
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {str(error)[:MAX_REASON_LEN]}",
                param="messages",
            ) from error

    def attempt(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        shape: CallShape = USUAL_SHAPE,
    ) -> str | None:
        """What `render` makes of a trial, None if it refuses.

        A template that goes over its limits with so little is broken.
        """
        try:
            return self.render(messages, tools, shape=shape)
        except InvalidRequestError as error:
            if isinstance(error.__cause__, OverLimitsError):
                self.fault = str(error.__cause__)
            return None


def _as_dict(message: Message, shape: CallShape) -> dict[str, Any]:
    """What templates read; they ask whether there is a name by `is defined`."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    if message.reasoning is not None:
        fields["reasoning_content"] = message.reasoning
        if not (message.tool_calls and message.content):  # of which gpt-oss's takes only one
            fields["thinking"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [_call_as_dict(call, shape) for call in message.tool_calls]
        if not message.content and shape.has_null:
            fields["content"] = None
    if message.tool_call_id is not None:
        fields["tool_call_id"] = _call_id(message.tool_call_id, shape)
    return fields


def _call_as_dict(call: ToolCall, shape: CallShape) -> dict[str, Any]:
    arguments: Any = call.arguments
    if shape.has_objects:
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"the arguments of call {call.id!r} are not JSON: {error}", param="messages"
            ) from error
    function = {"name": call.name, "arguments": arguments}
    return {"id": _call_id(call.id, shape), "type": "function", "function": function}


def _call_id(id: str, shape: CallShape) -> str:  # noqa: A002
    if not shape.has_short_ids or re.fullmatch("[a-zA-Z0-9]{9}", id):
        return id
    return hashlib.sha256(id.encode()).hexdigest()[:9]


def _environment() -> Sandbox:
    """With the names that transformers' `render_jinja_template` always passes."""
    functions = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return Sandbox({"tojson": _tojson}, functions)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes for HTML, which models were not trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > MAX_DATE_LEN:
        raise jinja2.TemplateError(f"a date's format has over {MAX_DATE_LEN} characters")
    return datetime.datetime.now().astimezone().strftime(pattern)
