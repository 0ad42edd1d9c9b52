"""What may be compiled, and in llguidance's words.

What comes here comes from strangers. llguidance bounds its own work, but recurses in native code
along references between rules, and overflowing that stack ends the process: `check` refuses what
could go that deep before it is given away.
"""

import re
from collections.abc import Iterable

from llguidance import LLMatcher

from llmserve.core import Constraint, Tool
from llmserve.engine.structured.gbnf import GrammarError, to_lark
from llmserve.engine.structured.lark_limits import check_lark, check_parts
from llmserve.engine.structured.limits import MAX_SOURCE_BYTES, check_patterns, check_size, refusal
from llmserve.engine.structured.schema_limits import check_schema

MAX_CALLS_BYTES = 4 * MAX_SOURCE_BYTES  # of the grammar of all tools together

# Enough for pretty-printed JSON. With unbounded space a small model can go on with it for ever.
_WHITESPACE = r"[ ]|\n[ ]{0,24}"

# For schemas inside of a grammar. They may bring options of their own (`x-guidance`), but not
# `lenient`: it would let llguidance pass over the keywords that it cannot enforce.
SCHEMA_OPTIONS = {"whitespace_pattern": _WHITESPACE, "lenient": False}

_FIELDS = {
    "json": "response_format",
    "json_schema": "response_format.json_schema.schema",
    "regex": "response_format.regex",
    "lark": "response_format.grammar",
    "gbnf": "response_format.grammar",
    "calls": "tools",
}


def check(constraint: Constraint) -> None:
    """Raises `InvalidRequestError` for what is too large or too deep for native code."""
    field, source = field_of(constraint), constraint.source
    if constraint.kind == "json_schema":
        check_schema(source, field)
        return
    check_size(source, field, MAX_CALLS_BYTES if constraint.kind == "calls" else MAX_SOURCE_BYTES)
    if constraint.kind == "regex":
        check_patterns([source], field)
    if constraint.kind == "lark":
        check_lark(source, field)


def check_tools(tools: Iterable[Tool]) -> None:
    """The same for the schemas of their arguments, before anybody reads them.

    A name must be able to stand in every format as it is.
    """
    for index, tool in enumerate(tools):
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", tool.name):
            raise refusal(
                f"tools[{index}].function.name",
                "it must have 1 to 64 of the characters a-z, A-Z, 0-9, _, - and .",
            )
        if tool.parameters is not None:
            check_schema(tool.parameters, f"tools[{index}].function.parameters")


def grammar_of(constraint: Constraint) -> str:
    """For `LLMatcher`. Raises `InvalidRequestError` for GBNF that is none."""
    match constraint.kind:
        case "json":
            return _from_schema('{"type": "object"}')
        case "json_schema":
            return _from_schema(constraint.source)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.source)
        case "lark" | "calls":
            return LLMatcher.grammar_from_lark(constraint.source)
        case "gbnf":
            try:
                lark = to_lark(constraint.source)
            except GrammarError as error:
                raise refusal(field_of(constraint), str(error)) from error
            check_parts(lark, field_of(constraint))
            return LLMatcher.grammar_from_lark(lark)


def _from_schema(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(
        schema,
        defaults={"whitespace_pattern": _WHITESPACE},
        overrides={"lenient": False},
    )


def field_of(constraint: Constraint) -> str:
    """What errors call it."""
    return constraint.field or _FIELDS[constraint.kind]
