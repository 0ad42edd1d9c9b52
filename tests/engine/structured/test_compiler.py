"""Constraints: what may be compiled, the cache, and answers of the fake that match."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmserve.core import (
    Constraint,
    Delta,
    EventStream,
    Finished,
    FinishReason,
    Mode,
    Request,
    SamplingParams,
)
from llmserve.engine.engine import LocalEngine
from llmserve.engine.structured import compiler as module
from llmserve.engine.structured.compiler import Compiler
from llmserve.engine.structured.masks import MaskFiller
from llmserve.engine.structured.validate import field_of
from llmserve.errors import EngineError, InvalidRequestError
from tests.engine.structured.schemas import Schema, is_valid, schemas
from tests.fakes import EOS, FakeRuntime
from tests.policies import policy

DATE = Constraint("regex", r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")
HOT = SamplingParams(temperature=1)


def of_schema(schema: Schema) -> Constraint:
    return Constraint("json_schema", json.dumps(schema))


def compiler() -> Compiler:
    return Compiler(FakeRuntime().grammar_tokenizer)


@contextlib.asynccontextmanager
async def engine_on(runtime: FakeRuntime) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine("fake", runtime, policy=policy(max_queue=100))
    try:
        yield engine
        assert engine._compiling.compiler._ready == {}
        engine._compiling.compiler.check_integrity()
    finally:
        await engine.close()


def asking(
    constraint: Constraint | None, prompt: str = "p", max_tokens: int = 300, **rest: Any
) -> Request:
    options: dict[str, Any] = {"sampling": HOT, "seed": 1} | rest
    return Request(
        prompt=prompt,
        mode=Mode.COMPLETION,
        max_tokens=max_tokens,
        constraint=constraint,
        **options,
    )


async def collect(events: EventStream) -> tuple[str, Finished]:
    text = ""
    async for event in events:
        if isinstance(event, Delta):
            text += event.text
    assert isinstance(event, Finished)
    return text, event


def answers(
    *requests: Request, num_slots: int = 4, num_cells: int = 4096
) -> list[tuple[str, Finished]]:
    """The answers to `requests`, sent at once."""

    async def ask() -> list[tuple[str, Finished]]:
        runtime = FakeRuntime(num_cells=num_cells, num_slots=num_slots)
        async with engine_on(runtime) as engine:
            return await asyncio.gather(*(collect(engine.generate(r)) for r in requests))

    return asyncio.run(asyncio.wait_for(ask(), timeout=60))


def refusal(request: Request) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        answers(request)
    return caught.value


# -- answers -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(schemas, st.integers(0, 99), st.sampled_from([0.0, 1.0]))
@example({"enum": ['"\\\x00é']}, 0, 0.0)
def test_answer_that_stops_matches_its_schema(
    schema: Schema, seed: int, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature)
    request = asking(of_schema(schema), sampling=params, seed=seed)
    ((text, finished),) = answers(request)
    if finished.reason is FinishReason.STOP:
        assert is_valid(json.loads(text), schema), text
    else:
        assert finished.usage.generated_tokens == 300


def test_bounded_schemas_do_stop() -> None:
    """Or the property above says nothing."""
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    for text, finished in answers(*(asking(of_schema(schema), seed=i) for i in range(8))):
        assert finished.reason is FinishReason.STOP
        assert is_valid(json.loads(text), schema)


def test_end_costs_no_token() -> None:
    """Where nothing may follow, the sequence ends without computing an end-of-generation token."""
    ((text, finished),) = answers(asking(DATE))
    assert re.fullmatch(DATE.source, text)
    assert finished.reason is FinishReason.STOP
    assert finished.stop_sequence is None
    assert finished.usage.generated_tokens == len(text)


def test_max_tokens_that_just_suffice_are_a_stop() -> None:
    (_, exact), (text, short) = answers(asking(DATE, max_tokens=10), asking(DATE, max_tokens=9))
    assert exact.reason is FinishReason.STOP
    assert short.reason is FinishReason.LENGTH
    assert len(text) == 9


def test_any_json_object() -> None:
    requests = [asking(Constraint("json"), seed=seed, max_tokens=1000) for seed in range(4)]
    for text, finished in answers(*requests):
        assert text.startswith("{")
        if finished.reason is FinishReason.STOP:
            assert isinstance(json.loads(text), dict)


def test_lark() -> None:
    grammar = 'start: sum "=" NUMBER\nsum: NUMBER | sum "+" NUMBER\nNUMBER: /[0-9]/\n'
    for text, finished in answers(
        *(asking(Constraint("lark", grammar), seed=i, max_tokens=900) for i in range(4))
    ):
        assert finished.reason is FinishReason.STOP
        assert re.fullmatch(r"[0-9](\+[0-9])*=[0-9]", text)


def test_gbnf() -> None:
    grammar = 'root ::= sum "=" [0-9]\nsum ::= [0-9] | sum "+" [0-9]\n'
    for text, finished in answers(
        *(asking(Constraint("gbnf", grammar), seed=i, max_tokens=900) for i in range(4))
    ):
        assert finished.reason is FinishReason.STOP
        assert re.fullmatch(r"[0-9](\+[0-9])*=[0-9]", text)


def test_end_of_generation_only_where_the_grammar_accepts() -> None:
    """Not even where the grammar itself asks for it."""
    constraint = Constraint("lark", f'start: "a" <[{EOS}]> "b"')
    with pytest.raises(EngineError, match="no token can come next"):
        answers(asking(constraint))
    # `+` accepts after each one: both ends are possible, and an end-of-generation token is one.
    for text, finished in answers(
        *(asking(Constraint("regex", "a+"), seed=i, sampling=SamplingParams(temperature=2))
          for i in range(4))
    ):  # fmt: skip
        assert set(text) == {"a"}
        assert finished.reason is FinishReason.STOP
        assert finished.usage.generated_tokens == len(text) + 1


def test_mask_wins_over_logit_bias() -> None:
    bias = {ord("x"): 100.0, ord("9"): 100.0}
    ((text, _),) = answers(asking(DATE, sampling=SamplingParams(temperature=1, logit_bias=bias)))
    assert re.fullmatch(DATE.source, text)
    assert text[2:4] == "99"


def test_neighbours_are_not_changed() -> None:
    """Constrained and free requests of one batch, against each of them alone."""
    requests = [
        asking(DATE if i % 2 else None, prompt=f"prompt {i}", seed=i, max_tokens=12)
        for i in range(12)
    ]
    together = [text for text, _ in answers(*requests)]
    alone = [answers(request)[0][0] for request in requests]
    assert together == alone


def test_preempted_answer_still_matches() -> None:
    schema: Schema = {"type": "string", "minLength": 20, "maxLength": 25}
    requests = [asking(of_schema(schema), seed=i, max_tokens=110) for i in range(6)]
    for text, finished in answers(*requests, num_slots=4, num_cells=120):
        if finished.reason is FinishReason.STOP:
            assert 20 <= len(json.loads(text)) <= 25


def test_answer_that_cannot_go_on_fails_alone() -> None:
    broken = Constraint("lark", f'start: "a" <[{EOS}]> "b"')

    async def ask() -> None:
        async with engine_on(FakeRuntime(num_cells=1024)) as engine:
            failing = asyncio.create_task(collect(engine.generate(asking(broken))))
            text, _ = await collect(engine.generate(asking(DATE)))
            assert re.fullmatch(DATE.source, text)
            with pytest.raises(EngineError, match="no token can come next"):
                await failing

    asyncio.run(asyncio.wait_for(ask(), timeout=60))


def test_gbnf_with_too_many_ways_fails_alone() -> None:
    """Soon: the work of a step grows with the square of what is possible in it."""
    grammar = 'root ::= a ("x" | root)\na ::= ' + '"a"? ' * 250

    async def ask() -> None:
        async with engine_on(FakeRuntime(num_cells=4096)) as engine:
            neighbour = asyncio.create_task(collect(engine.generate(asking(DATE))))
            with pytest.raises(EngineError, match="items"):
                await collect(engine.generate(asking(Constraint("gbnf", grammar))))
            assert re.fullmatch(DATE.source, (await neighbour)[0])

    asyncio.run(asyncio.wait_for(ask(), timeout=60))


# -- refusals ------------------------------------------------------------------------------------


def test_what_contradicts_a_constraint_is_refused() -> None:
    endless = SamplingParams(ignore_eos=True)
    assert refusal(asking(DATE, sampling=endless)).param == "parameters.ignore_eos"
    assert refusal(asking(DATE, stop=("-",))).param == "parameters.stop"


def nested(opening: str, core: str, closing: str, depth: int) -> str:
    return opening * depth + core + closing * depth


def chain(length: int, link: str) -> str:
    """Definitions that each refer to the next, through `link`."""
    definitions = ",".join(f'"{i}":{link % (i + 1)}' for i in range(length))
    return f'{{"$ref":"#/$defs/0","$defs":{{{definitions},"{length}":{{}}}}}}'


LINK = '{"items":{"$ref":"#/$defs/%d"}}'
RULES = "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(4000)) + 'a4000: "a"\n'
BOMBS = {
    "60k brackets": ("json_schema", "[" * 60_000, "nested 60000 deep"),
    "60k not": ("json_schema", nested('{"not":', "{}", "}", 60_000), "bytes"),
    "brackets behind a string": ("json_schema", '{"a":"\\"]",' + '"b":[' * 99, "nested 100 deep"),
    "reference to itself": ("json_schema", '{"$ref": "#"}', "NoExtension"),
    "reference cycle": (
        "json_schema",
        '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}',
        "NoExtension",
    ),
    "chain of references": ("json_schema", chain(1400, LINK), "references go"),
    "remote reference": ("json_schema", '{"$ref": "http://127.0.0.1/x"}', "not present"),
    "product of alternatives": (
        "json_schema",
        json.dumps({"allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(10)]} for i in range(12)
        ]}),
        "combine in 1000000000000 ways",
    ),
    "4000 properties": (
        "json_schema", json.dumps({"properties": {f"p{i}": {} for i in range(4000)}}), "properties"
    ),
    "huge multipleOf": ("json_schema", '{"type": "integer", "multipleOf": 1000000000000001}', ""),
    "not enforceable": ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "lenient": (
        "json_schema",
        '{"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true}',
        "uniqueItems",
    ),
    "unsatisfiable": ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', ""),
    "true": ("json_schema", "true", "not an object"),
    "broken": ("json_schema", '{"type": ', "not JSON"),
    "surrogate": ("regex", "\ud800", "surrogate"),
    "1 MB": ("regex", "a" * 2**20, "1048576 bytes"),
    "30k groups": ("regex", nested("(", "a", ")", 30_000), "regex"),
    "200 repeats": ("regex", nested("(", "a", "+)", 200), "regex"),
    "not a regex": ("regex", "(", "regex"),
    "30k parentheses": ("lark", nested("(", '"a"', ")", 30_000).join(["start: ", ""]), "nested"),
    "chain of rules": ("lark", RULES, "colons"),
    "doubling terminals": (
        "lark",
        "start: X0\n" + "".join(f"X{i}: X{i + 1} X{i + 1}\n" for i in range(40)) + 'X40: "a"\n',
        "too big",
    ),
    "no way out": ("lark", "start: start", "NoExtension"),
    "60k parentheses of GBNF": ("gbnf", "root ::= " + "(" * 60_000, "nested over 32"),
    "GBNF without a way out": ("gbnf", 'root ::= root | root "a"', "NoExtension"),
    "GBNF that doubles": (
        "gbnf",
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40)) + "r40 ::= .",
        "too big",
    ),
    "what may come or not": ("regex", "a?" * 20_000, "20000 times ?, *"),
    "unicode classes that may come or not": ("regex", r"[\w\d\s]?" * 7000, "times ?, *"),
    "such a pattern": (
        "json_schema", json.dumps({"items": {"pattern": r"\w?" * 301}}), "times ?, *"
    ),
    "many such patterns": (
        "json_schema",
        json.dumps({"properties": {f"p{i}": {"pattern": r"\w?" * 20} for i in range(20)}}),
        "times ?, *",
    ),
    "the same in Lark": ("lark", "start: " + '"a"? ' * 5000, "times ?, *"),
    "the same in GBNF": ("gbnf", "root ::= " + '"a"? ' * 5000, "times ?, *"),
    "a regex in Lark": ("lark", "start: /" + "a?" * 5000 + "/", "times ?, *"),
    "a schema in Lark": (
        "lark", "start: %json " + json.dumps({"pattern": r"\w?" * 301}), "times ?, *"
    ),
    "a long repetition": ("regex", "a{100000}", "repeats more than 2000 times"),
    "a long literal": ("regex", "a" * 60_000, "a text of 60000 characters"),
    "a long constant": ("json_schema", json.dumps({"const": "a" * 60_000}), "a text of 60000"),
    "a long literal of Lark": ("lark", f'start: "{"a" * 60_000}"', "a text of 60002"),
    "rules that are empty and hold themselves": (
        "lark",
        "start: e\ne: " + " | ".join("e " * k + '"a"' for k in range(1, 150)) + " | \n",
        "references to rules that hold themselves",
    ),
    "the same rules of GBNF": (
        "gbnf",
        "root ::= " + " | ".join("root " * k + '"a"' for k in range(1, 40)) + ' | ""\n',
        "references to rules that hold themselves",
    ),
    "arrays of arrays": (
        "json_schema",
        json.dumps({"$ref": "#/$defs/0", "$defs": {
            str(i): {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/{j}"}}
                               for j in range(30)]} for i in range(30)
        }}),
        "900 alternatives",
    ),
    "divisors": (
        "json_schema",
        json.dumps({"properties": {
            f"p{i}": {"type": "integer", "multipleOf": 9973 + i} for i in range(200)
        }}),
        "multipleOf",
    ),
    "patterns that meet": (
        "json_schema",
        json.dumps({"allOf": [{"pattern": f"(.*{i}.*){{1,5}}"} for i in range(30)]}),
        "30 patterns at once",
    ),
    "patterns that meet by references": (
        "json_schema",
        json.dumps({"$ref": "#/$defs/0", "$defs": {
            str(i): {"pattern": f"(.*{i}.*){{1,5}}", "$ref": f"#/$defs/{i + 1}"} for i in range(30)
        }}),
        "30 patterns at once",
    ),
    "patterns that meet in a property": (
        "json_schema",
        json.dumps({"allOf": [
            {"properties": {"a": {"pattern": f"(.*{i}.*){{1,5}}"}}} for i in range(30)
        ]}),
        "30 patterns at once",
    ),
    "references that double": (
        "json_schema",
        json.dumps({"$ref": "#/$defs/0", "$defs": {
            str(i): {"allOf": [{"allOf": [{"$ref": f"#/$defs/{i + 1}"}]} for _ in range(2)]}
            for i in range(40)
        }}),
        "",
    ),
    "unknown special token": ("lark", 'start: "a" <|nothing|>', ""),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused(name: str) -> None:
    """In little time (the suite's limit is the only clock), and in words, not backtraces."""
    kind, source, reason = BOMBS[name]
    constraint = Constraint(kind, source)  # type: ignore[arg-type]
    error = refusal(asking(constraint))
    assert error.param == field_of(constraint)
    assert reason in error.message
    assert len(error.message) < 500
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("json_schema", '{"type": "array", "maxItems": 1000000000}'),
        Constraint("json_schema", '{"type": "string", "minLength": 1000000000}'),
        Constraint("regex", "(a|aa|aaa)+(a|aa)+(b+b+)+c"),
        Constraint("regex", "((a{1,1000}){1,1000}){1,1000}"),
        Constraint("regex", "|".join(f"choice {i}" for i in range(3000))),
        of_schema({"enum": [f"value {i}" for i in range(3000)]}),
        of_schema(
            {
                "type": "object",
                "properties": {
                    f"p{i}": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array"}]}
                    for i in range(100)
                },
            }
        ),
        of_schema(
            {
                "anyOf": [
                    {"type": "object", "properties": {"kind": {"const": i}, "value": {}}}
                    for i in range(100)
                ]
            }
        ),
        Constraint("lark", 'start: e\ne: e e | e e e | "a" | \n'),
        of_schema({"type": "object", "properties": {f"p{i}": {} for i in range(500)}}),
    ],
    ids=str,
)
def test_huge_bounds_and_ambiguity_cost_nothing(constraint: Constraint) -> None:
    (_, finished), (date, _) = answers(asking(constraint, max_tokens=20), asking(DATE))
    assert finished.usage.generated_tokens <= 20
    assert re.fullmatch(DATE.source, date)


# -- the cache -----------------------------------------------------------------------------------


def test_cache_is_bounded_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED", 3)
    ours = compiler()
    for i in range(9):
        ours.prepare(i, Constraint("regex", f"x{i}"))
        ours.prepare(100 + i, Constraint("regex", "x0"))  # always the latest but one
        ours.check_integrity()
        ours.take(i)
    assert {c.source for c in ours._compiled} == {"x0", "x7", "x8"}


def test_cache_is_bounded_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED_BYTES", 100)
    ours = compiler()
    for i, length in enumerate([40, 40, 40, 99, 101]):
        ours.prepare(i, Constraint("regex", "ab"[i % 2] * length))
        ours.check_integrity()
        assert ours.take(i)  # also what is too large to keep
    assert ours._cached_bytes == 0


def test_a_grammar_and_the_table_are_made_once() -> None:
    runtime, calls = FakeRuntime(), 0

    def make() -> Any:
        nonlocal calls
        calls += 1
        return runtime.grammar_tokenizer()

    ours = Compiler(make)
    ours.prepare(1, DATE)
    compiled = ours._compiled[DATE]
    ours.prepare(2, DATE)
    assert ours._compiled[DATE] is compiled
    assert calls == 1
    first, second = ours.take(1), ours.take(2)
    assert first.consume_token(ord("2"))
    assert second.consume_token(ord("2")), "each request has a state of its own"


def test_refused_grammar_is_not_kept() -> None:
    ours = compiler()
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            ours.prepare(1, Constraint("regex", "("))
    assert not ours._compiled
    assert not ours._ready


# -- leaving early -------------------------------------------------------------------------------


def test_leaving_midway() -> None:
    async def ask() -> None:
        gate = threading.Semaphore(3)
        async with engine_on(FakeRuntime(gate=gate, num_cells=1024)) as engine:
            events = engine.generate(asking(DATE))
            assert [await anext(events) for _ in range(3)]
            await events.aclose()
            gate.release(1000)
            text, _ = await collect(engine.generate(asking(DATE)))
            assert re.fullmatch(DATE.source, text)

    asyncio.run(asyncio.wait_for(ask(), timeout=60))


def test_leaving_while_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared for nobody is thrown away."""
    entered, leave = threading.Event(), threading.Event()
    prepare = Compiler.prepare

    def slow(self: Compiler, request_id: int, constraint: Constraint) -> None:
        entered.set()
        leave.wait()
        prepare(self, request_id, constraint)

    monkeypatch.setattr(Compiler, "prepare", slow)

    async def ask() -> None:
        async with engine_on(FakeRuntime(num_cells=1024)) as engine:
            task = asyncio.create_task(collect(engine.generate(asking(DATE))))
            await asyncio.to_thread(entered.wait)
            # Others go on meanwhile: compiling is in nobody's way.
            assert await collect(engine.generate(asking(None, max_tokens=3)))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            leave.set()
            await collect(engine.generate(asking(DATE)))

    asyncio.run(asyncio.wait_for(ask(), timeout=60))


def test_what_compiles_for_too_long_is_refused_and_so_is_who_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = threading.Event()
    prepare = Compiler.prepare

    def slow(self: Compiler, request_id: int, constraint: Constraint) -> None:
        leave.wait()
        prepare(self, request_id, constraint)

    monkeypatch.setattr(Compiler, "prepare", slow)
    monkeypatch.setattr(module, "MAX_COMPILE_S", 0.1)

    async def ask() -> None:
        async with engine_on(FakeRuntime(num_cells=1024)) as engine:
            first = asyncio.create_task(collect(engine.generate(asking(DATE))))
            second = asyncio.create_task(collect(engine.generate(asking(DATE))))
            assert await collect(engine.generate(asking(None, max_tokens=3)))
            found = await asyncio.gather(first, second, return_exceptions=True)
            leave.set()
            assert sorted(type(error).__name__ for error in found) == [
                "InvalidRequestError", "UnavailableError"
            ]  # fmt: skip
            monkeypatch.setattr(module, "MAX_COMPILE_S", 60.0)
            await collect(engine.generate(asking(DATE)))

    asyncio.run(asyncio.wait_for(ask(), timeout=60))


def test_masks_of_nobody_need_no_thread() -> None:
    class Free:
        id, matcher, guard, opening = 1, None, None, None

    filler = MaskFiller(EOS + 1, [EOS])
    assert filler.start([Free()]).wait() == ({}, {})
    assert filler._executor is None
    filler.close()


def test_mask_is_what_the_matcher_takes() -> None:
    ours = compiler()
    ours.prepare(7, Constraint("regex", "ab?"))
    matcher = ours.take(7)

    class Sequence7:
        id, opening = 7, None

        def __init__(self) -> None:
            self.matcher = self.guard = matcher

    filler = MaskFiller(EOS + 1, [EOS])

    def allowed() -> Sequence[int]:
        return list(map(int, np.flatnonzero(filler.start([Sequence7()]).wait().allowed[7])))

    assert allowed() == [ord("a")]
    assert matcher.consume_token(ord("a"))
    assert allowed() == [ord("b"), EOS]
    filler.close()
