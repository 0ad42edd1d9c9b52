"""What may be compiled, and in llguidance's words.

What comes here comes from strangers. llguidance bounds its own work, but recurses in native code
along references between rules, and overflowing that stack ends the process: `check` refuses what
could go that deep before it is given away.
"""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
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
MAX_ALTERNATIVES = 500  # objects and arrays to choose from; a step can compare each with each
# What may match in many ways, `x?` and its like, in all regular expressions of a constraint. A
# chain of more is refused by llguidance anyway, but after time that grows with its square.
MAX_QUANTIFIERS = 300
MAX_COUNT = 2_000  # of what must be repeated, and …
MAX_LITERAL_LEN = 8 * 1024  # … characters in a row that must come: each mask tokenizes them again
MAX_TOGETHER = 10  # patterns that one text must match; whether any can takes two to that power
MAX_CONJUNCTS = 200  # schemas that one value must match
MAX_DIVISORS = 20_000  # `multipleOf` of a schema, as one sum: each has as many states
MAX_REFERENCES = 300  # to rules of a grammar that contain themselves: all may be possible at once

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
    if constraint.kind == "regex":
        _check_patterns([source], field)
    if constraint.kind == "lark":
        _check_lark(source, field)


_QUANTIFIER = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[?*]|\{\d[\d, ]*\}", re.DOTALL
)  # and what only looks like one
_LARK = re.compile(
    r"""
     (?P<json>%json)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<comment>//[^\n]*)
    |(?P<regex>/(?:[^/\\\n]|\\.)+/)
    |(?P<definition>[A-Za-z_][\w.-]*\s*(?:\[[^\]\n]*\]|\{[^}\n]*\})?\s*:)
    |(?P<name>[A-Za-z_][\w.-]*)
    |(?P<quantifier>[?*]|\{\d[\d, ]*\})
    """,
    re.VERBOSE,
)


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
    _check_keywords(list(_objects(schema)), field)
    for node in _objects(schema):
        _check_together(schema, node, field)


def _check_keywords(nodes: list[dict[str, Any]], field: str) -> None:
    """`nodes` are all the objects of a schema: some keywords are costly together."""
    if (count := max(map(_num_properties, nodes))) > MAX_PROPERTIES:
        raise refusal(field, f"an object has {count} properties, over {MAX_PROPERTIES}")
    choices = [c for node in nodes for key in ("anyOf", "oneOf") for c in _list_in(node, key)]
    if (count := sum(map(_is_nested, choices))) > MAX_ALTERNATIVES:
        raise refusal(field, f"it has {count} alternatives, over {MAX_ALTERNATIVES}")
    _check_patterns(_patterns(nodes), field)
    _check_literals(
        (text for node in nodes for text in (node.get("const"), *_list_in(node, "enum"))), field
    )
    divisors = sum(_num_states(node.get("multipleOf")) for node in nodes)
    if divisors > MAX_DIVISORS:
        raise refusal(field, f"all its multipleOf are {divisors} together, over {MAX_DIVISORS}")


def _check_together(schema: dict[str, Any], node: dict[str, Any], field: str) -> None:
    """The patterns that meet in one text, by `allOf` and `$ref`, or in one property."""
    conjuncts = _conjuncts(schema, [node])
    meeting: Counter[str | None] = Counter({None: len(_patterns(conjuncts))})
    for conjunct in conjuncts if len(conjuncts) > 1 else ():
        properties = conjunct.get("properties")
        for name, value in properties.items() if isinstance(properties, dict) else ():
            meeting[name] += len(_patterns(_conjuncts(schema, [value])))
    if len(conjuncts) > MAX_CONJUNCTS:
        raise refusal(field, f"a value must match over {MAX_CONJUNCTS} schemas at once")
    combinations = math.prod(len(_list_in(conjunct, "anyOf")) or 1 for conjunct in conjuncts)
    if combinations > MAX_ALTERNATIVES:
        raise refusal(field, f"its anyOf combine in {combinations} ways, over {MAX_ALTERNATIVES}")
    if (count := max(meeting.values())) > MAX_TOGETHER:
        raise refusal(field, f"a text must match {count} patterns at once, over {MAX_TOGETHER}")


def _conjuncts(schema: dict[str, Any], todo: list[Any]) -> list[dict[str, Any]]:
    """What must all match where one of `todo` does; not much more than `MAX_CONJUNCTS`."""
    found: list[dict[str, Any]] = []
    followed: set[str] = set()
    while todo and len(found) <= MAX_CONJUNCTS:
        node = todo.pop()
        if isinstance(node, dict):
            found.append(node)
            todo += _list_in(node, "allOf")
            if isinstance(ref := node.get("$ref"), str) and ref not in followed:
                followed.add(ref)
                todo.append(_target(schema, ref))
            if len(choices := _list_in(node, "anyOf")) == 1:
                todo += choices
    return found


def _patterns(nodes: Iterable[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        keys = node.get("patternProperties")
        found += keys if isinstance(keys, dict) else ()
        found += [pattern] if isinstance(pattern := node.get("pattern"), str) else ()
    return found


def _list_in(node: dict[str, Any], key: str) -> list[Any]:
    return value if isinstance(value := node.get(key), list) else []


def _is_nested(schema: Any) -> bool:
    """Whether an alternative can be more than a number or a text."""
    kind = schema.get("type", "object") if isinstance(schema, dict) else None
    return kind in ("object", "array") or isinstance(kind, list)


def _num_states(divisor: Any) -> int:
    """Of an automaton that divides, as llguidance does: without what 10 takes care of."""
    if isinstance(divisor, bool) or not isinstance(divisor, int | float) or not divisor:
        return 0
    states = abs(int("".join(map(str, Decimal(str(divisor)).as_tuple().digits))))
    for factor in (2, 5):
        while states and states % factor == 0:
            states //= factor
    return states


def _check_literals(texts: Iterable[Any], field: str) -> None:
    for text in texts:
        if isinstance(text, str) and len(text) > MAX_LITERAL_LEN:
            raise refusal(field, f"it has a text of {len(text)} characters, over {MAX_LITERAL_LEN}")


def _check_patterns(patterns: Sequence[str], field: str) -> None:
    """Of regular expressions."""
    _check_literals((part for p in patterns for part in re.split(r"[|?*+{([.]", p)), field)
    _check_quantifiers((q for pattern in patterns for q in _QUANTIFIER.findall(pattern)), field)


def _check_quantifiers(found: Iterable[str], field: str) -> None:
    count = 0
    for quantifier in found:
        count += quantifier[:1] in ("?", "*", "{")
        least = re.match(r"\{(\d+)", quantifier)
        if least and len(least[1]) < 12 and int(least[1]) > MAX_COUNT:
            raise refusal(field, f"{quantifier} repeats more than {MAX_COUNT} times")
    if count > MAX_QUANTIFIERS:
        raise refusal(field, f"it has {count} times ?, * or {{}}, over {MAX_QUANTIFIERS}")


def _check_lark(source: str, field: str) -> None:
    if (num_colons := source.count(":")) > MAX_COLONS:
        raise refusal(field, f"it has {num_colons} colons, over {MAX_COLONS}")
    found = list(_LARK.finditer(source))
    for match in found:
        if match.lastgroup == "json":
            _check_inner_schema(source, match.end(), field)
    _check_patterns([match[0] for match in found if match.lastgroup == "regex"], field)
    _check_parts(source, field)


def _check_inner_schema(source: str, start: int, field: str) -> None:
    """A schema in a grammar; what is none is for llguidance to refuse."""
    text = source[start:].lstrip()
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text)
        check_schema(text[:end], field)


def _check_parts(source: str, field: str) -> None:
    """Of Lark: literals, quantifiers, and references between rules that hold themselves.

    The work for what can be empty and holds itself grows with the square of these, or worse.
    """
    found = list(_LARK.finditer(source))
    _check_literals((match["string"] for match in found), field)
    _check_quantifiers((m[0] for m in found if m.lastgroup == "quantifier"), field)
    rules: dict[str, list[str]] = {}
    body: list[str] = []
    for match in found:
        if match.lastgroup == "definition":
            body = rules.setdefault(re.split(r"[\s\[{:]", match[0], maxsplit=1)[0], [])
        elif match.lastgroup == "name":
            body.append(match[0])
    circular = _in_circles(rules)
    count = sum(name in circular for body in rules.values() for name in body)
    if count > MAX_REFERENCES:
        raise refusal(
            field, f"it has {count} references to rules that hold themselves, over {MAX_REFERENCES}"
        )


def _in_circles(rules: Mapping[str, Iterable[str]]) -> set[str]:
    """The rules that can come to themselves again, and those between such."""
    graph = {name: {other for other in body if other in rules} for name, body in rules.items()}
    left: set[str] = set(graph)
    while ends := {name for name in left if not graph[name] & left}:
        left -= ends
    return left


def _check_size(source: str, field: str, max_bytes: int) -> None:
    try:
        num_bytes = len(source.encode())
    except UnicodeEncodeError as error:
        raise refusal(field, "it has half of a surrogate pair") from error
    if num_bytes > max_bytes:
        raise refusal(field, f"it has {num_bytes} bytes, over {max_bytes}")


def text_depth(text: str) -> int:
    """How deep the brackets of JSON nest; of any text, without recursion."""
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', text, re.DOTALL):
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
                lark = to_lark(constraint.source)
            except GrammarError as error:
                raise refusal(field_of(constraint), str(error)) from error
            _check_parts(lark, field_of(constraint))
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


def refusal(field: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} cannot be used: {reason}", param=field)
