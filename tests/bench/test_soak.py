"""What the soak takes for right and wrong, and that what it sends is what it says."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from llmserve import core
from tests.bench.soak import bad
from tests.bench.soak.asks import STAYS, TAKE_TURNS, Ask, Leave, Workload
from tests.bench.soak.client import answer, http_client
from tests.bench.soak.drive import Plan
from tests.bench.soak.faults import Fault
from tests.bench.soak.judge import Judge
from tests.bench.soak.reference import MEAN_TOLERANCE, TOLERANCE, Reference
from tests.bench.soak.replies import Choice, Reply, read_event
from tests.bench.soak.tally import Tally
from tests.bench.soak.watch import slope
from tests.serving import FakeService
from tests.smollm2 import MODEL

MODELS = [STAYS, *TAKE_TURNS]


# -- what is asked -------------------------------------------------------------------------------


def test_a_seed_gives_the_same_requests() -> None:
    one, same, other = (Workload(seed, MODELS) for seed in (1, 1, 2))
    asks = [one.ask(i) for i in range(200)]
    assert asks == [same.ask(i) for i in range(200)]
    assert asks != [other.ask(i) for i in range(200)]


def test_everything_that_the_issue_names_is_asked() -> None:
    asks = [Workload(3, MODELS).ask(i) for i in range(600)]
    assert {ask.route for ask in asks} == {
        "/inference", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
    }  # fmt: skip
    assert {ask.model for ask in asks} == set(MODELS)
    assert len({ask.model for ask in asks[100:140]}) == 3, "models take turns"
    for number in (
        sum(ask.is_stream for ask in asks), sum(ask.leave is not None for ask in asks),
        sum(ask.schema is not None for ask in asks), sum(ask.num_choices > 1 for ask in asks),
        sum(ask.calm_key is not None for ask in asks), sum("logprobs" in ask.body for ask in asks),
        sum(ask.stop is not None for ask in asks),
    ):  # fmt: skip
        assert number > 15
    judged = sum(bool(ask.prompts) for ask in asks)
    assert judged > len(asks) / 2


def test_calm_requests_are_those_that_come_again() -> None:
    workload = Workload(4, MODELS)
    calm = {ask.calm_key: ask.body for ask in workload.calm()}
    for ask in (workload.ask(i) for i in range(400)):
        if ask.calm_key:
            assert ask.body | {"model": STAYS} == calm[ask.calm_key]


@pytest.mark.parametrize(("minutes", "laps"), [(0.2, 4), (3, 4), (4, 4), (10, 10), (30, 30)])
def test_laps_take_the_minutes(minutes: float, laps: int) -> None:
    plan = Plan(minutes, seed=1, rate=1)
    assert plan.num_laps == laps
    assert plan.num_laps * plan.lap_s == pytest.approx(minutes * 60)


# -- what comes back -----------------------------------------------------------------------------


def send(service: FakeService, ask: Ask) -> list[Reply]:
    async def exchange() -> list[Reply]:
        async with http_client(service.base_url) as client:
            return await answer(client, ask, deadline_s=60)

    return asyncio.run(exchange())


def fake_asks() -> list[Ask]:
    """One of every kind and form that a fake model can answer."""
    found: dict[tuple[object, ...], Ask] = {}
    for ask in (Workload(5, ["fake"]).ask(i) for i in range(300)):
        chats = "messages" in ask.body or ask.kind == "responses"
        if not (ask.schema or ask.pattern or ask.leave or chats or ask.kind == "embeddings"):
            found.setdefault((ask.kind, ask.is_stream, "logprobs" in ask.body), ask)
    return list(found.values())


@pytest.mark.parametrize("ask", fake_asks(), ids=lambda ask: f"{ask.kind}-{ask.is_stream}")
def test_an_answer_is_read_whole(service: FakeService, ask: Ask) -> None:
    (reply,) = send(service, ask)
    assert (reply.status, reply.error, reply.is_whole) == (200, "", True)
    assert len(reply.choices) == ask.num_choices
    assert bool(reply.arrivals_s) == ask.is_stream
    for choice in reply.choices.values():
        assert choice.text
        assert choice.finish in ("stop", "length")


def test_a_client_leaves_in_mid_stream(service: FakeService) -> None:
    body = {"model": "fake", "prompt": "x" * 40, "max_tokens": 2000, "stream": True}
    ask = Ask(kind="", route="/v1/completions", body=body, leave=Leave(after_pieces=2))
    (reply,) = send(service, ask)
    assert (reply.has_left, reply.is_whole, len(reply.arrivals_s)) == (True, False, 2)


def test_a_refusal_is_no_answer(service: FakeService) -> None:
    body = {"model": "fake", "prompt": "x", "nonsense": 1}
    (reply,) = send(service, Ask(kind="", route="/v1/completions", body=body))
    assert (reply.status, reply.error, reply.is_whole) == (400, "unknown_parameter", False)


def is_whole(reply: Reply) -> bool:
    return reply.is_whole


def test_a_stream_is_whole_with_its_end_only() -> None:
    reply = Reply(0.0)
    chunk = '{"choices": [{"index": 0, "text": "a", "finish_reason": %s}]}'
    assert read_event(reply, "/v1/completions", chunk % "null")
    read_event(reply, "/v1/completions", chunk % '"stop"')
    assert not is_whole(reply)
    assert not read_event(reply, "/v1/completions", "[DONE]")
    assert is_whole(reply)
    with pytest.raises(ValueError, match="after the end"):
        read_event(reply, "/v1/completions", chunk % "null")


def test_done_without_a_finish_reason_is_no_end() -> None:
    reply = Reply(0.0)
    chunk = '{"choices": [{"index": 0, "text": "a", "finish_reason": null}]}'
    read_event(reply, "/v1/completions", chunk)
    read_event(reply, "/v1/completions", "[DONE]")
    assert not reply.is_whole


def bad_inputs() -> list[bad.Bad]:
    """Some of each sort."""
    drawn = [bad.draw(random.Random(i)) for i in range(150)]
    counts: Counter[str] = Counter()
    kept = []
    for each in drawn:
        counts[each.name] += 1
        if counts[each.name] <= 3 and "half a file" not in each.name:
            kept.append(each)
    return kept


@pytest.mark.parametrize("one", bad_inputs(), ids=lambda one: one.name)
def test_bad_input_is_answered_as_it_may_be(service: FakeService, one: bad.Bad) -> None:
    assert asyncio.run(bad.send(service.port, one, deadline_s=60)) in one.allowed
    assert set(service.errors) <= {"Invalid HTTP request received."}  # uvicorn's warning
    service.num_expected_errors = len(service.errors)


# -- verdicts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    model = Reference(Path(MODEL))
    yield model
    model.close()


def greedy_asks(count: int) -> list[Ask]:
    """Completions of lists, with nothing else to them."""
    asks = (Workload(6, ["stays"]).ask(i) for i in range(400))
    plain = [a for a in asks if a.kind == "deterministic" and a.prompts]
    different = {str(ask.body["prompt"]): ask for ask in plain}
    return list(different.values())[:count]


def own_text(reference: Reference, ask: Ask, size: int = 5) -> str:
    """What the model says itself, by the reference's own logits."""
    tokens = reference.encode(ask.prompts[0])
    answer: list[int] = []
    for _ in range(size):
        row = reference._rows([*tokens, *answer], len(tokens) + len(answer) - 1)[0]
        answer.append(int(row.argmax()))
    return reference._runtime.detokenize(answer).decode()


def test_an_answer_is_right_after_its_own_prompt_only(reference: Reference) -> None:
    """Cross-talk, stale cells and wrong prefixes all look like somebody else's answer."""
    asks = greedy_asks(3)
    texts = [own_text(reference, ask) for ask in asks]
    for i, ask in enumerate(asks):
        tokens = reference.encode(ask.prompts[0])
        for j, text in enumerate(texts):
            verdict = reference.judge(tokens, text, ended=False)
            is_right = verdict.worst <= TOLERANCE and verdict.mean <= MEAN_TOLERANCE
            assert is_right == (i == j), (verdict, text)


def test_a_text_that_ends_too_early_is_wrong(reference: Reference) -> None:
    (ask,) = greedy_asks(1)
    tokens, text = reference.encode(ask.prompts[0]), own_text(reference, ask)
    assert reference.judge(tokens, text, ended=False).worst == 0
    assert reference.judge(tokens, text, ended=True).worst > TOLERANCE


def test_a_text_may_be_cut_into_other_tokens(reference: Reference) -> None:
    """Half of a word, as a stream that was left has it."""
    (ask,) = greedy_asks(1)
    tokens, text = reference.encode(ask.prompts[0]), own_text(reference, ask)
    for size in range(1, len(text), 5):
        assert reference.judge(tokens, text[:size], ended=False).worst <= TOLERANCE
    assert math.isinf(reference.judge(tokens, text[:-2] + "#~", ended=False).worst)


def test_a_text_is_judged_by_the_tokens_that_the_model_wrote(reference: Reference) -> None:
    """It wrote jewel and ry, of which the tokenizer makes one token, 1.9 nats from the best."""
    prompt = Workload(1, MODELS).ask(102).prompts[0]
    text = " jeweler jeweler" + " jewelry mirror" * 4
    assert reference.judge(reference.encode(prompt), text, ended=False).worst < 0.5


def test_prompt_logprobs_are_the_models(reference: Reference) -> None:
    tokens = reference.encode(core.Request(prompt="one two three", mode=core.Mode.COMPLETION))
    values = reference.logprobs(tokens, 1)
    assert len(values) == len(tokens) - 1
    assert all(value < 0 for value in values)


def whole(ask: Ask, *texts: str, finish: str = "length") -> Reply:
    choices = {i: Choice(text, finish) for i, text in enumerate(texts)}
    return Reply(0.0, 200, choices=choices, is_whole=True, num_tokens=1)


def test_the_judge_finds_another_requests_answer(reference: Reference) -> None:
    asks = greedy_asks(2)
    judge = Judge()
    for ask in asks:
        ask.calm_key = None
        judge.take(ask, whole(ask, own_text(reference, ask)))
    judge.finish(reference)
    assert not judge.wrong
    judge.take(asks[0], whole(asks[0], own_text(reference, asks[1])))
    judge.finish(reference)
    assert [wrong.ask for wrong in judge.wrong] == [asks[0]]


def person() -> Ask:
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
    jsonschema.Draft202012Validator.check_schema(schema)
    return Ask(kind="", route="", body={"model": "m"}, max_tokens=8, schema=schema, pattern=".*")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (whole(person(), '{"age": 3}', finish="stop"), ""),
        (whole(person(), '{"age": "3"}', finish="stop"), "schema"),
        (whole(person(), '{"age', finish="stop"), "schema"),
        (whole(person(), '{"age', finish="length"), ""),
        (whole(person(), '{"age": 3}', finish="cancelled"), "finish reason"),
        (whole(person(), '{"age": 3}', '{"age": 3}', finish="stop"), "2 choices"),
    ],
)
def test_the_form_of_an_answer(reply: Reply, words: str) -> None:
    judge = Judge()
    judge.take(person(), reply)
    assert len(judge.wrong) == bool(words)
    if words:
        assert words in judge.wrong[0].reason


def test_a_deterministic_answer_is_the_calm_one() -> None:
    ask = Ask(kind="", route="", body={"model": "m"}, max_tokens=8, calm_key="a")
    judge = Judge()
    judge.take(ask, whole(ask, "one"), is_calm=True)
    judge.take(ask, whole(ask, "one"))
    assert not judge.wrong
    judge.take(ask, whole(ask, "One"))
    assert "deterministic" in judge.wrong[0].reason


# -- the books -----------------------------------------------------------------------------------


def crash(begin_s: float, end_s: float) -> Reply:
    return Reply(begin_s, 503, "engine_crashed", "gone", end_s=end_s)


def test_only_a_fault_of_the_same_model_and_time_excuses_a_crash() -> None:
    tally = Tally()
    tally.faults.append(Fault("red", 9, 10.0, 15.0))  # type: ignore[arg-type]
    red, blue = (Ask(kind="k", route="", body={"model": name}) for name in ("red", "blue"))
    done = Reply(11.0, 200, is_whole=True)
    tally.take(red, [crash(9, 11), done])
    tally.take(red, [crash(1, 2), done])
    tally.take(red, [crash(16, 17), done])
    tally.take(blue, [crash(9, 11), done])
    tally.end(0, num_left=0, log_text="")
    assert tally.counts["crashed"] == 1
    assert tally.counts["answered"] == 4
    assert len(tally.lost) == 3


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(0, 200, "deadline"), "hangs"),
        (Reply(0, 200, "cut off"), "lost"),
        (Reply(0, 503, "unavailable"), "lost"),
        (Reply(0, 0, "connection"), "lost"),
        (Reply(0, 500, "internal_error"), "lost"),
        (Reply(0, 200, has_left=True), None),
    ],
)
def test_what_is_lost_and_what_hangs(reply: Reply, kind: str | None) -> None:
    tally = Tally()
    tally.take(Ask(kind="k", route="", body={"model": "m"}), [reply])
    assert len(tally.hangs) == (kind == "hangs")
    assert len(tally.lost) == (kind == "lost")


def test_the_slope() -> None:
    assert slope([(1, 5.0), (2, 7.0), (3, 9.0)]) == pytest.approx(2)
    assert slope([(1, 5.0), (2, 5.0), (3, 5.0), (4, 5.0)]) == pytest.approx(0)
    assert slope([(1, 5.0), (2, 50.0)]) == 0
