"""Whether, when and where one request is tried again. Pure: random numbers are an argument."""

from collections.abc import Sequence
from typing import NamedTuple

from llmserve.config.provider import Retry

FIRST_PAUSE_S = 0.25
RETRIED_STATUSES = frozenset((408, 409, 429))  # and all of 500 to 599


class Failure(NamedTuple):
    """One attempt that ended before its first event."""

    status: int | None = None  # None: no answer at all
    retry_after_s: float | None = None  # what the provider asked for
    is_final: bool = False  # no other attempt can do better


class Load(NamedTuple):
    """One address, as the choice sees it."""

    num_active: int  # requests that it answers for us now
    num_tried: int  # attempts of this request that it failed
    wait_s: float  # until its breaker lets a request pass


def is_retried(failure: Failure) -> bool:
    if failure.is_final:
        return False
    status = failure.status
    return status is None or status in RETRIED_STATUSES or status >= 500


def pause_s(
    policy: Retry,
    num_attempts: int,
    failure: Failure,
    *,
    left_s: float,
    jitter: float,
    is_elsewhere: bool = False,
) -> float | None:
    """Seconds to wait before the next attempt; None: give up.

    `num_attempts` were made, `left_s` is the time until the deadline, and `jitter` (0 to 1)
    spreads those that failed together. What the provider asks for is waited in full or not at all.
    Another address, which has not failed this request, is asked at once.
    """
    if num_attempts >= policy.attempts or not is_retried(failure):
        return None
    if is_elsewhere:
        wait_s = 0.0
    elif failure.retry_after_s is not None:
        wait_s = failure.retry_after_s
        if wait_s > policy.max_wait:
            return None
    else:
        longest_s = min(FIRST_PAUSE_S * 2 ** (num_attempts - 1), policy.max_wait)
        wait_s = longest_s * (0.5 + 0.5 * jitter)
    return wait_s if wait_s < left_s else None


def choose(loads: Sequence[Load]) -> int | None:
    """The index of the address to ask: not yet tried, then least busy, then first.

    None if every breaker is open.
    """
    ready = [index for index, load in enumerate(loads) if not load.wait_s]
    return min(ready, key=lambda i: (loads[i].num_tried, loads[i].num_active, i), default=None)
