"""core.Constraint -> which tokens may come next, on llguidance.

A request goes through three hands, each in its own thread: `Compiler.prepare` (the engine's
compiling thread) checks and compiles, `Compiler.take` (the worker) fetches the request's own
matcher, `MaskFiller` (the worker and a helper) computes masks while the model computes logits.

Grammars come from strangers: `grammar.py` refuses what native code could not bear, `_LIMITS`
bound what it does.
"""

import asyncio
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

import llguidance.numpy
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

from llmserve.core import Constraint
from llmserve.engine.sampling.sampler import Allowed
from llmserve.engine.structured.grammar import check, field_of, grammar_of
from llmserve.engine.structured.limits import refusal
from llmserve.engine.thread import ModelThread
from llmserve.errors import LlmserveError, UnavailableError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_CACHED = 64  # grammars
MAX_CACHED_BYTES = 256 * 1024  # of source; a compiled grammar can take 1,000 times as much
# Of a request for its grammar, also behind others'. What is given to native code takes a second or
# two at most, on this machine; nothing could stop it there.
MAX_COMPILE_S = 15.0

STACK_BYTES = 64 * 2**20  # 8 MiB overflow at 3,000 rules in a chain


def _limits(max_items_in_row: int, step_max_items: int) -> LLParserLimits:
    return LLParserLimits(
        max_items_in_row=max_items_in_row,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=step_max_items,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


# The items of a row are compared with each other, while the interpreter lock is held. A schema
# cannot do much with them, but 1,000 properties, all of them optional, are 4,000 in a row and
# 30,000 in a mask. Other grammars can make each of them go on with each, and need 50. Those of
# terminals of one character have most in a mask, 7,000 for JSON and 49k tokens.
_LIMITS = _limits(max_items_in_row=5_000, step_max_items=30_000)
_LARK_LIMITS = _limits(max_items_in_row=1_000, step_max_items=30_000)
_GBNF_LIMITS = _limits(max_items_in_row=300, step_max_items=30_000)


class Compiler:
    """Compiled grammars of one model. `prepare` and `discard` belong to one thread."""

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()  # the oldest use first
        self._cached_bytes = 0
        self._ready: dict[int, LLMatcher] = {}

    def prepare(self, request_id: int, constraint: Constraint) -> None:
        """Make a matcher for this request, which waits for `take`.

        Raises `InvalidRequestError` with llguidance's reason. The first call builds the table of
        the model's tokens (0.3 s for 49k of them).
        """
        matcher = self._compiled.get(constraint)
        if matcher is not None:
            self._compiled.move_to_end(constraint)
        else:
            check(constraint)
            matcher = self._compile(constraint)
            self._keep(constraint, matcher)
        self._ready[request_id] = matcher.deep_copy()  # shares all that is never written to

    def take(self, request_id: int) -> LLMatcher:
        """What `prepare` made for this request, once. Any thread."""
        return self._ready.pop(request_id)

    def discard(self, request_id: int) -> None:
        """Forget what `prepare` made, if it did, for a request that never came to the worker."""
        self._ready.pop(request_id, None)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = self._table(constraint)
        limits = {"lark": _LARK_LIMITS, "gbnf": _GBNF_LIMITS}.get(constraint.kind, _LIMITS)
        matcher = LLMatcher(self._tokenizer, grammar_of(constraint), log_level=0, limits=limits)
        if not matcher.is_error():
            # Some grammars match nothing, which only shows here; others start with a slow mask,
            # which all the copies then have.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise refusal(self._field(constraint), _reason(matcher))
        return matcher

    def _table(self, constraint: Constraint) -> LLTokenizer:
        try:
            return self._make_tokenizer()
        except ValueError as error:  # llguidance asks things of a vocabulary that few lack
            reason = f"the vocabulary of this model cannot be constrained: {error}"
            raise refusal(field_of(constraint), reason) from error

    def _field(self, constraint: Constraint) -> str:
        """The name of what cannot be compiled: of several schemas, the first that cannot alone."""
        assert self._tokenizer is not None
        if constraint.kind == "calls":
            shared = "\n".join(re.findall("^raw.*$", constraint.source, re.MULTILINE))
            for index, rule in re.findall(r"^args_(\d+): (.*)$", constraint.source, re.MULTILINE):
                grammar = LLMatcher.grammar_from_lark(f"start: {rule}\n{shared}\n")
                if LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS).is_error():
                    return f"tools[{index}].function.parameters"
        return field_of(constraint)

    def _keep(self, constraint: Constraint, matcher: LLMatcher) -> None:
        self._compiled[constraint] = matcher
        self._cached_bytes += len(constraint.source)
        while len(self._compiled) > MAX_CACHED or self._cached_bytes > MAX_CACHED_BYTES:
            oldest, _ = self._compiled.popitem(last=False)
            self._cached_bytes -= len(oldest.source)

    def check_integrity(self) -> None:
        assert self._cached_bytes == sum(len(c.source) for c in self._compiled)
        assert len(self._compiled) <= MAX_CACHED
        assert self._cached_bytes <= MAX_CACHED_BYTES


class Constrained(Protocol):
    """What may have to match something; in the worker a `Sequence`."""

    @property
    def id(self) -> int: ...

    @property
    def matcher(self) -> LLMatcher | None: ...

    @property
    def guard(self) -> LLMatcher | None:
        """The matcher if the next token is its business, which one of a thought is not."""

    @property
    def opening(self) -> int | None:
        """The token that may come next besides."""


class StepMasks(NamedTuple):
    """By request id: what may come next, or why nothing can."""

    allowed: dict[int, Allowed]
    faults: dict[int, str]


class Masks:
    """The masks of one step, possibly still being computed."""

    def __init__(self, future: Future[StepMasks] | None, known: dict[int, Allowed]) -> None:
        self._future = future
        self._known = known

    def wait(self) -> StepMasks:
        if self._future is None:
            return StepMasks(self._known, {})
        masks = self._future.result()
        masks.allowed.update(self._known)
        return masks


class _Guard(NamedTuple):
    request_id: int
    matcher: LLMatcher
    opening: int | None


class MaskFiller:
    """Computes masks beside the decode of the same step: neither holds the interpreter lock."""

    def __init__(self, vocab_size: int, eog_tokens: Iterable[int]) -> None:
        self._vocab_size = vocab_size
        self._eog_tokens = sorted(eog_tokens)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")  # started by the first use
        self._executor: LLExecutor | None = None
        self._all_but_end = np.ones(vocab_size, dtype=np.bool_)
        self._all_but_end[self._eog_tokens] = False

    def start(self, sequences: Iterable[Constrained]) -> Masks:
        """Begin with the masks of those that have a matcher, which must not be used until `wait`.

        One `Masks` at a time: a later one waits for the earlier.
        """
        constrained = [s for s in sequences if s.matcher is not None]
        # Not its business yet; but an answer that ended here would not match.
        known = {s.id: self._all_but_end for s in constrained if s.guard is None}
        guards = [_Guard(s.id, s.guard, s.opening) for s in constrained if s.guard is not None]
        return Masks(self._thread.submit(self._fill, guards) if guards else None, known)

    def close(self) -> None:
        self._thread.shutdown()

    def _fill(self, guards: list["_Guard"]) -> StepMasks:
        if self._executor is None:
            self._executor = LLExecutor(2)  # so that a slow one does not hold up all the others
        bits = llguidance.numpy.allocate_token_bitmask(len(guards), self._vocab_size)
        llguidance.numpy.fill_next_token_bitmask_par(
            self._executor, [(guard.matcher, row) for row, guard in enumerate(guards)], bits
        )
        rows = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        allowed = rows[:, : self._vocab_size].view(np.bool_)
        masks = StepMasks({}, {})
        for (request_id, matcher, opening), row in zip(guards, allowed, strict=True):
            if matcher.is_error():
                masks.faults[request_id] = _reason(matcher)
                continue
            if not matcher.is_accepting():
                # A grammar can name special tokens; one that ends must not come in the middle.
                row[self._eog_tokens] = False
            if opening is not None:
                row[opening] = True
            if row.any():
                masks.allowed[request_id] = row
            else:
                masks.faults[request_id] = "no token can come next"
        return masks


def accept(matcher: LLMatcher | None, token: int) -> str | None:
    """Go on with `token`; returns why that is impossible, if it is."""
    if matcher is None or matcher.consume_token(token):
        return None
    return _reason(matcher)


def _reason(matcher: LLMatcher) -> str:
    """The first line of the error, without what follows for llguidance's developers."""
    lines: Sequence[str] = matcher.get_error().splitlines()
    return lines[0][:300] if lines else "llguidance gives no reason"


class Compiling:
    """A model's `compiler` in a thread of its own: who brings no grammar need not wait for it."""

    def __init__(self, model: str, make_tokenizer: "Callable[[], LLTokenizer]") -> None:
        self.compiler = Compiler(make_tokenizer)
        self._thread = ModelThread(f"compiler-{model}", stack_bytes=STACK_BYTES)

    async def prepare(self, request_id: int, constraint: Constraint) -> None:
        """Have a matcher ready for the worker. To be cancelled is fine.

        Raises what `Compiler.prepare` raises, and after `MAX_COMPILE_S` `UnavailableError`, or
        `InvalidRequestError` if this very grammar is what takes so long.
        """
        prepared = self._thread.submit(self.compiler.prepare, request_id, constraint)
        try:
            async with asyncio.timeout(MAX_COMPILE_S):
                await asyncio.wrap_future(prepared)
        except (asyncio.CancelledError, TimeoutError) as error:
            # Behind what it may still prepare, which nobody takes.
            self._thread.submit(self.compiler.discard, request_id)
            if isinstance(error, TimeoutError):
                raise _too_slow(constraint, is_running=not prepared.cancel()) from error
            raise

    def close(self) -> None:
        """Return when all that was asked for is compiled, and never again use the model."""
        self._thread.shutdown()
        self._thread.join()


def _too_slow(constraint: Constraint, *, is_running: bool) -> LlmserveError:
    if is_running:
        return refusal(field_of(constraint), f"it takes over {MAX_COMPILE_S:.0f} s to compile")
    return UnavailableError(
        f"other requests' grammars take over {MAX_COMPILE_S:.0f} s to compile; try again later",
        retry_after_s=math.ceil(MAX_COMPILE_S),
    )
