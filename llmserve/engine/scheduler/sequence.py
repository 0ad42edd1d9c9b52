"""One request's state inside the worker, from acceptance to its last token.

Invariant: the KV cells of `slot` hold exactly `tokens[:num_computed]`. `tokens` is the prompt and
everything generated; what is pending still has to be computed, and once nothing is pending the
logits of the last token choose the next. Decoding is thus the case of one pending token, and a
preempted sequence resumes by computing all its tokens again.
"""

from dataclasses import dataclass, field

from llmserve.core import (
    Delta,
    Finished,
    FinishReason,
    Part,
    PromptLogprobs,
    Request,
    SampledLogprob,
    Timings,
    Usage,
)
from llmserve.engine.output.parser import Reader, Reading
from llmserve.engine.output.text import Piece, TextStream
from llmserve.engine.sampling.logprobs import LogprobStream, PromptScores
from llmserve.engine.sampling.sampler import Sampler
from llmserve.engine.scheduler.speculation import Drafter
from llmserve.engine.structured.masks import Matcher

BATCH_PATIENCE_S = 120.0  # after which a batch request no longer waits for interactive ones


@dataclass(slots=True, eq=False)
class Sequence:
    id: int
    arrival: int  # order of acceptance; lower is older
    request: Request
    tokens: list[int]
    max_len: int  # prompt and generated tokens together
    sampler: Sampler
    text: TextStream | Reader
    accepted_s: float  # this and the following: seconds on the monotonic clock
    logprobs: LogprobStream | None = None  # where they were asked for
    matcher: Matcher | None = None  # what the answer must match, as far as it has come
    reading: Reading | None = None  # where there can be more than text in it
    drafter: Drafter | None = None  # where its next tokens may be guessed
    prompt_scores: PromptScores | None = None  # where they were asked for, until they are told
    slot: int | None = None
    num_computed: int = 0
    num_known: int = 0  # tokens that it will find computed when it enters, as far as is known now
    num_shared: int = 0  # of its first cells, those that are counted with another sequence
    num_cached: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    queue_position: int | None = None  # the first that was told, and the wait with it
    expected_queue_s: float = 0.0
    last_token_s: float | None = None
    prompt_len: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_len = len(self.tokens)

    @property
    def namespace(self) -> str:
        """Whose cached prefixes it may use, and which requests may use its own."""
        return self.request.cache_namespace

    @property
    def is_batch(self) -> bool:
        return self.request.priority == "batch"

    @property
    def deterministic(self) -> bool:
        """Alone in its steps, and none of its cells from a cache."""
        return self.request.deterministic

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - max(self.num_computed, self.num_known)

    @property
    def num_own_cells(self) -> int:
        return self.num_computed - self.num_shared

    @property
    def can_reuse(self) -> bool:
        """Whether it may begin with cells that were computed before."""
        return self.request.cache_prompt and not (self.deterministic or self.wants_all_rows)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    def yields(self, now_s: float) -> bool:
        """Whether it makes room for interactive requests."""
        return self.is_batch and now_s - self.accepted_s < BATCH_PATIENCE_S

    @property
    def wants_all_rows(self) -> bool:
        """Whether each token's logits are needed, so that no cell may come from a cache."""
        return self.prompt_scores is not None

    @property
    def is_sound(self) -> bool:
        """Whether the log probabilities of its prompt, if they are wanted, are numbers."""
        return self.prompt_scores is None or self.prompt_scores.is_sound

    @property
    def is_full(self) -> bool:
        return len(self.tokens) >= self.max_len

    @property
    def guard(self) -> Matcher | None:
        """The matcher that the next token has to please: thoughts are free."""
        if isinstance(self.text, Reader) and not self.text.is_guarded:
            return None
        return self.matcher

    @property
    def opening(self) -> int | None:
        """The token that may come next whatever the matcher says: it begins a thought."""
        return self.reading.opening if self.reading and not self.num_generated else None

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow, by what the answer must match."""
        return self.matcher is not None and self.matcher.is_stopped()

    def add(self, token: int, now_s: float) -> None:
        """Append a generated token."""
        self.tokens.append(token)
        self.sampler.accept(token)
        self.last_token_s = now_s
        if self.first_token_s is None:
            self.first_token_s = now_s

    def prompt_events(self) -> list[PromptLogprobs]:
        """What there is to say about the prompt once it is computed, if anything is left to say."""
        scores, self.prompt_scores = self.prompt_scores, None
        return [] if scores is None else [scores.result()]

    def parts(self, piece: Piece) -> list[Part]:
        """What there is to say, with the log probabilities of the tokens that it completes.

        Those of thoughts, calls and markers are not told.
        """
        if piece.segments is None:
            logprobs = self._release(len(piece.text))
            return [Delta(piece.text, logprobs)] if piece.text or logprobs else []
        parts: list[Part] = []
        for num_chars, part in piece.segments:
            logprobs = self._release(num_chars)
            if isinstance(part, Delta):
                parts.append(Delta(part.text, logprobs))
            elif part is not None:
                parts.append(part)
        return parts

    def _release(self, num_chars: int) -> tuple[SampledLogprob, ...]:
        return () if self.logprobs is None else self.logprobs.release(num_chars)

    def finished(self, reason: FinishReason, stop: str | None, now_s: float) -> Finished:
        """The last event of this sequence."""
        reader = self.text if isinstance(self.text, Reader) else None
        if reader and reader.has_calls and reason is FinishReason.STOP and stop is None:
            reason = FinishReason.TOOL_CALLS
        usage = Usage(
            prompt_tokens=self.prompt_len,
            cached_tokens=self.num_cached,
            generated_tokens=self.num_generated,
            reasoning_tokens=reader.num_thought_tokens if reader else 0,
        )
        return Finished(reason, stop, usage, self._timings(now_s))

    def _timings(self, now_s: float) -> Timings:
        started_s = now_s if self.started_s is None else self.started_s
        first_s = now_s if self.first_token_s is None else self.first_token_s
        last_s = first_s if self.last_token_s is None else self.last_token_s
        decode_s = last_s - first_s
        return Timings(
            queue_s=started_s - self.accepted_s,
            prefill_s=first_s - started_s,
            ttft_s=first_s - self.accepted_s,
            decode_s=decode_s,
            tokens_per_s=(self.num_generated - 1) / decode_s if decode_s > 0 else 0.0,
            queue_position=self.queue_position or 0,
            expected_queue_s=self.expected_queue_s,
        )
