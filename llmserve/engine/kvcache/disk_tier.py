"""What is parked on disk, for the worker: fetched when a sequence arrives, kept when one leaves."""

import logging
import queue
from collections.abc import Callable
from typing import NamedTuple

from llmserve.engine.kvcache.disk_store import DiskOptions, DiskStore, Piece, StateFile
from llmserve.engine.kvcache.host_store import Parking
from llmserve.engine.kvcache.radix_tree import num_common
from llmserve.engine.runtime import State
from llmserve.engine.scheduler.sequence import Sequence

log = logging.getLogger(__name__)


class _Fetch(NamedTuple):
    """States on their way, and the sequences that wait for them: the first one asked."""

    namespace: str
    tokens: list[int]
    sequences: list[Sequence]


class _Fetched(NamedTuple):
    fetch: _Fetch
    pieces: list[Piece]
    unusable: StateFile | None


class DiskTier:
    """Called by the worker's thread only. Does nothing without options, or before `open`."""

    def __init__(
        self, parking: Parking[State], options: DiskOptions | None, wake: Callable[[], None]
    ) -> None:
        """`wake` is called in another thread when there is something to `collect`."""
        self._parking = parking  # where what was fetched goes
        self._options = options
        self._wake = wake
        self._store: DiskStore | None = None
        self._fetches: list[_Fetch] = []
        self._fetched: queue.SimpleQueue[_Fetched] = queue.SimpleQueue()

    @property
    def is_open(self) -> bool:
        return self._store is not None

    def open(self) -> None:
        if self._options is None:
            return
        try:
            self._store = DiskStore(self._options, can_cut=self._parking.can_cut)
        except OSError as error:
            log.error("prefixes are kept in memory only: %s", error)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def fetch(self, sequence: Sequence, start: int, at_least: int) -> None:
        """Fetch what follows the first `start` tokens, if it goes on to `at_least` or beyond."""
        assert self._store is not None
        namespace, tokens = sequence.namespace, sequence.tokens
        for fetch in self._fetches:
            if fetch.namespace == namespace and num_common(fetch.tokens, tokens) >= at_least:
                fetch.sequences.append(sequence)
                return
        end = self._store.find(namespace, tokens, len(tokens) - 1)
        if end >= at_least:
            fetch = _Fetch(namespace, tokens[:end], [sequence])
            self._fetches.append(fetch)

            def on_read(pieces: list[Piece], unusable: StateFile | None) -> None:
                self._fetched.put(_Fetched(fetch, pieces, unusable))
                self._wake()

            self._store.read(namespace, tokens, start, end, on_read)

    def is_fetching(self, sequence: Sequence) -> bool:
        return any(sequence in fetch.sequences for fetch in self._fetches)

    def collect(self, *, wait: bool = False) -> list[Sequence]:
        """Park what has come; with `wait` once something has.

        Returns those that waited for what others had asked for.
        """
        joined: list[Sequence] = []
        while wait or not self._fetched.empty():
            wait = False
            fetch, pieces, unusable = self._fetched.get()
            self._fetches.remove(fetch)
            for namespace, tokens, start, state in pieces:
                self._parking.add(namespace, tokens, start, state)
            if unusable is not None and self._store is not None:
                self._store.forget(fetch.namespace, fetch.tokens, unusable)
            joined += fetch.sequences[1:]
        return joined

    def keep(self, namespace: str, tokens: list[int]) -> None:
        """Write what is parked of `tokens` and not yet on disk."""
        if self._store is None:
            return
        num_kept = self._store.find(namespace, tokens, len(tokens))
        path = self._parking.tree.match(namespace, tokens, len(tokens))
        for node, end in path if self._parking.can_cut else path[-1:]:
            parked = node.payload
            if parked is not None and end > num_kept and end == parked.end:
                self._store.keep(namespace, tokens[:end], parked.start, parked.state)

    def retain(self, namespace: str, prompts: list[list[int]]) -> None:
        """Remove all that is no beginning of one of `prompts`."""
        if self._store is not None:
            self._store.retain(namespace, prompts)

    def check_integrity(self) -> None:
        """Assert that the books balance; for tests."""
        if self._store is not None:
            self._store.check_integrity()
