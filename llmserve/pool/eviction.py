"""What has to leave so that a model fits. Pure: decides, and leaves acting to the pool.

Idle models go first, least recently used first. If they do not suffice, the load waits until
busy models, again the least recently used, have finished what they are doing. Nothing is given up
that does not help: a model that cannot fit anyway evicts none.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key")


class Residency(StrEnum):
    """What stands between a resident model and its eviction."""

    IDLE = "idle"
    BUSY = "busy"  # loading, or answering requests
    LEAVING = "leaving"  # its memory comes back without further doing
    PINNED = "pinned"


class Resident(NamedTuple, Generic[Key]):
    key: Key
    size_bytes: int
    last_used_s: float
    residency: Residency


class Decision(NamedTuple, Generic[Key]):
    """`can_load` now, or after `evict` is gone and `drain` became idle; none of it: never."""

    can_load: bool = False
    evict: tuple[Key, ...] = ()
    drain: tuple[Key, ...] = ()
    never: bool = False


def choose_evictions(
    need_bytes: int, residents: Iterable[Resident[Key]], budget_bytes: int
) -> Decision[Key]:
    """How to make room for `need_bytes` within `budget_bytes`."""
    oldest_first = sorted(residents, key=lambda r: r.last_used_s)
    missing = need_bytes + sum(r.size_bytes for r in oldest_first) - budget_bytes
    if missing <= 0:
        return Decision(can_load=True)
    missing -= sum(r.size_bytes for r in oldest_first if r.residency is Residency.LEAVING)
    evict, missing = _take((r for r in oldest_first if r.residency is Residency.IDLE), missing)
    drain, missing = _take((r for r in oldest_first if r.residency is Residency.BUSY), missing)
    if missing > 0:
        return Decision(never=True)
    return Decision(evict=evict, drain=drain)


def _take(candidates: Iterable[Resident[Key]], missing: int) -> tuple[tuple[Key, ...], int]:
    """As many of `candidates` as it takes, and what is missing after that."""
    taken: list[Key] = []
    for resident in candidates:
        if missing <= 0:
            break
        taken.append(resident.key)
        missing -= resident.size_bytes
    return tuple(taken), missing
