"""A model's own chat template, rendered in jinja's immutable sandbox.

The template is code from a downloaded file (CVE-2024-34359): it never runs in any other
environment than `_environment`.
"""

import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmserve.core import Message
from llmserve.errors import InvalidRequestError


class ChatTemplate:
    """Messages -> the text that the model continues as the assistant.

    A source that is no template is no error here, because the model can still complete bare text:
    it is in `fault`, and `render` refuses.
    """

    def __init__(self, source: str, *, bos_text: str, eos_text: str) -> None:
        self.fault: str | None = None
        self._constants = {"bos_token": bos_text, "eos_token": eos_text}
        self._template: jinja2.Template | None = None
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # jinja's own, or Python's for a source nested too deeply
            self.fault = str(error) or type(error).__name__

    def render(self, messages: Sequence[Message]) -> str:
        """Raises `InvalidRequestError` with the template's own words if it refuses."""
        if self._template is None:
            raise InvalidRequestError(
                f"the model's chat template is broken: {self.fault}; use mode completion",
                param="mode",
            )
        try:
            return self._template.render(
                self._constants,
                tools=None,
                documents=None,
                messages=[_as_dict(message) for message in messages],
                add_generation_prompt=True,
            )
        except Exception as error:
            # Whatever the template's code trips over: a wrong role order, a sandbox violation.
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _as_dict(message: Message) -> dict[str, str]:
    """What templates read; they ask whether there is a name by `is defined`."""
    fields = {"role": message.role, "content": message.content}
    return fields if message.name is None else {**fields, "name": message.name}


class _Generation(Extension):
    """`{% generation %}`, which marks what to train on; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for: transformers' `chat_template_utils._compile_jinja_template`,
    and the variables that `render_jinja_template` always passes.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


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
    return datetime.datetime.now().astimezone().strftime(pattern)
