"""The embedding work of one model: the inputs of many requests, packed into bounded batches.

Only the worker's thread comes here. The rules:

1. Requests take turns, input by input, so that a small one does not wait for a large one.
2. Beside running streams a batch is small, and after it generation has at least as much time as
   it took. A model that only embeds always computes full batches.
3. An input that can be computed in parts fills the rest of a batch; it enters when there are cells
   for all of it, so every input that has begun can be finished.
4. The requests of a batch that failed go on one at a time, so that only the culprit fails.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmserve.engine.messages import Embed, Embedded, Failed, Reply, StepReport, StepStats
from llmserve.engine.runtime import (
    AbortedError,
    EmbeddingLimits,
    InputChunk,
    Runtime,
)
from llmserve.engine.worker.inbox import INTERRUPT_FROM, Inbox
from llmserve.errors import EngineError

log = logging.getLogger(__name__)

BUSY_TOKENS = 32  # in a batch beside running streams: a stall of about 0.15 s (README)


@dataclass(slots=True, eq=False)
class Job:
    """One request: what is to be embedded, and the vectors so far."""

    id: int
    inputs: list[list[int]]
    vectors: NDArray[np.float32]  # (inputs, dimensions)
    num_started: int = 0
    num_done: int = 0


@dataclass(slots=True, eq=False)
class Input:
    """One text. With a slot it has begun, and the slot holds `tokens[:num_computed]`."""

    job: Job
    index: int
    tokens: list[int] = field(init=False)
    slot: int | None = None
    num_computed: int = 0

    def __post_init__(self) -> None:
        self.tokens = self.job.inputs[self.index]

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.num_computed


class Work(NamedTuple):
    """Compute the next `num_tokens` pending tokens of `input`."""

    input: Input
    num_tokens: int

    @property
    def is_last(self) -> bool:
        return self.num_tokens == self.input.num_pending


def plan_batch(
    begun: Sequence[Input], upcoming: Iterable[Input], limits: EmbeddingLimits, max_tokens: int
) -> list[Work]:
    """The next batch, of at most `max_tokens`: what has begun first, then others in their order.

    Pure. Not empty if there is anything to do. Only an input that has to be whole exceeds
    `max_tokens`, alone.
    """
    work: list[Work] = []
    budget = max_tokens

    def take(each: Input) -> bool:
        nonlocal budget
        if limits.is_whole and each.num_pending > budget and work:
            return False
        num_tokens = each.num_pending if limits.is_whole else min(each.num_pending, budget)
        if num_tokens > 0:
            work.append(Work(each, num_tokens))
            budget -= num_tokens
        return num_tokens > 0

    for each in begun:
        take(each)
    num_cells = sum(len(each.tokens) for each in begun)
    num_inputs = len(begun)
    for each in upcoming:
        num_cells += len(each.tokens)
        num_inputs += 1
        has_room = limits.num_cells is None or num_cells <= limits.num_cells
        if not has_room or num_inputs > limits.max_inputs or not take(each):
            break
    return work


class Embedder:
    """Computes what was added, a batch at each `step`."""

    def __init__(
        self,
        runtime: Runtime,
        report: Callable[[StepReport], None],
        inbox: Inbox,
    ) -> None:
        self._runtime = runtime
        self._limits = runtime.embedding_limits
        self._report = report
        self._inbox = inbox
        self._jobs: deque[Job] = deque()  # the one whose turn it is first
        self._begun: list[Input] = []
        self._free_slots = list(range(self._limits.max_inputs if self._limits else 0))
        self._suspects: list[Job] = []  # of a batch that failed, to go on alone
        self._not_before_s = 0.0  # when there is a next turn beside running streams

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    @property
    def num_running(self) -> int:
        """Requests that have begun."""
        return sum(job.num_started > 0 for job in self._jobs)

    @property
    def num_waiting(self) -> int:
        return len(self._jobs) - self.num_running

    def add(self, command: Embed) -> None:
        assert self._limits
        shape = (len(command.inputs), self._limits.num_dimensions)
        self._jobs.append(Job(command.id, command.inputs, np.zeros(shape, dtype=np.float32)))

    def cancel(self, request_id: int) -> None:
        """Forget a request. Unknown ids are fine."""
        for each in [each for each in self._begun if each.job.id == request_id]:
            self._runtime.forget(self._release(each))
        self._jobs = deque(job for job in self._jobs if job.id != request_id)

    def cancel_all(self) -> None:
        """The worker ends: tell every request. What has begun ends with the runtime."""
        replies: list[Reply] = [(job.id, Embedded(None)) for job in self._jobs]
        self._jobs.clear()
        self._begun.clear()
        if replies:
            self._report(StepReport(replies))

    def step(self, *, is_busy: bool) -> None:
        """Compute one batch and report what came of it, if there is work and it is its turn.

        `is_busy`: streams are running.
        """
        if not self._jobs or (is_busy and time.monotonic() < self._not_before_s):
            return
        work = self._plan(is_busy=is_busy)
        num_tokens = sum(each.num_tokens for each in work)
        begin_s = time.monotonic()
        replies = self._compute(work, num_tokens)
        if replies is None:
            return
        now_s = time.monotonic()
        self._not_before_s = now_s + (now_s - begin_s)
        stats = StepStats(num_decoded=0, num_prefilled=num_tokens, step_s=now_s - begin_s)
        self._report(StepReport(replies, stats))

    def _plan(self, *, is_busy: bool) -> list[Work]:
        assert self._limits
        max_tokens = self._limits.max_batch
        if is_busy:
            max_tokens = min(max_tokens, BUSY_TOKENS)
        begun, upcoming = self._begun, _in_turns(self._jobs)
        self._suspects = [job for job in self._suspects if any(e.job is job for e in begun)]
        if self._suspects:
            begun = [each for each in begun if each.job is self._suspects[0]]
            upcoming = iter(())
        work = plan_batch(begun, upcoming, self._limits, max_tokens)
        assert work, "there is work, but it is never done"
        return work

    def _compute(self, work: list[Work], num_tokens: int) -> list[Reply] | None:
        """What the batch has to say; None if nothing was computed."""
        jobs = {each.input.job.id for each in work}
        if len(jobs) == 1 and num_tokens >= INTERRUPT_FROM:
            (request_id,) = jobs
            if not self._inbox.begin(request_id):
                return None
        self._begin(work)
        try:
            vectors = self._runtime.embed([_chunk(each) for each in work])
        except AbortedError:
            self._restart()
            return None
        except EngineError as error:
            self._restart()
            return self._failed(work, error)
        finally:
            self._inbox.end()
        return self._advance(work, vectors)

    def _begin(self, work: list[Work]) -> None:
        """Give slots to what is new, and the next turn to a job that had none."""
        num_new = 0
        for each in (each.input for each in work if each.input.slot is None):
            each.slot = self._free_slots.pop()
            each.job.num_started += 1
            self._begun.append(each)
            num_new += 1
        self._jobs.rotate(-(num_new % len(self._jobs)))

    def _restart(self) -> None:
        """The runtime has forgotten all that has begun."""
        for each in self._begun:
            each.num_computed = 0

    def _advance(self, work: list[Work], vectors: NDArray[np.float32]) -> list[Reply]:
        replies: list[Reply] = []
        rows = iter(vectors)
        for each, num_tokens in work:
            is_last = num_tokens == each.num_pending
            each.num_computed += num_tokens
            if not is_last:
                continue
            self._release(each)
            job = each.job
            job.vectors[each.index] = next(rows)
            job.num_done += 1
            if job.num_done == len(job.inputs):
                self._jobs.remove(job)
                replies.append((job.id, _answer(job)))
        return replies

    def _failed(self, work: list[Work], error: EngineError) -> list[Reply]:
        """Of one request alone it ends that; of several, one is to be found out."""
        jobs = list({each.input.job.id: each.input.job for each in work}.values())
        if len(jobs) > 1:
            log.warning("a batch of %d requests failed, each is tried alone: %s", len(jobs), error)
            self._suspects = jobs
            return []
        log.error("embedding failed: %s", error)
        self.cancel(jobs[0].id)
        return [(jobs[0].id, Failed(error.message))]

    def _release(self, each: Input) -> int:
        assert each.slot is not None
        slot, each.slot = each.slot, None
        self._begun.remove(each)
        self._free_slots.append(slot)
        return slot


def _in_turns(jobs: Sequence[Job]) -> Iterator[Input]:
    """What has not begun: the next input of each job, then the one after it, and so on."""
    waiting = [(job, job.num_started) for job in jobs]
    while waiting:
        waiting = [(job, index) for job, index in waiting if index < len(job.inputs)]
        for job, index in waiting:
            yield Input(job, index)
        waiting = [(job, index + 1) for job, index in waiting]


def _answer(job: Job) -> Embedded | Failed:
    if not np.isfinite(job.vectors).all():
        return Failed("the model computed no finite vector for this request")
    return Embedded(job.vectors.astype("<f4").tobytes())


def _chunk(work: Work) -> InputChunk:
    each, num_tokens = work
    assert each.slot is not None
    end = each.num_computed + num_tokens
    return InputChunk(
        each.slot, each.num_computed, each.tokens[each.num_computed : end], work.is_last
    )
