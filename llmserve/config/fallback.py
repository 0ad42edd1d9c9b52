"""Which models stand in for which: pure functions over a graph of names.

`stand_ins` maps the name of each model to those that are tried when it cannot answer.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

StandIns: TypeAlias = Mapping[str, Sequence[str]]


def chain(name: str, stand_ins: StandIns) -> list[str]:
    """`name`, then its fallbacks, each with its own after it; none twice. Needs no cycles."""
    found = {name: None}
    for other in stand_ins[name]:
        found.update(dict.fromkeys(chain(other, stand_ins)))
    return list(found)


def way_back(name: str, stand_ins: StandIns) -> list[str] | None:
    """The names on a way from `name` to itself, with it at both ends; None if there is none."""
    ways = [[name]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for other in stand_ins[way[-1]]:
            if other == name:
                return [*way, name]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return None
