"""What may be in a Lark grammar. It is not parsed: whatever could be one of its parts counts."""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping

from llmserve.engine.structured.limits import (
    check_literals,
    check_patterns,
    check_quantifiers,
    refusal,
)
from llmserve.engine.structured.schema_limits import check_schema

MAX_COLONS = 500  # every rule and every key of a schema inside has one
MAX_REFERENCES = 300  # to rules that contain themselves: all may be possible at once

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


def check_lark(source: str, field: str) -> None:
    """Raises `InvalidRequestError` if `source`, which errors call `field`, is not within bounds."""
    if (num_colons := source.count(":")) > MAX_COLONS:
        raise refusal(field, f"it has {num_colons} colons, over {MAX_COLONS}")
    found = list(_LARK.finditer(source))
    for match in found:
        if match.lastgroup == "json":
            _check_inner_schema(source, match.end(), field)
    check_patterns([match[0] for match in found if match.lastgroup == "regex"], field)
    check_parts(source, field)


def _check_inner_schema(source: str, start: int, field: str) -> None:
    """A schema in a grammar; what is none is for llguidance to refuse."""
    text = source[start:].lstrip()
    with contextlib.suppress(json.JSONDecodeError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text)
        check_schema(text[:end], field)


def check_parts(source: str, field: str) -> None:
    """Of Lark: literals, quantifiers, and references between rules that hold themselves.

    The work for what can be empty and holds itself grows with the square of these, or worse.
    """
    found = list(_LARK.finditer(source))
    check_literals((match["string"] for match in found), field)
    check_quantifiers((m[0] for m in found if m.lastgroup == "quantifier"), field)
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
