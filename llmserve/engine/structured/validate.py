"""What a request may demand of its answer. Judged once, before its prompt is rendered.

What comes here comes from strangers. llguidance bounds its own work, but recurses in native code
along references between rules, and overflowing that stack ends the process: refused is what could
go that deep, before it is given away. The compiler trusts that.
"""

import re
from collections.abc import Sequence

from llmserve.core import Constraint, Request, Tool
from llmserve.engine.structured.lark_limits import check_lark
from llmserve.engine.structured.limits import MAX_SOURCE_BYTES, check_patterns, check_size, refusal
from llmserve.engine.structured.schema_limits import check_schema
from llmserve.errors import InvalidRequestError

_FIELDS = {
    "json": "response_format",
    "json_schema": "response_format.json_schema.schema",
    "regex": "response_format.regex",
    "lark": "response_format.grammar",
    "gbnf": "response_format.grammar",
    "calls": "tools",
}


def check_request(request: Request) -> None:
    """Raises `InvalidRequestError` that names the field."""
    _check_tool_use(request)
    if request.constraint is not None:
        _check_promise(request, request.constraint)
        check_constraint(request.constraint)


def check_constraint(constraint: Constraint) -> None:
    """Raises `InvalidRequestError` for what is too large or too deep for native code."""
    field, source = field_of(constraint), constraint.source
    if constraint.kind == "json_schema":
        check_schema(source, field)
        return
    check_size(source, field, MAX_SOURCE_BYTES)
    if constraint.kind == "regex":
        check_patterns([source], field)
    if constraint.kind == "lark":
        check_lark(source, field)


def field_of(constraint: Constraint) -> str:
    """What errors call it."""
    return constraint.field or _FIELDS[constraint.kind]


def _check_tool_use(request: Request) -> None:
    use, constraint = request.tool_use, request.constraint
    if use is None:
        return
    _check_tools(use.tools)
    if request.sampling.ignore_eos and use.choice != "none":
        raise InvalidRequestError(
            "ignore_eos does not go with tools: calls say where the answer ends",
            param="parameters.ignore_eos",
        )
    if not use.tools or use.choice != "auto" or constraint is None:
        return
    if constraint.kind not in ("json", "json_schema"):
        raise InvalidRequestError(
            f"response_format of kind {constraint.kind} does not go with tools; use a JSON"
            " schema, or tool_choice 'required'",
            param="response_format",
        )


def _check_tools(tools: Sequence[Tool]) -> None:
    """The schemas of arguments, as constraints. A name must be able to stand in every format."""
    for index, tool in enumerate(tools):
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", tool.name):
            raise refusal(
                f"tools[{index}].function.name",
                "it must have 1 to 64 of the characters a-z, A-Z, 0-9, _, - and .",
            )
        if tool.parameters is not None:
            check_schema(tool.parameters, f"tools[{index}].function.parameters")


def _check_promise(request: Request, constraint: Constraint) -> None:
    """That an answer with the finish reason stop matches."""
    field = constraint.field or "response_format"
    if request.sampling.ignore_eos:
        raise InvalidRequestError(
            f"ignore_eos does not go with {field}, which says where the answer ends",
            param="parameters.ignore_eos",
        )
    if request.stop:
        raise InvalidRequestError(
            f"stop does not go with {field}: it would cut the answer before it matches;"
            " use max_tokens to bound it",
            param="parameters.stop",
        )
