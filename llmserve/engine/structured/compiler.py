"""core.Constraint -> which tokens may come next, on llguidance.

A request goes through three hands, each in its own thread: `Compiler.prepare` (the engine's
compiling thread) compiles, `Compiler.take` (the worker) fetches the request's own
matcher, `MaskFiller` (the worker and a helper) computes masks while the model computes logits.

Grammars come from strangers: `validate.py` has refused what native code could not bear, `_LIMITS`
bound what it does.
"""

import asyncio
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from llmserve.core import Constraint
from llmserve.engine.structured.grammar import grammar_of
from llmserve.engine.structured.limits import refusal
from llmserve.engine.structured.validate import field_of
from llmserve.engine.thread import ModelThread
from llmserve.errors import LlmserveError, UnavailableError

if TYPE_CHECKING:
    from llguidance import LLTokenizer
from llmserve.engine.structured.masks import _reason

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


class Compiling:
    """A model's `compiler` in its own thread: a request without a grammar does not wait for it."""

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
            # Behind what it may still prepare, which is not taken.
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
        return refusal(field_of(constraint), f"compilation exceeded {MAX_COMPILE_S:.0f} s")
    return UnavailableError(
        f"other requests' grammars take over {MAX_COMPILE_S:.0f} s to compile; try again later",
        retry_after_s=math.ceil(MAX_COMPILE_S),
    )
