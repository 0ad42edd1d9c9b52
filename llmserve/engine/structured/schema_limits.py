"""What may be in a JSON schema. The keywords that are costly together are counted together."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec

from llmserve.engine.structured.limits import (
    MAX_SOURCE_BYTES,
    check_literals,
    check_patterns,
    check_size,
    refusal,
)

MAX_DEPTH = 64  # brackets in brackets, in a schema's text
MAX_REFERENCE_DEPTH = 1000  # the same with every reference followed once
MAX_PROPERTIES = 1000  # of one object; compiling takes the square of this, 0.1 s here
MAX_ALTERNATIVES = 500  # objects and arrays to choose from; a step can compare each with each
MAX_TOGETHER = 10  # patterns that one text must match; whether any can takes two to that power
MAX_CONJUNCTS = 200  # schemas that one value must match
MAX_DIVISORS = 20_000  # `multipleOf` of a schema, as one sum: each has as many states


def check_schema(source: str, field: str) -> None:
    """Raises `InvalidRequestError` if `source`, which errors call `field`, is not within bounds."""
    check_size(source, field, MAX_SOURCE_BYTES)
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
    check_patterns(_patterns(nodes), field)
    check_literals(
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


def _num_properties(node: dict[str, Any]) -> int:
    return max(
        (len(v) for k in ("properties", "patternProperties") if isinstance(v := node.get(k), dict)),
        default=0,
    )


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


def _target(schema: dict[str, Any], reference: str) -> Any:
    """What a JSON pointer like `#/$defs/name` points at, or None."""
    node: Any = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        node = node.get(step) if isinstance(node, dict) else None
    return node
