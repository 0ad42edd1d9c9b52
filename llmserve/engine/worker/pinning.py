"""System prompts that stay: computed once, while there is nothing else to do, and never dropped.

What an earlier run left of them on disk is taken in before the first request; the rest is computed
in steps as short as those beside running streams, each of which a new request interrupts. So no
request waits for them, but where a model cannot be interrupted: then for one such step.
"""

import logging
import time
from collections import deque

from llmserve.core import Request, SamplingParams
from llmserve.engine.input.pins import Pin
from llmserve.engine.kvcache.host_store import MAX_RUN
from llmserve.engine.kvcache.manager import PINNED, KvCache
from llmserve.engine.output.text import TextStream
from llmserve.engine.runtime import AbortedError, Chunk, OutOfCellsError, Runtime
from llmserve.engine.sampling.sampler import Sampler
from llmserve.engine.scheduler.cost_model import Costs
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.worker.inbox import Inbox
from llmserve.engine.worker.slots import Roster, slot_of
from llmserve.errors import EngineError

log = logging.getLogger(__name__)

STEP_S = 0.15
MIN_STEP = 16  # tokens
PINNING = -1  # as the id of a request


class Pinning:
    """Called by the worker's thread only."""

    def __init__(
        self,
        runtime: Runtime,
        roster: Roster,
        kv: KvCache,
        costs: Costs,
        inbox: Inbox,
    ) -> None:
        self._runtime = runtime
        self._roster = roster
        self._kv = kv
        self._costs = costs
        self._inbox = inbox
        self._pending: deque[Pin] = deque()
        self._sequence: Sequence | None = None  # the first of them, while it has a slot

    @property
    def has_work(self) -> bool:
        return bool(self._pending)

    def open(self, pins: list[Pin]) -> None:
        """Take in what is on disk; the rest is for `step`. Before everything else."""
        self._kv.retain_pinned([pin.tokens for pin in pins])
        for pin in pins:
            self._kv.fetch_pinned(self._make_sequence(pin))
            if self._kv.pin(pin.tokens):
                log.info("%s: %d tokens, from disk", pin.name, len(pin.tokens))
            else:
                self._pending.append(pin)

    def step(self) -> None:
        """Compute some more of the first one."""
        pin = self._pending[0]
        sequence = self._sequence or self._enter(pin)
        try:
            if sequence.num_computed < len(pin.tokens):
                self._compute(sequence)
            if sequence.num_computed == len(pin.tokens):
                self._finish(pin, sequence)
        except AbortedError:
            self._roster.rewind(sequence)
        except (OutOfCellsError, EngineError) as error:
            log.error("%s cannot be computed: %s", pin.name, str(error) or "no cells")
            self._roster.rewind(sequence)
            self.pause()
            self._pending.popleft()

    def pause(self) -> None:
        """Give the slot back, for others; what has been computed is parked."""
        if self._sequence is not None:
            self._roster.vacate(self._sequence)
            self._sequence = None

    def _enter(self, pin: Pin) -> Sequence:
        self._sequence = self._make_sequence(pin)
        self._roster.occupy(self._sequence)
        return self._sequence

    def _compute(self, sequence: Sequence) -> None:
        start, num_max = sequence.num_computed, self._runtime.limits.max_batch
        num_fast = self._costs.max_prompt_tokens(0, start, STEP_S)
        end = start + min(max(MIN_STEP, num_fast), num_max, len(sequence.tokens) - 1 - start)
        try:
            if self._runtime.limits.can_cut and not self._inbox.begin(PINNING):
                return
            begin_s = time.monotonic()
            self._runtime.decode(
                [Chunk(slot_of(sequence), start, sequence.tokens[start:end], False)]
            )
        finally:
            self._inbox.end()
        sequence.num_computed = end
        self._costs.observe(0, end - start, start, time.monotonic() - begin_s)

    def _finish(self, pin: Pin, sequence: Sequence) -> None:
        num_tokens = len(pin.tokens)
        num_sample = min(num_tokens, MAX_RUN) if self._runtime.limits.can_cut else num_tokens
        sample = self._runtime.save(slot_of(sequence), 0, num_sample)
        self.pause()
        self._pending.popleft()
        if self._kv.pin(pin.tokens):
            log.info("%s: %d tokens, computed", pin.name, num_tokens)
            return
        log.warning(
            "%s is not kept: its %d tokens take about %.0f MB, and prefix_cache has %.0f MB for all"
            " that is pinned; raise it, or shorten the prompt",
            pin.name,
            num_tokens,
            sample.nbytes * num_tokens / num_sample / 1e6,
            self._kv.budget_bytes / 1e6,
        )

    def _make_sequence(self, pin: Pin) -> Sequence:
        """One that has something pending behind the prompt, which is never computed."""
        info = self._runtime.info
        return Sequence(
            id=PINNING,
            arrival=-1,
            request=Request(cache_namespace=PINNED),
            tokens=[*pin.tokens, pin.tokens[-1]],
            max_len=len(pin.tokens) + 1,
            sampler=Sampler(
                SamplingParams(), seed=0, vocab_size=info.vocab_size, eog_tokens=info.eog_tokens
            ),
            text=TextStream(()),
            accepted_s=0.0,
        )
