"""What may be compiled, and in llguidance's words.

What comes here comes from strangers. llguidance bounds its own work, but recurses in native code
along references between rules, and overflowing that stack ends the process: `check` refuses what
could go that deep before it is given away.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from llguidance import LLMatcher

from llmserve.core import Constraint, Tool
from llmserve.engine.gbnf import GrammarError, to_lark
from llmserve.errors import InvalidRequestError

MAX_SOURCE_BYTES = 64 * 1024
MAX_CALLS_BYTES = 4 * MAX_SOURCE_BYTES  # of the grammar of all tools together
MAX_DEPTH = 64  # brackets in brackets, in a schema's text
MAX_REFERENCE_DEPTH = 1000  # the same with every reference followed once
MAX_PROPERTIES = 1000  # of one object; compiling takes the square of this, 0.1 s here
MAX_COLONS = 500  # in a Lark grammar; every rule and every key of a schema inside has one

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
    _check_size(source, field, MAX_CALLS_BYTES if constraint.kind == "calls" else MAX_SOURCE_BYTES)
    if constraint.kind == "lark" and (num_colons := source.count(":")) > MAX_COLONS:
        raise refusal(field, f"it has {num_colons} colons, over {MAX_COLONS}")


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


def check_schema(source: str, field: str) -> None:
    """The same for one schema, of that name."""
    _check_size(source, field, MAX_SOURCE_BYTES)
    if (depth := text_depth(source)) > MAX_DEPTH:
        raise refusal(field, f"it is nested {depth} deep, over {MAX_DEPTH}")
    try:
        schema = msgspec.json.decode(source)
    except msgspec.DecodeError as error:
        raise refusal(field, f"it is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise refusal(field, "it is not an object")
    if (depth := reference_depth(schema)) > MAX_REFERENCE_DEPTH:
        raise refusal(field, f"its references go {depth} deep together, over {MAX_REFERENCE_DEPTH}")
    if (count := max(map(_num_properties, _objects(schema)))) > MAX_PROPERTIES:
        raise refusal(field, f"an object has {count} properties, over {MAX_PROPERTIES}")


def _check_size(source: str, field: str, max_bytes: int) -> None:
    try:
        num_bytes = len(source.encode())
    except UnicodeEncodeError as error:
        raise refusal(field, "it has half of a surrogate pair") from error
    if num_bytes > max_bytes:
        raise refusal(field, f"it has {num_bytes} bytes, over {max_bytes}")


def text_depth(json: str) -> int:
    """How deep the brackets of JSON nest; of any text, without recursion."""
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', json, re.DOTALL):
        if bracket in ("[", "{"):
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in ("]", "}"):
            depth -= 1
    return deepest


def reference_depth(schema: dict[str, Any]) -> int:
    """No path through `schema` that follows each `$ref` once is longer than this."""
    depths: dict[int, int] = {}
    whole = _measure(schema, depths)
    references = {ref for node in _objects(schema) if isinstance(ref := node.get("$ref"), str)}
    # What a pointer cannot find (an anchor, an escaped name) counts like everything together.
    return whole + sum(depths.get(id(_target(schema, ref)), whole) for ref in references)


def _measure(node: Any, depths: dict[int, int]) -> int:
    """The depth of `node`, and of everything in it by id. As deep as `MAX_DEPTH` at most."""
    match node:
        case dict():
            inner: Iterable[Any] = node.values()
        case list():
            inner = node
        case _:
            return 0
    depth = depths[id(node)] = 1 + max((_measure(child, depths) for child in inner), default=0)
    return depth


def _objects(schema: Any) -> Iterable[dict[str, Any]]:
    """All JSON objects in `schema`, itself included."""
    todo = [schema]
    while todo:
        match todo.pop():
            case dict() as node:
                yield node
                todo.extend(node.values())
            case list() as items:
                todo.extend(items)


def _num_properties(node: dict[str, Any]) -> int:
    return max(
        (len(v) for k in ("properties", "patternProperties") if isinstance(v := node.get(k), dict)),
        default=0,
    )


def _target(schema: dict[str, Any], reference: str) -> Any:
    """What a JSON pointer like `#/$defs/name` points at, or None."""
    node: Any = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        node = node.get(step) if isinstance(node, dict) else None
    return node


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
                return LLMatcher.grammar_from_lark(to_lark(constraint.source))
            except GrammarError as error:
                raise refusal(field_of(constraint), str(error)) from error


def _from_schema(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(
        schema,
        defaults={"whitespace_pattern": _WHITESPACE},
        overrides={"lenient": False},
    )


def field_of(constraint: Constraint) -> str:
    """What errors call it."""
    return constraint.field or _FIELDS[constraint.kind]


def refusal(field: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} cannot be used: {reason}", param=field)
