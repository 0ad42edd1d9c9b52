"""The thread that owns a model: drain the inbox, plan, decode, sample, report.

Only this thread touches the sequences and calls the runtime (but for `abort`). Commands arrive
through a queue, everything that happens leaves through `report`, once a step. However the thread
ends, its last report is `Ended`; the runtime belongs to its maker, and outlives the thread.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait

from llmserve.core import FinishReason
from llmserve.engine.input.pins import Pin
from llmserve.engine.kvcache.disk_store import DiskOptions
from llmserve.engine.kvcache.manager import KvCache
from llmserve.engine.load_spec import Policy
from llmserve.engine.messages import (
    Cancel,
    Embed,
    Ended,
    Failed,
    Fetched,
    Reply,
    Report,
    StepStats,
    Stop,
    Submit,
)
from llmserve.engine.runtime import AbortedError, Chunk, Logits, OutOfCellsError, Runtime
from llmserve.engine.scheduler.scheduler import Limits, Outlook, Work, in_age
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.structured.compiler import Compiler
from llmserve.engine.structured.masks import MaskFiller
from llmserve.engine.thread import ModelThread
from llmserve.engine.worker.embedding import Embedder
from llmserve.engine.worker.inbox import INTERRUPT_FROM, Inbox
from llmserve.engine.worker.intake import make_sequence
from llmserve.engine.worker.pinning import PINNING, Pinning
from llmserve.engine.worker.planner import Planner
from llmserve.engine.worker.postprocess import advance
from llmserve.engine.worker.reporter import Reporter
from llmserve.engine.worker.slots import Roster, slot_of
from llmserve.errors import EngineError

log = logging.getLogger(__name__)


class Worker:
    """Runs one model. `report` is called from the worker's thread and must not block."""

    def __init__(
        self,
        runtime: Runtime,
        report: Callable[[Report], None],
        compiler: Compiler | None = None,
        *,
        policy: Policy,
        prefix_cache_bytes: int = 0,
        disk: DiskOptions | None = None,
        pins: Future[list[Pin]] | None = None,
        pinned_disk: DiskOptions | None = None,
    ) -> None:
        """`compiler` has prepared every submitted constraint; disks go with a prefix cache."""
        self._runtime = runtime
        self._compiler = compiler or Compiler(runtime.grammar_tokenizer)
        self._masks = MaskFiller(runtime.info.vocab_size, runtime.info.eog_tokens)
        self._report = report
        limits = runtime.limits
        step_limits = Limits(
            max_batch=limits.max_batch,
            max_running=limits.num_slots,
            num_cells=limits.num_cells,
            max_outputs=limits.max_outputs,
            target_itl_s=policy.target_itl_s,
        )
        self._queue_timeout_s = policy.queue_timeout_s
        self._drafts = policy.speculation and limits.can_cut  # a wrong guess has to go again
        self._inbox = Inbox(runtime)
        self._kv = KvCache(
            runtime, prefix_cache_bytes, disk, lambda: self._inbox.put(Fetched()), pinned_disk
        )
        self._roster = Roster(runtime, self._kv)
        self._pins = pins
        self._planner = Planner(step_limits, self._roster, self._kv)
        self._setbacks = self._planner.setbacks
        self._pinning = Pinning(runtime, self._roster, self._kv, self._planner.costs, self._inbox)
        self._embedder = Embedder(runtime, report, self._inbox)
        self._reporter = Reporter(report, self._roster, step_limits, self._embedder)
        self._num_arrivals = 0
        self._ended: Future[None] = Future()

    def start(self, thread: ModelThread) -> None:
        """Occupy `thread`, the one that loaded the runtime, until `stop`."""
        self._ended = thread.submit(self._run)

    def submit(self, command: Submit | Embed) -> None:
        self._inbox.put(command, interrupts=PINNING)

    def cancel(self, request_id: int) -> None:
        """Forget a request; a step that is mostly for it is interrupted. Any thread."""
        self._inbox.put(Cancel(request_id), interrupts=request_id)

    def stop(self) -> None:
        """End the loop; returns when it is over. Any other thread; twice is fine."""
        self._inbox.put(Stop())
        self._runtime.abort()
        wait([self._ended])

    def _run(self) -> None:
        fault: str | None = "the engine failed; see the server's log"
        try:
            self._kv.open()
            if self._pins is not None:
                self._pinning.open(self._pins.result())
            while self._drain():
                self._compute()
            self._cancel_all()
            fault = None
        except Exception:
            log.exception("the worker failed")
        finally:
            self._masks.close()
            self._kv.close()
            self._report(Ended(fault))

    def _compute(self) -> None:
        if self._is_idle:
            self._pinning.step()
            return
        self._pinning.pause()
        if self._has_sequences:
            self._step()
        self._embed()

    def _embed(self) -> None:
        if self._embedder.has_work:
            self._tell([])  # now: a batch can be long
            self._embedder.step(is_busy=self._has_sequences)

    # -- commands ---------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Take in all commands, waiting for one if there is nothing to do; False to stop."""
        self._runtime.clear_abort()
        while self._is_idle or not self._inbox.empty():
            if self._is_idle:
                self._tell([])  # no step will say that the last one left
                self._kv.check_empty(self._roster.free_slots)
                if self._pinning.has_work and self._inbox.empty():
                    return True
            command = self._inbox.get()
            if isinstance(command, Stop):
                return False
            self._handle(command)
        return True

    @property
    def _is_idle(self) -> bool:
        """Whether there is nothing to do until a command comes."""
        return not (self._has_sequences or self._embedder.has_work)

    @property
    def _has_sequences(self) -> bool:
        """Whether some can be computed: they have a slot, or wait for nothing but one."""
        roster = self._roster
        return bool(roster.running) or not all(map(self._kv.is_fetching, roster.waiting))

    def _handle(self, command: Submit | Embed | Cancel | Fetched) -> None:
        match command:
            case Submit():
                self._accept(command)
            case Embed():
                self._embedder.add(command)
            case Cancel(request_id):
                self._forget(request_id)
                self._embedder.cancel(request_id)
            case Fetched():
                self._kv.collect()

    def _accept(self, submit: Submit) -> None:
        self._num_arrivals += 1
        try:
            sequence = make_sequence(
                submit, self._num_arrivals, self._runtime, self._compiler, drafts=self._drafts
            )
        except Exception:  # parameters that should have been refused above
            log.exception("request %d cannot start", submit.id)
            self._tell([(submit.id, Failed("the request has unusable parameters"))])
        else:
            self._kv.fetch(sequence)
            self._roster.waiting.append(sequence)
            self._reporter.note_change()

    def _forget(self, request_id: int) -> None:
        if sequence := self._roster.find(request_id):
            self._remove(sequence)

    # -- one step ---------------------------------------------------------------------------

    def _step(self) -> None:
        outlook = self._planner.outlook()
        self._change_slots(outlook)
        self._expire(outlook.now_s)
        if not self._roster.running:  # all have been given up on
            return
        self._tell([])  # now: the step may be a long prefill
        begin_s = time.monotonic()
        work = self._planner.work(outlook)
        expected = self._planner.expect(work)
        masks = self._masks.start(w.sequence for w in work if w.is_last)
        logits = self._decode(work)
        if logits is None:
            return
        outcome = advance(work, logits, masks.wait(), self._runtime, time.monotonic())
        step_s = time.monotonic() - begin_s
        self._kv.note(work)
        self._rewind(w for w in work if w.draft)  # cells of guesses that were wrong
        for sequence in outcome.ended:
            self._planner.lengths.observe(sequence.num_generated)
            self._remove(sequence)
        stats = self._planner.observe(expected, step_s, outcome.num_accepted)
        self._tell(outcome.replies, stats)

    def _change_slots(self, outlook: Outlook) -> None:
        entries = self._planner.entries(outlook)
        for sequence in entries.preempt:
            self._preempt(sequence)
        for sequence in entries.admit:
            self._roster.enter(sequence, outlook.now_s)
            self._reporter.note_entry(sequence)

    def _expire(self, now_s: float) -> None:
        """Give up on what has waited too long for the first slot."""
        if self._queue_timeout_s is None:
            return
        latest_s = now_s - self._queue_timeout_s
        for sequence in list(self._roster.waiting):
            if sequence.started_s is None and sequence.accepted_s < latest_s:
                self._fail(sequence, "no slot became free in time", is_timeout=True)

    def _tell(self, replies: list[Reply], stats: StepStats | None = None) -> None:
        self._reporter.tell(replies, self._planner.outlook(), stats)

    def _decode(self, work: list[Work]) -> Logits | None:
        """The logits of `work`, or None if nothing was computed and the next plan tries again."""
        largest = max(work, key=lambda w: w.num_tokens)
        is_mostly_its = largest.num_tokens >= sum(w.num_tokens for w in work) // 2
        can_be_long = is_mostly_its and largest.num_tokens >= INTERRUPT_FROM
        if can_be_long and not self._inbox.begin(largest.sequence.id):
            return None
        try:
            logits = self._runtime.decode([_chunk(w) for w in work])
        except AbortedError:
            self._rewind(work)
        except OutOfCellsError:
            self._shrink(work)
        except EngineError as error:
            self._isolate(work, error)
        else:
            self._setbacks.note_success()
            return logits
        finally:
            self._inbox.end()
        return None

    # -- what can go wrong ------------------------------------------------------------------

    def _rewind(self, work: Iterable[Work]) -> None:
        """Empty the cells that are not booked."""
        for each in work:
            self._roster.rewind(each.sequence)

    def _shrink(self, work: list[Work]) -> None:
        """llama.cpp found no cells: try half the prompt tokens, then one sequence fewer."""
        if self._setbacks.shrink(work):
            return
        if len(self._roster.running) > 1:
            log.warning("llama.cpp found no cells for the batch; preempting one sequence")
            self._preempt(in_age(self._roster.running, time.monotonic())[-1])
            self._setbacks.close(self._planner.limits)
        else:
            only = self._roster.running[0]
            self._fail(
                only,
                "the KV cache cannot hold this request: llama.cpp found no cell for its token"
                f" {only.num_computed + 1}",
            )

    def _isolate(self, work: list[Work], error: EngineError) -> None:
        """A failed step fails only the sequence that makes it fail: each one is tried alone."""
        log.error("a step of %d sequences failed: %s", len(work), error)
        if len(work) == 1:
            self._fail(work[0].sequence, error.message)
        else:
            self._rewind(work)
            self._setbacks.isolate(work)

    # -- leaving ----------------------------------------------------------------------------

    def _remove(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._setbacks.note_leaving()
        self._roster.remove(sequence)
        self._reporter.note_change()

    def _preempt(self, sequence: Sequence) -> None:
        self._setbacks.note_leaving()
        self._roster.preempt(sequence)
        self._reporter.note_preemption()

    def _cancel_all(self) -> None:
        """Finish everything as cancelled, for the end of the thread."""
        now_s = time.monotonic()
        replies: list[Reply] = []
        self._reporter.note_change()
        for sequence in self._roster.clear():
            piece = sequence.text.flush()
            replies += [(sequence.id, part) for part in sequence.parts(piece)]
            finished = sequence.finished(FinishReason.CANCELLED, None, now_s)
            replies.append((sequence.id, finished))
        self._embedder.cancel_all()
        self._tell(replies)

    def _fail(self, sequence: Sequence, message: str, *, is_timeout: bool = False) -> None:
        self._remove(sequence)
        self._tell([(sequence.id, Failed(message, is_timeout))])


def _chunk(work: Work) -> Chunk:
    sequence = work.sequence
    end = sequence.num_computed + work.num_tokens
    return Chunk(
        slot=slot_of(sequence),
        start=sequence.num_computed,
        tokens=[*sequence.tokens[sequence.num_computed : end], *work.draft],
        wants_logits=work.is_last,
        wants_all=sequence.wants_all_rows or bool(work.draft),
    )
