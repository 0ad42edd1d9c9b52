"""core.Constraint -> what llguidance compiles. It has been checked by `validate`."""

from llguidance import LLMatcher

from llmserve.core import Constraint
from llmserve.engine.structured.gbnf import GrammarError, to_lark
from llmserve.engine.structured.lark_limits import check_parts
from llmserve.engine.structured.limits import refusal
from llmserve.engine.structured.validate import field_of

# Enough for pretty-printed JSON. With unbounded space a small model can go on with it for ever.
_WHITESPACE = r"[ ]|\n[ ]{0,24}"

# For schemas inside of a grammar. They may bring options of their own (`x-guidance`), but not
# `lenient`: it would let llguidance pass over the keywords that it cannot enforce.
SCHEMA_OPTIONS = {"whitespace_pattern": _WHITESPACE, "lenient": False}


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
