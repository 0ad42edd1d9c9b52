"""Which load may begin: loads wait for memory in the order they were asked for."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from llmserve.pool.errors import insufficient
from llmserve.pool.eviction import Residency, Resident, choose_evictions
from llmserve.pool.model import Model, State


class AbandonedError(Exception):
    """No request waits any longer for a load that holds up the requests to busy models."""


class _Waiting(NamedTuple):
    model: Model
    admission: "asyncio.Future[None]"


class MemoryAdmission:
    """The memory budget, and the queue before it."""

    def __init__(self, budget_bytes: Callable[[int], int], models: Callable[[], Collection[Model]]):
        """`models()` are all that the pool knows; `budget_bytes` as for `Pool`."""
        self._budget_bytes = budget_bytes
        self._models = models
        self._queue: deque[_Waiting] = deque()

    @property
    def budget_bytes(self) -> int:
        """The most that all models together may take now."""
        return self._budget_bytes(self.resident_bytes)

    @property
    def resident_bytes(self) -> int:
        """What all admitted models take, by estimate."""
        return sum(model.size_bytes for model in self._admitted)

    @property
    def largest_bytes(self) -> int:
        """What a model could have if all but the pinned ones left."""
        pinned = sum(r.size_bytes for r in self._residents() if r.residency is Residency.PINNED)
        return self.budget_bytes - pinned

    def join(self, model: Model) -> "asyncio.Future[None]":
        """Done when there is room for `model`, or with why there will be none."""
        admission = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(model, admission))
        return admission

    def clear(self) -> None:
        self._queue.clear()

    def admit(self) -> list[Model]:
        """Admit loads in their order. Returns what must leave for the first that waits."""
        draining: set[Model] = set()
        evicted: list[Model] = []
        while self._queue:
            model, admission = self._queue[0]
            decision = choose_evictions(model.size_bytes, self._residents(), self.budget_bytes)
            if decision.can_load:
                model.is_admitted = True
                admission.set_result(None)
            elif decision.never:
                admission.set_exception(insufficient(model, self._admitted, self.budget_bytes))
            elif decision.drain and not model.num_leases:
                admission.set_exception(AbandonedError)
            else:
                evicted = list(decision.evict)
                draining.update(decision.drain)
                break
            self._queue.popleft()
        for model in self._models():
            model.is_draining = model in draining
        return evicted

    @property
    def _admitted(self) -> list[Model]:
        return [model for model in self._models() if model.is_admitted]

    def _residents(self) -> list[Resident[Model]]:
        return [
            Resident(model, model.size_bytes, model.last_used_s, model.residency)
            for model in self._admitted
        ]

    def check_integrity(self) -> None:
        for model, admission in self._queue:
            assert model.state is State.LOADING
            assert not model.is_admitted
            assert not admission.done()
