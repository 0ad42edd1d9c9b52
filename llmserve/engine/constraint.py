"""core.Constraint -> which tokens may come next, on llguidance.

A request goes through three hands, each in its own thread: `Compiler.prepare` (the engine's
compiling thread) checks and compiles, `Compiler.take` (the worker) fetches the request's own
matcher, `MaskFiller` (the worker and a helper) computes masks while the model computes logits.

What is compiled comes from strangers. llguidance bounds its own work (fuel, items, states; see
`_LIMITS`), but recurses in native code along references between rules, and overflowing that stack
ends the process: `check` refuses what could go that deep before it is given away.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import llguidance.numpy
import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

from llmserve.core import Constraint, Tool
from llmserve.engine.sampling import Allowed
from llmserve.errors import InvalidRequestError

MAX_SOURCE_BYTES = 64 * 1024
MAX_CALLS_BYTES = 4 * MAX_SOURCE_BYTES  # of the grammar of all tools together
MAX_DEPTH = 64  # brackets in brackets, in a schema's text
MAX_REFERENCE_DEPTH = 1000  # the same with every reference followed once
MAX_PROPERTIES = 1000  # of one object; compiling takes the square of this, 0.1 s here
MAX_COLONS = 500  # in a Lark grammar; every rule and every key of a schema inside has one
MAX_CACHED = 64  # grammars
MAX_CACHED_BYTES = 256 * 1024  # of source; a compiled grammar can take 1,000 times as much

STACK_BYTES = 64 * 2**20  # of the compiling thread; 8 MiB overflow at 3,000 rules in a chain

# About 10 ms of one core for a mask and 30 ms for a lexer. They do not bound a literal of 64 KiB:
# llguidance tokenizes it again for each mask, in 50 to 70 ms.
_LIMITS = LLParserLimits(
    max_items_in_row=5_000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)

# Enough for pretty-printed JSON. With unbounded space a small model can go on with it for ever.
_WHITESPACE = r"[ ]|\n[ ]{0,24}"

# For schemas inside of a grammar. They may bring options of their own (`x-guidance`), but not
# `lenient`: it would let llguidance pass over the keywords that it cannot enforce.
SCHEMA_OPTIONS = {"whitespace_pattern": _WHITESPACE, "lenient": False}

_FIELDS = {
    "json": "response_format",
    "json_schema": "response_format.json_schema.schema",
    "regex": "response_format.regex",
    "lark": "response_format.grammar",
    "calls": "tools",
}


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
            self._tokenizer = self._make_tokenizer()
        matcher = LLMatcher(self._tokenizer, _grammar(constraint), log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # Some grammars match nothing, which only shows here; others start with a slow mask,
            # which all the copies then have.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refusal(self._field(constraint), _reason(matcher))
        return matcher

    def _field(self, constraint: Constraint) -> str:
        """The name of what cannot be compiled: of several schemas, the first that cannot alone."""
        assert self._tokenizer is not None
        if constraint.kind == "calls":
            shared = "\n".join(re.findall("^raw.*$", constraint.source, re.MULTILINE))
            for index, rule in re.findall(r"^args_(\d+): (.*)$", constraint.source, re.MULTILINE):
                grammar = LLMatcher.grammar_from_lark(f"start: {rule}\n{shared}\n")
                if LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS).is_error():
                    return f"tools[{index}].function.parameters"
        return _FIELDS[constraint.kind]

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


# -- what may be compiled ---------------------------------------------------------------------


def check(constraint: Constraint) -> None:
    """Raises `InvalidRequestError` for what is too large or too deep for native code."""
    field, source = _FIELDS[constraint.kind], constraint.source
    if constraint.kind == "json_schema":
        check_schema(source, field)
        return
    _check_size(source, field, MAX_CALLS_BYTES if constraint.kind == "calls" else MAX_SOURCE_BYTES)
    if constraint.kind == "lark" and (num_colons := source.count(":")) > MAX_COLONS:
        raise _refusal(field, f"it has {num_colons} colons, over {MAX_COLONS}")


def check_tools(tools: Iterable[Tool]) -> None:
    """The same for the schemas of their arguments, before anybody reads them.

    A name must be able to stand in every format as it is.
    """
    for index, tool in enumerate(tools):
        if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", tool.name):
            raise _refusal(
                f"tools[{index}].function.name",
                "it must have 1 to 64 of the characters a-z, A-Z, 0-9, _, - and .",
            )
        if tool.parameters is not None:
            check_schema(tool.parameters, f"tools[{index}].function.parameters")


def check_schema(source: str, field: str) -> None:
    """The same for one schema, of that name."""
    _check_size(source, field, MAX_SOURCE_BYTES)
    if (depth := text_depth(source)) > MAX_DEPTH:
        raise _refusal(field, f"it is nested {depth} deep, over {MAX_DEPTH}")
    try:
        schema = msgspec.json.decode(source)
    except msgspec.DecodeError as error:
        raise _refusal(field, f"it is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise _refusal(field, "it is not an object")
    if (depth := reference_depth(schema)) > MAX_REFERENCE_DEPTH:
        raise _refusal(
            field, f"its references go {depth} deep together, over {MAX_REFERENCE_DEPTH}"
        )
    if (count := max(map(_num_properties, _objects(schema)))) > MAX_PROPERTIES:
        raise _refusal(field, f"an object has {count} properties, over {MAX_PROPERTIES}")


def _check_size(source: str, field: str, max_bytes: int) -> None:
    try:
        num_bytes = len(source.encode())
    except UnicodeEncodeError as error:
        raise _refusal(field, "it has half of a surrogate pair") from error
    if num_bytes > max_bytes:
        raise _refusal(field, f"it has {num_bytes} bytes, over {max_bytes}")


def text_depth(json: str) -> int:
    """How deep the brackets of JSON nest; of any text, without recursion."""
    depth = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', json, re.DOTALL):
        if bracket in ("[", "{"):
            depth += 1
            deepest = max(deepest, depth)
        elif bracket in ("]", "}"):
            depth -= 1
    return deepest


def reference_depth(schema: dict[str, Any]) -> int:
    """No path through `schema` that follows each `$ref` once is longer than this."""
    depths: dict[int, int] = {}
    whole = _measure(schema, depths)
    references = {ref for node in _objects(schema) if isinstance(ref := node.get("$ref"), str)}
    # What a pointer cannot find (an anchor, an escaped name) counts like everything together.
    return whole + sum(depths.get(id(_target(schema, ref)), whole) for ref in references)


def _measure(node: Any, depths: dict[int, int]) -> int:
    """The depth of `node`, and of everything in it by id. As deep as `MAX_DEPTH` at most."""
    match node:
        case dict():
            inner: Iterable[Any] = node.values()
        case list():
            inner = node
        case _:
            return 0
    depth = depths[id(node)] = 1 + max((_measure(child, depths) for child in inner), default=0)
    return depth


def _objects(schema: Any) -> Iterable[dict[str, Any]]:
    """All JSON objects in `schema`, itself included."""
    todo = [schema]
    while todo:
        match todo.pop():
            case dict() as node:
                yield node
                todo.extend(node.values())
            case list() as items:
                todo.extend(items)


def _num_properties(node: dict[str, Any]) -> int:
    return max(
        (len(v) for k in ("properties", "patternProperties") if isinstance(v := node.get(k), dict)),
        default=0,
    )


def _target(schema: dict[str, Any], reference: str) -> Any:
    """What a JSON pointer like `#/$defs/name` points at, or None."""
    node: Any = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        node = node.get(step) if isinstance(node, dict) else None
    return node


# -- llguidance's words -----------------------------------------------------------------------


def _grammar(constraint: Constraint) -> str:
    match constraint.kind:
        case "json":
            return _from_schema('{"type": "object"}')
        case "json_schema":
            return _from_schema(constraint.source)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.source)
        case "lark" | "calls":
            return LLMatcher.grammar_from_lark(constraint.source)


def _from_schema(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(
        schema,
        defaults={"whitespace_pattern": _WHITESPACE},
        overrides={"lenient": False},
    )


def _reason(matcher: LLMatcher) -> str:
    """The first line of the error, without what follows for llguidance's developers."""
    lines: Sequence[str] = matcher.get_error().splitlines()
    return lines[0][:300] if lines else "llguidance gives no reason"


def _refusal(field: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} cannot be used: {reason}", param=field)
