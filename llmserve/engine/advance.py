"""From the logits of a step to what there is to say: a token for every row, and its text.

Changes the sequences, but neither slots nor cells: who has ended is for the worker to let go.
"""

from typing import NamedTuple

from llmserve.core import FinishReason
from llmserve.engine.constraint import StepMasks, accept
from llmserve.engine.logprobs import LogprobStream, sampled_logprob
from llmserve.engine.messages import Failed, Reply
from llmserve.engine.output import Piece
from llmserve.engine.runtime import Logits, Runtime
from llmserve.engine.sampling import choose_tokens
from llmserve.engine.scheduler import Work
from llmserve.engine.sequence import Sequence


class Advance(NamedTuple):
    replies: list[Reply]
    ended: list[Sequence]  # finished or failed


def advance(
    work: list[Work], logits: Logits, masks: StepMasks, runtime: Runtime, now_s: float
) -> Advance:
    """Book the computed tokens, choose the next ones, and say what came of it."""
    ready, logits = _book(work, logits)
    samplers = [sequence.sampler for sequence in ready]
    tokens = choose_tokens(logits, samplers, [masks.allowed.get(s.id) for s in ready])
    outcome = Advance([], [])
    for sequence, token, row in zip(ready, tokens, logits, strict=True):
        if sequence.id in masks.faults:
            _fail(outcome, sequence, _off_grammar(masks.faults[sequence.id]))
        elif token is None or not sequence.is_sound:
            _fail(outcome, sequence, "the model computed no finite logits for this request")
        else:
            outcome.replies.extend((sequence.id, event) for event in sequence.prompt_events())
            _take(outcome, sequence, token, row, runtime, now_s)
    return outcome


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
