"""How many connections there may be, and which one makes room.

A server that refuses newcomers when it is full is closed to all by a client that opens enough
connections and says nothing. So room is made by the connection that has kept us waiting longest;
only when all others are being answered is a newcomer refused.
"""

import logging
import resource
from typing import Protocol

log = logging.getLogger(__name__)

_MAX_LEAVING = 64
_RESERVE = 256  # descriptors for files, models' processes and providers


class Waiting(Protocol):
    def evict(self) -> None: ...


class Admission:
    """The connections of one server that wait for their client, the longest first.

    Those that are refused take no place, and are a few at most.
    """

    def __init__(self, max_connections: int) -> None:
        self._max = max_connections
        self._waiting: dict[Waiting, None] = {}
        self._leaving: dict[Waiting, None] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._leaving)

    def wait(self, connection: Waiting) -> None:
        """A connection that waits already keeps its place."""
        self._waiting.setdefault(connection)

    def leave(self, connection: Waiting) -> None:
        """It is refused, and stays for no more than to be told so."""
        self._waiting.pop(connection, None)
        self._leaving[connection] = None
        if len(self._leaving) > _MAX_LEAVING:
            self._evict(self._leaving)

    def forget(self, connection: Waiting) -> None:
        """It does not wait, or is no more."""
        self._waiting.pop(connection, None)
        self._leaving.pop(connection, None)

    def admit(self, newcomer: Waiting, num_connections: int) -> bool:
        """Make room for `newcomer`, which is one of `num_connections` and waits already."""
        if num_connections - len(self._leaving) <= self._max:
            return True
        if next(iter(self._waiting)) is newcomer:
            return False
        self._evict(self._waiting)
        return True

    def _evict(self, connections: dict[Waiting, None]) -> None:
        oldest = next(iter(connections))
        del connections[oldest]
        oldest.evict()


def allowed_connections(wanted: int) -> int:
    """How many connections of `wanted` there are descriptors for, once their limit is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _RESERVE
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = max(soft - _RESERVE, soft // 2)
    log.warning(
        "only %d connections are possible, not the %d of max_connections: this process may have"
        " %d open files; raise that with ulimit -n %d, or LimitNOFILE of its systemd unit",
        *(allowed, wanted, soft, needed),
    )
    return allowed
