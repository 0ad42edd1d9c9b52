"""From the logits of a step to what there is to say: a token for every row, and its text.

Changes the sequences, but neither slots nor cells: what has ended is for the worker to let go.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import NamedTuple

from llmserve.core import FinishReason
from llmserve.engine.messages import Failed, Reply
from llmserve.engine.output.text import Piece
from llmserve.engine.runtime import Logits, Runtime
from llmserve.engine.sampling.logprobs import LogprobStream, sampled_logprob
from llmserve.engine.sampling.sampler import choose_tokens
from llmserve.engine.scheduler.scheduler import Work
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.structured.masks import StepMasks, accept

_NO_LOGITS = "the model computed no finite logits for this request"


@dataclass
class Advance:
    replies: list[Reply] = field(default_factory=list)
    ended: list[Sequence] = field(default_factory=list)  # finished or failed
    num_accepted: int = 0  # guessed tokens that came true


def advance(
    work: list[Work], logits: Logits, masks: StepMasks, runtime: Runtime, now_s: float
) -> Advance:
    """Book the computed tokens, choose the next ones, and say what came of it.

    Cells of guessed tokens that did not come true stay behind those that are booked.
    """
    ready = _book(work, logits)
    rows = logits if len(ready) == len(logits) else logits[[each.row for each in ready]]
    samplers = [each.sequence.sampler for each in ready]
    tokens = choose_tokens(rows, samplers, [masks.allowed.get(r.sequence.id) for r in ready])
    outcome = Advance()
    for each, token, row in zip(ready, tokens, rows, strict=True):
        sequence = each.sequence
        if sequence.id in masks.faults:
            _fail(outcome, sequence, _off_grammar(masks.faults[sequence.id]))
        elif token is None or not sequence.is_sound:
            _fail(outcome, sequence, _NO_LOGITS)
        else:
            outcome.replies.extend((sequence.id, event) for event in sequence.prompt_events())
            _take(outcome, sequence, token, row, runtime, now_s)
            _verify(outcome, each, logits, runtime, now_s)
    return outcome


class _Ready(NamedTuple):
    """Whose next token is chosen from which row of the logits; the rows of its draft follow."""

    sequence: Sequence
    row: int
    draft: Seq[int]


def _book(work: list[Work], logits: Logits) -> list[_Ready]:
    """Note what was computed; returns whose next tokens can be chosen."""
    ready: list[_Ready] = []
    end = 0
    for each in work:
        begin, end = end, end + each.num_outputs
        sequence = each.sequence
        if sequence.prompt_scores is not None:
            sequence.prompt_scores.push(sequence.num_computed, logits[begin:end])
        sequence.num_computed += each.num_tokens
        if sequence.num_pending == 0:
            ready.append(_Ready(sequence, end - 1 - len(each.draft), each.draft))
    return ready


def _verify(
    outcome: Advance, ready: _Ready, logits: Logits, runtime: Runtime, now_s: float
) -> None:
    """Go on through the guessed tokens as long as they are just those that are chosen."""
    sequence = ready.sequence
    for index, guessed in enumerate(ready.draft, start=ready.row + 1):
        has_ended = bool(outcome.ended) and outcome.ended[-1] is sequence
        if has_ended or sequence.tokens[-1] != guessed:
            return
        sequence.num_computed += 1
        outcome.num_accepted += 1
        row = logits[index]
        token = sequence.sampler.choose(row)
        if token is None:
            _fail(outcome, sequence, _NO_LOGITS)
            return
        _take(outcome, sequence, token, row, runtime, now_s)


def _take(
    outcome: Advance, sequence: Sequence, token: int, row: Logits, runtime: Runtime, now_s: float
) -> None:
    """Add one token, chosen from `row`, to its sequence, and end that where the token does."""
    if sequence.is_full:  # it was for the prompt alone
        _finish(outcome, sequence, FinishReason.LENGTH, None, now_s)
        return
    guard = None if token == sequence.opening else sequence.guard
    sequence.add(token, now_s)
    if token in runtime.info.eog_tokens:
        piece, reason = sequence.text.flush(), FinishReason.STOP
        if piece.stop is None and sequence.logprobs and sequence.logprobs.lists_end:
            _note_logprob(sequence, sequence.logprobs, token, row, piece, runtime)
    elif fault := accept(guard, token):
        _fail(outcome, sequence, _off_grammar(fault))
        return
    else:
        piece, reason = sequence.text.push(_bytes_of(token, sequence, runtime)), None
        if piece.stop is None and sequence.logprobs is not None:
            _note_logprob(sequence, sequence.logprobs, token, row, piece, runtime)
        is_complete = sequence.is_complete
        if piece.stop is None and (is_complete or sequence.is_full):
            piece = piece.followed_by(sequence.text.flush())
            reason = FinishReason.STOP if is_complete else FinishReason.LENGTH
    if piece.stop is not None:
        reason = FinishReason.STOP
    outcome.replies.extend((sequence.id, part) for part in sequence.parts(piece))
    if reason is not None:
        _finish(outcome, sequence, reason, piece.stop, now_s)


def _finish(
    outcome: Advance, sequence: Sequence, reason: FinishReason, stop: str | None, now_s: float
) -> None:
    outcome.replies.append((sequence.id, sequence.finished(reason, stop, now_s)))
    outcome.ended.append(sequence)


def _fail(outcome: Advance, sequence: Sequence, message: str) -> None:
    outcome.replies.append((sequence.id, Failed(message)))
    outcome.ended.append(sequence)


def _note_logprob(
    sequence: Sequence,
    logprobs: LogprobStream,
    token: int,
    row: Logits,
    piece: Piece,
    runtime: Runtime,
) -> None:
    entry = sampled_logprob(row, token, logprobs.num_top, runtime.token_bytes)
    logprobs.push(entry, piece.num_chars + sequence.text.held_len)


def _bytes_of(token: int, sequence: Sequence, runtime: Runtime) -> bytes:
    """Its text, also that of a control token which means something in this answer."""
    controls = sequence.reading.controls if sequence.reading else {}
    return controls.get(token) or runtime.token_bytes(token)


def _off_grammar(reason: str) -> str:
    return f"the answer cannot go on as response_format demands: {reason}"
