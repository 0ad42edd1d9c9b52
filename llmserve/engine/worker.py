"""The thread that owns a model: drain the inbox, plan, decode, sample, report.

Only this thread touches the sequences and calls the runtime (but for `abort`). Commands arrive
through a queue, everything that happens leaves through `report`, once a step. However the thread
ends, its last report is `Ended`; the runtime belongs to whoever made it, and outlives the thread.
"""

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from llmserve.core import FinishReason
from llmserve.engine.constraint import Compiler, MaskFiller, Masks, accept
from llmserve.engine.kv import KvCache
from llmserve.engine.logprobs import LogprobStream, PromptScores, sampled_logprob
from llmserve.engine.messages import (
    Cancel,
    Command,
    Ended,
    Failed,
    Load,
    Reply,
    Report,
    StepReport,
    StepStats,
    Stop,
    Submit,
)
from llmserve.engine.output import Piece, TextStream
from llmserve.engine.roster import Roster, slot_of
from llmserve.engine.runtime import AbortedError, Chunk, Logits, OutOfCellsError, Runtime
from llmserve.engine.sampling import Sampler, choose_tokens
from llmserve.engine.scheduler import Limits, Plan, Work, plan_step
from llmserve.engine.sequence import Sequence
from llmserve.engine.thread import ModelThread
from llmserve.errors import EngineError

log = logging.getLogger(__name__)

PREFILL_CHUNK = 64  # prompt tokens beside running streams: a stall of about 0.2 s, 13 % slower
INTERRUPT_FROM = 32  # a step with fewer prompt tokens ends soon enough by itself


class Worker:
    """Runs one model. `report` is called from the worker's thread and must not block."""

    def __init__(
        self,
        runtime: Runtime,
        report: Callable[[Report], None],
        compiler: Compiler | None = None,
        *,
        prefix_cache_bytes: int = 0,
    ) -> None:
        """`compiler` has prepared every submitted constraint; the cache is what may be parked."""
        self._runtime = runtime
        self._compiler = compiler or Compiler(runtime.grammar_tokenizer)
        self._masks = MaskFiller(runtime.info.vocab_size, runtime.info.eog_tokens)
        self._report = report
        limits = runtime.limits
        self._limits = Limits(
            max_batch=limits.max_batch,
            max_running=limits.num_slots,
            num_cells=limits.num_cells,
            prefill_chunk=PREFILL_CHUNK,
            max_outputs=limits.max_outputs,
        )
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._kv = KvCache(runtime, prefix_cache_bytes)
        self._roster = Roster(runtime, self._kv)
        self._num_arrivals = 0
        self._told_load = Load()
        self._is_cramped = False  # fewer cells than the books say: nobody enters for now
        self._prefilling: int | None = None  # the request that most of the running step is for
        self._ended: Future[None] = Future()

    def start(self, thread: ModelThread) -> None:
        """Occupy `thread`, the one that loaded the runtime, until `stop`."""
        self._ended = thread.submit(self._run)

    def submit(self, command: Submit) -> None:
        self._inbox.put(command)

    def cancel(self, request_id: int) -> None:
        """Forget a request; a step that mostly prefills it is interrupted. Any thread."""
        self._inbox.put(Cancel(request_id))
        if self._prefilling == request_id:
            self._runtime.abort()

    def stop(self) -> None:
        """End the loop; returns when it is over. Any other thread; twice is fine."""
        self._inbox.put(Stop())
        self._runtime.abort()
        wait([self._ended])

    def _run(self) -> None:
        fault: str | None = "the engine failed; see the server's log"
        try:
            while self._drain():
                self._step()
            self._cancel_all()
            fault = None
        except Exception:
            log.exception("the worker failed")
        finally:
            self._masks.close()
            self._report(Ended(fault))

    # -- commands ---------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Take in all commands, waiting for one if there is nothing to do; False to stop."""
        self._prefilling = None
        self._runtime.clear_abort()
        while self._is_idle or not self._inbox.empty():
            if self._is_idle:
                self._tell([])  # no step will say that the last one left
            command = self._inbox.get()
            if isinstance(command, Stop):
                return False
            self._handle(command)
        return True

    @property
    def _is_idle(self) -> bool:
        return not (self._roster.running or self._roster.waiting)

    def _handle(self, command: Submit | Cancel) -> None:
        match command:
            case Submit():
                self._accept(command)
            case Cancel(request_id):
                self._forget(request_id)

    def _accept(self, submit: Submit) -> None:
        try:
            sequence = self._new_sequence(submit)
        except Exception:  # parameters that somebody above should have refused
            log.exception("request %d cannot start", submit.id)
            self._tell([(submit.id, Failed("the request has unusable parameters"))])
        else:
            self._roster.waiting.append(sequence)

    def _new_sequence(self, submit: Submit) -> Sequence:
        info = self._runtime.info
        self._num_arrivals += 1
        return Sequence(
            id=submit.id,
            arrival=self._num_arrivals,
            tokens=list(submit.tokens),
            max_len=submit.max_len,
            sampler=Sampler(
                submit.sampling,
                seed=submit.seed,
                vocab_size=info.vocab_size,
                eog_tokens=info.eog_tokens,
            ),
            text=TextStream(submit.stop),
            accepted_s=submit.accepted_s,
            logprobs=_logprob_stream(submit),
            prompt_scores=self._prompt_scores(submit),
            matcher=self._compiler.take(submit.id) if submit.constraint else None,
            namespace=submit.namespace,
        )

    def _prompt_scores(self, submit: Submit) -> PromptScores | None:
        if not submit.prompt_logprobs:
            return None
        assert submit.num_logprobs is not None, "checked by the engine"
        return PromptScores(
            submit.tokens, submit.num_logprobs, lambda token: self._runtime.detokenize([token])
        )

    def _forget(self, request_id: int) -> None:
        if sequence := self._roster.find(request_id):
            self._remove(sequence)

    # -- one step ---------------------------------------------------------------------------

    def _step(self) -> None:
        waiting = [] if self._is_cramped else self._kv.ready(self._roster.waiting)
        plan = plan_step(self._roster.running, waiting, self._limits)
        self._apply(plan)
        work = [Work(s, min(num_tokens, s.num_pending)) for s, num_tokens in plan.work]
        plan = plan._replace(work=self._kv.clip(work))
        self._tell([])  # now: the step may be a long prefill
        begin_s = time.monotonic()
        masks = self._masks.start(w.sequence for w in plan.work if w.is_last)
        logits = self._decode(plan.work)
        if logits is None:
            return
        now_s = time.monotonic()
        replies = self._advance(plan.work, logits, masks, now_s)
        self._kv.note(plan.work)
        num_decoded = sum(work.num_tokens == 1 for work in plan.work)
        stats = StepStats(
            num_decoded=num_decoded,
            num_prefilled=plan.num_tokens - num_decoded,
            step_s=now_s - begin_s,
        )
        self._tell(replies, stats)

    def _tell(self, replies: list[Reply], stats: StepStats | None = None) -> None:
        """Report what there is to say, and the load where it has changed."""
        load = Load(len(self._roster.running), len(self._roster.waiting))
        changed = load != self._told_load
        self._told_load = load
        if replies or stats or changed:
            self._report(StepReport(replies, stats, load if changed else None))

    def _apply(self, plan: Plan) -> None:
        for sequence in plan.preempt:
            self._preempt(sequence)
        for sequence in plan.admit:
            self._roster.enter(sequence, time.monotonic())

    def _decode(self, work: list[Work]) -> Logits | None:
        """The logits of `work`, or None if nothing was computed and the next plan tries again."""
        largest = max(work, key=lambda w: w.num_tokens)
        if largest.num_tokens >= max(INTERRUPT_FROM, sum(w.num_tokens for w in work) // 2):
            self._prefilling = largest.sequence.id
            # `cancel` first puts, then looks; here it is the other way round. So either it sees
            # whom to abort, or its command is seen here. Anything else costs one more plan.
            if not self._inbox.empty():
                return None
        try:
            return self._runtime.decode([_chunk(w) for w in work])
        except AbortedError:
            for sequence, _ in work:  # parts of the batch may have been written
                self._roster.rewind(sequence)
        except OutOfCellsError:
            youngest = max(self._roster.running, key=lambda s: s.arrival)
            if len(self._roster.running) > 1:
                log.warning("llama.cpp found no cells for the batch; preempting one sequence")
                self._preempt(youngest)
                self._is_cramped = True  # or it would enter again, and again find no cells
            else:
                self._fail([youngest], "the KV cache cannot hold this request")
        except EngineError as error:
            log.error("a step failed: %s", error)
            self._fail([w.sequence for w in work], error.message)
        return None

    def _advance(self, work: list[Work], logits: Logits, masks: Masks, now_s: float) -> list[Reply]:
        """Book the computed tokens, choose the next ones, and say what came of it."""
        ready, logits = _book(work, logits)
        allowed, faults = masks.wait()
        samplers = [sequence.sampler for sequence in ready]
        tokens = choose_tokens(logits, samplers, [allowed.get(s.id) for s in ready])
        replies: list[Reply] = []
        for sequence, token, row in zip(ready, tokens, logits, strict=True):
            if sequence.id in faults:
                self._fail([sequence], _off_grammar(faults[sequence.id]))
            elif token is None or not sequence.is_sound:
                self._fail([sequence], "the model computed no finite logits for this request")
            else:
                replies += [(sequence.id, event) for event in sequence.prompt_events()]
                replies += self._take(sequence, token, row, now_s)
        return replies

    def _take(self, sequence: Sequence, token: int, row: Logits, now_s: float) -> list[Reply]:
        """Add one token, chosen from `row`, to its sequence, and end that where the token does."""
        if sequence.is_full:  # it was for the prompt alone
            self._remove(sequence)
            return [(sequence.id, sequence.finished(FinishReason.LENGTH, None, now_s))]
        sequence.add(token, now_s)
        if token in self._runtime.info.eog_tokens:
            piece, reason = sequence.text.flush(), FinishReason.STOP
            if piece.stop is None and sequence.logprobs and sequence.logprobs.lists_end:
                self._note_logprob(sequence, sequence.logprobs, token, row, piece)
        elif fault := accept(sequence.matcher, token):
            self._fail([sequence], _off_grammar(fault))
            return []
        else:
            piece, reason = sequence.text.push(self._runtime.token_bytes(token)), None
            if piece.stop is None and sequence.logprobs is not None:
                self._note_logprob(sequence, sequence.logprobs, token, row, piece)
            is_complete = sequence.is_complete
            if piece.stop is None and (is_complete or sequence.is_full):
                rest = sequence.text.flush()
                piece = Piece(piece.text + rest.text, rest.stop)
                reason = FinishReason.STOP if is_complete else FinishReason.LENGTH
        if piece.stop is not None:
            reason = FinishReason.STOP
        replies: list[Reply] = [(sequence.id, delta) for delta in sequence.deltas(piece.text)]
        if reason is not None:
            replies.append((sequence.id, sequence.finished(reason, piece.stop, now_s)))
            self._remove(sequence)
        return replies

    def _note_logprob(
        self, sequence: Sequence, logprobs: LogprobStream, token: int, row: Logits, piece: Piece
    ) -> None:
        entry = sampled_logprob(row, token, logprobs.num_top, self._runtime.token_bytes)
        logprobs.push(entry, len(piece.text) + sequence.text.held_len)

    # -- leaving ----------------------------------------------------------------------------

    def _remove(self, sequence: Sequence) -> None:
        self._roster.remove(sequence)
        self._is_cramped = False

    def _preempt(self, sequence: Sequence) -> None:
        self._roster.preempt(sequence)
        self._is_cramped = False

    def _cancel_all(self) -> None:
        """Finish everything as cancelled, for the end of the thread."""
        now_s = time.monotonic()
        replies: list[Reply] = []
        for sequence in self._roster.clear():
            piece = sequence.text.flush()
            replies += [(sequence.id, delta) for delta in sequence.deltas(piece.text)]
            finished = sequence.finished(FinishReason.CANCELLED, None, now_s)
            replies.append((sequence.id, finished))
        self._tell(replies)

    def _fail(self, sequences: list[Sequence], message: str) -> None:
        for sequence in sequences:
            self._remove(sequence)
        self._tell([(s.id, Failed(message)) for s in sequences])


def _off_grammar(reason: str) -> str:
    return f"the answer cannot go on as response_format demands: {reason}"


def _logprob_stream(submit: Submit) -> LogprobStream | None:
    if submit.num_logprobs is None:
        return None
    return LogprobStream(submit.num_logprobs, lists_end=submit.prompt_logprobs)


def _book(work: list[Work], logits: Logits) -> tuple[list[Sequence], Logits]:
    """Note what was computed; returns whose next tokens can be chosen, and their rows."""
    ready: list[Sequence] = []
    last_rows: list[int] = []
    end = 0
    for each in work:
        begin, end = end, end + each.num_outputs
        sequence = each.sequence
        if sequence.prompt_scores is not None:
            sequence.prompt_scores.push(sequence.num_computed, logits[begin:end])
        sequence.num_computed += each.num_tokens
        if sequence.num_pending == 0:
            ready.append(sequence)
            last_rows.append(end - 1)
    return ready, logits if len(ready) == end else logits[last_rows]


def _chunk(work: Work) -> Chunk:
    sequence, num_tokens = work
    end = sequence.num_computed + num_tokens
    return Chunk(
        slot=slot_of(sequence),
        start=sequence.num_computed,
        tokens=sequence.tokens[sequence.num_computed : end],
        wants_logits=work.is_last,
        wants_all=sequence.wants_all_rows,
    )
