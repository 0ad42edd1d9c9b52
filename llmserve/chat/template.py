"""A model's own chat template, rendered in jinja's immutable sandbox.

The template is code from a downloaded file (CVE-2024-34359): it never runs in any other
environment than `_environment`.
"""

import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmserve.core import Message
from llmserve.errors import InvalidRequestError


class ChatTemplate:
    """Messages -> the text that the model continues as the assistant."""

    def __init__(self, source: str, *, bos_text: str, eos_text: str) -> None:
        """Raises `InvalidRequestError` if `source` is not a jinja template."""
        self._constants = {"bos_token": bos_text, "eos_token": eos_text}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"the model's chat template is broken: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Raises `InvalidRequestError` with the template's own words if it refuses."""
        try:
            return self._template.render(
                self._constants,
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
            )
        except Exception as error:
            # Whatever the template's code trips over: a wrong role order, a sandbox violation.
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that Hugging Face's templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    # jinja's own filter escapes for HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern)
