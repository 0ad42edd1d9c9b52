"""The wire formats of tools and calls, of chat completions.

A name is what OpenAI takes, with dots; so it can stand in any model's format as it is.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from llmserve.api.fields import JsonObjectOrNull

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]


class Function(Struct, forbid_unknown_fields=True):
    name: ToolName
    description: Annotated[str, Meta(max_length=65536)] | None = None
    # A JSON schema, which the engine bounds.
    parameters: JsonObjectOrNull | UnsetType = UNSET
    strict: bool | None = None  # arguments follow the schema either way


class Tool(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


Tools = Annotated[list[Tool], Meta(max_length=128)]


class FunctionName(Struct, forbid_unknown_fields=True):
    name: ToolName


class NamedTool(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionName


class NamedChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """This tool must be called."""

    function: FunctionName


class AllowedTools(Struct, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=128)]


class AllowedChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Only these of the tools may be called."""

    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class CalledFunction(Struct, forbid_unknown_fields=True):
    name: ToolName
    arguments: str  # JSON


class Call(Struct, forbid_unknown_fields=True):
    """A call in an assistant's message, of a request and of an answer."""

    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None  # clients that put deltas together send it back


class AnswerCall(Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class FunctionDelta(Struct, omit_defaults=True):
    arguments: str
    name: str | None = None


class CallDelta(Struct, omit_defaults=True):
    """A piece of a call: the first has id, type and name, later ones only more of the arguments."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None
