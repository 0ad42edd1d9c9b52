"""Pinned prompts on the fake: computed when nobody wants anything, known to all, never dropped."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.chat.chat_format import ChatStyle
from llmserve.chat.template import ChatTemplate
from llmserve.core import Finished, Message, Request, SamplingParams
from llmserve.engine.input import prompt as prompt_module
from llmserve.engine.input.pins import Pin, make_pins
from llmserve.engine.kvcache.disk_store import DiskOptions
from llmserve.engine.kvcache.manager import PINNED
from llmserve.engine.messages import Ended, Report
from llmserve.engine.runtime import OutOfCellsError
from llmserve.engine.thread import ModelThread
from llmserve.engine.worker.worker import Worker
from tests.engine.solo import answer_alone
from tests.engine.worker.test_worker import Bench
from tests.fakes import TEMPLATE, FakeRuntime
from tests.policies import policy
from tests.serving import wait_until

LONG = SamplingParams(temperature=0, ignore_eos=True)
PROMPT = [n % 251 for n in range(300)]
BOTH = pytest.mark.parametrize("can_cut", [True, False])


class PinBench(Bench):
    """Pins whatever nobody keeps it from."""

    def __init__(
        self,
        *prompts: Sequence[int],
        folder: Path | None = None,
        can_cut: bool = True,
        cache: int = 1 << 20,
        num_slots: int = 4,
        runtime: FakeRuntime | None = None,
    ) -> None:
        runtime = runtime or FakeRuntime(
            num_cells=2000, num_slots=num_slots, max_batch=64, max_outputs=16, can_cut=can_cut
        )
        super().__init__(runtime)
        disk = DiskOptions(folder, 1 << 20, "this") if folder else None
        self.worker = Worker(
            runtime,
            self._note,
            prefix_cache_bytes=cache,
            policy=policy(speculation=False),
            pinned_disk=disk,
        )
        self.worker._kv.open()
        self.worker._pinning.open(
            [Pin(f"prompt {n}", list(tokens)) for n, tokens in enumerate(prompts)]
        )

    @property
    def is_busy(self) -> bool:
        return super().is_busy or self.worker._pinning.has_work

    def step(self) -> None:
        worker = self.worker
        while not worker._inbox.empty():
            worker._handle(worker._inbox.get())  # type: ignore[arg-type]
        if self.is_busy:
            worker._compute()
        worker._kv.check_integrity()

    def cached(self, prompt: Sequence[int], namespace: str = "") -> int:
        """How much of `prompt` was known; asserts that the answer is as without that."""
        request_id = self.submit(prompt, 3, sampling=LONG, namespace=namespace)
        self.run()
        end = self.ends[request_id]
        assert isinstance(end, Finished)
        assert self.answer(request_id) == answer_alone(prompt, 3, sampling=LONG)
        return end.usage.cached_tokens

    @property
    def num_computed(self) -> int:
        return sum(self.runtime.batch_sizes)


# -- for whom ------------------------------------------------------------------------------------


@BOTH
def test_it_is_known_in_every_namespace(can_cut: bool) -> None:
    bench = PinBench(PROMPT, can_cut=can_cut)
    bench.run()
    assert bench.num_computed == 300
    assert bench.stats == [], "no step of a request"
    for namespace in ("", "a", "b"):
        assert bench.cached([*PROMPT, 1, 2, 3], namespace) == 300
        assert bench.cached([*PROMPT, 9, 2, 3], namespace) == 300


def test_for_no_bytes_of_its_own() -> None:
    bench = PinBench(PROMPT)
    bench.run()
    before = bench.worker._kv.parked_bytes
    bench.cached([*PROMPT, 1, 2, 3], "a")
    one = bench.worker._kv.parked_bytes - before
    bench.cached([*PROMPT, 1, 2, 3], "b")
    assert bench.worker._kv.parked_bytes == before + 2 * one
    assert one < before / 10


@BOTH
def test_only_who_has_all_of_it_finds_it(can_cut: bool) -> None:
    """Otherwise it could be guessed token by token, by what is cached or how long it takes."""
    bench = PinBench(PROMPT, can_cut=can_cut)
    bench.run()
    assert bench.cached([*PROMPT[:299], 255, 1]) == 0
    assert bench.cached(PROMPT[:200], "a") == 0
    assert bench.cached([*PROMPT, 1], "b") == 300


@BOTH
def test_prompts_that_begin_alike(can_cut: bool) -> None:
    prompts = [PROMPT, PROMPT[:100], [*PROMPT[:100], *[7] * 50], PROMPT[:64]]
    bench = PinBench(*prompts, can_cut=can_cut)
    bench.run()
    assert bench.num_computed == 300 + 50 if can_cut else 300 + 100 + 50 + 64
    for prompt in prompts:
        assert bench.cached([*prompt, 255, 1], f"{len(prompt)}") == len(prompt)


@BOTH
def test_no_pressure_drops_it(can_cut: bool) -> None:
    bench = PinBench(PROMPT, can_cut=can_cut, cache=3500)
    for n in range(10):
        bench.cached([n] * 60, f"{n}")
    assert bench.cached([*PROMPT, 1, 2]) == 300
    assert bench.worker._kv.parked_bytes <= 3500


def test_what_does_not_fit_is_told(caplog: pytest.LogCaptureFixture) -> None:
    bench = PinBench(PROMPT, PROMPT[:100], cache=1000)
    bench.run()
    assert "prompt 0 is not kept: its 300 tokens take about" in caplog.text
    assert "prompt 1" not in caplog.text
    assert bench.cached([*PROMPT[:100], 1, 2]) == 100


def test_without_a_cache_nothing_is_pinned(caplog: pytest.LogCaptureFixture) -> None:
    bench = PinBench(PROMPT, cache=0)
    bench.run()
    assert "prefix_cache has 0 MB" in caplog.text
    assert bench.cached([*PROMPT, 1]) == 0


class SmallRuntime(FakeRuntime):
    """Has fewer cells than it says."""

    def _check_room(self, num_tokens: int) -> None:
        if self.num_used_cells + num_tokens > 100:
            raise OutOfCellsError


def test_one_that_cannot_be_computed_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    runtime = SmallRuntime(num_cells=1000, max_batch=64)
    bench = PinBench(PROMPT, PROMPT[5:50], runtime=runtime)
    bench.run()
    assert "prompt 0 cannot be computed: no cells" in caplog.text
    assert bench.cached([*PROMPT[5:50], 1]) == 45
    assert runtime.num_used_cells == 0


# -- when ----------------------------------------------------------------------------------------


@BOTH
def test_requests_come_first_and_nothing_is_computed_twice(can_cut: bool) -> None:
    bench = PinBench(PROMPT, can_cut=can_cut, num_slots=1)
    for n in range(3):
        bench.step()
        assert bench.runtime.num_used_cells > 0
        request_id = bench.submit([n + 3] * 20, 2, sampling=LONG, deterministic=n == 1)
        while request_id not in bench.ends:
            num_pinned = bench.worker._pinning._sequence
            bench.step()
            assert not bench.worker._pinning._sequence, num_pinned
    bench.run()
    assert bench.num_computed == 300 + 3 * 21
    assert bench.cached([*PROMPT, 1]) == 300


def test_a_request_interrupts_a_step(tmp_path: Path) -> None:
    gate = threading.Semaphore(0)
    runtime = FakeRuntime(num_cells=1000, max_batch=64, gate=gate)
    pins: Future[list[Pin]] = Future()
    pins.set_result([Pin("it", PROMPT)])
    bench = Bench(runtime)
    done, ended = threading.Event(), threading.Event()

    def note(report: Report) -> None:
        bench._note(report)
        if bench.ends:
            done.set()
        if isinstance(report, Ended):
            ended.set()

    disk = DiskOptions(tmp_path / "it", 1 << 20, "this")
    worker = bench.worker = Worker(
        runtime, note, policy=policy(), prefix_cache_bytes=1 << 20, pins=pins, pinned_disk=disk
    )
    thread = ModelThread("worker")
    worker.start(thread)
    assert runtime.decoding.wait(10)
    request_id = bench.submit([1] * 20, 1, sampling=LONG)
    wait_until(lambda: len(runtime.batch_sizes) == 2, "the request's step")
    gate.release()
    assert done.wait(10)
    assert bench.answer(request_id) == answer_alone([1] * 20, 1, sampling=LONG)
    assert runtime.batch_sizes[1] == 20
    gate.release(100)
    wait_until(lambda: not worker._pinning.has_work, "the prompt to be pinned")
    worker.stop()
    thread.shutdown()
    assert ended.is_set()
    assert bench.ended is not None
    assert bench.ended.fault is None
    assert len(list((tmp_path / "it").iterdir())) > 3


# -- after a restart -----------------------------------------------------------------------------


@BOTH
def test_a_restarted_worker_computes_nothing(tmp_path: Path, can_cut: bool) -> None:
    prompts = [PROMPT, [*PROMPT[:100], *[7] * 50]]
    bench = PinBench(*prompts, folder=tmp_path / "it", can_cut=can_cut)
    bench.run()
    bench.worker._kv.close()
    bench = PinBench(*prompts, folder=tmp_path / "it", can_cut=can_cut)
    assert not bench.worker._pinning.has_work
    for prompt in prompts:
        assert bench.cached([*prompt, 9, 1], "someone") == len(prompt)
    assert bench.num_computed == 2 * 2 + 2 * 2
    bench.worker._kv.close()


@BOTH
def test_what_is_pinned_no_longer_is_removed(tmp_path: Path, can_cut: bool) -> None:
    folder = tmp_path / "it"
    other = [*PROMPT[:100], *[7] * 50]
    bench = PinBench(PROMPT, other, folder=folder, can_cut=can_cut)
    bench.run()
    bench.worker._kv.close()
    for prompts, has_files in (([other], True), ([other], True), ([], False)):
        bench = PinBench(*prompts, folder=folder, can_cut=can_cut)
        assert not bench.worker._pinning.has_work
        bench.worker._kv.close()
        assert bool(list(folder.iterdir())) == has_files
    assert bench.cached([*other, 1]) == 0


def test_damage_is_computed_again(tmp_path: Path) -> None:
    for is_damaged in (False, True, False):
        for path in tmp_path.glob("it/*") if is_damaged else ():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        is_known = bool(list(tmp_path.glob("it/*"))) and not is_damaged
        bench = PinBench(PROMPT, folder=tmp_path / "it")
        assert bench.worker._pinning.has_work == (not is_known)
        bench.run()
        assert bench.cached([*PROMPT, 1]) == 300
        bench.worker._kv.close()


# -- what all conversations begin with -----------------------------------------------------------


def style(template: str = TEMPLATE) -> ChatStyle:
    return ChatStyle(ChatTemplate(template, bos_text="", eos_text=""))


def test_the_prefix_is_what_every_user_gets() -> None:
    runtime = FakeRuntime(num_cells=1000)
    (pin,) = make_pins("m", ["You are brief. Très."], runtime, style())
    assert bytes(pin.tokens).decode() == "<system>You are brief. Très.\n<user>"
    assert pin.name == "models.m.pinned_prompts[0]"
    for text in ("Hello", "\n", "é"):
        messages = (Message("system", "You are brief. Très."), Message("user", text))
        tokens = prompt_module.encode(Request(messages=messages), runtime, style(), None).tokens
        assert tokens[: len(pin.tokens)] == pin.tokens


def test_a_template_may_put_the_system_message_anywhere() -> None:
    folded = (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.s = m.content %}{% else %}<{{ m.role }}>{{ ns.s }}|{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    runtime = FakeRuntime(num_cells=1000)
    (pin,) = make_pins("m", ["You are brief, please."], runtime, style(folded))
    assert bytes(pin.tokens) == b"<user>You are brief, please.|"


@pytest.mark.parametrize(
    ("prompt", "template", "reason"),
    [
        ("You are brief.", None, "no chat template"),
        ("You are brief.", "{{ raise_exception('no system role') }}", "no system role"),
        ("You are brief. " * 100, TEMPLATE, "1,500 tokens|15"),
        ("", "{{ messages[1].content }}", "it has 0 tokens"),
    ],
)
def test_what_cannot_be_pinned_is_told(
    prompt: str, template: str | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = FakeRuntime(num_cells=1000)
    assert make_pins("m", [prompt], runtime, style(template) if template else None) == []
    assert "models.m.pinned_prompts[0] is not kept" in caplog.text
    assert any(part in caplog.text for part in reason.split("|"))


def test_a_model_for_embeddings_has_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert make_pins("m", ["You are brief."], FakeRuntime(generates=False), style()) == []
    assert "generates no text" in caplog.text


# -- whatever happens ----------------------------------------------------------------------------

texts = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@settings(deadline=None, max_examples=80)
@given(
    pins=st.lists(texts, min_size=1, max_size=3),
    asked=st.lists(
        st.tuples(
            st.integers(0, 2),  # which pin it begins with
            st.integers(0, 40),  # how much of that is left out
            texts,
            st.sampled_from(["", "x"]),
            st.integers(0, 4),  # steps before the next
        ),
        max_size=8,
    ),
    cache=st.sampled_from([0, 400, 1500, 1 << 20]),
    can_cut=st.booleans(),
)
def test_answers_are_what_they_would_be_without(
    pins: list[list[int]],
    asked: list[tuple[int, int, list[int], str, int]],
    cache: int,
    can_cut: bool,
) -> None:
    prompts = [[0] * 16 + pin for pin in pins]
    bench = PinBench(*prompts, cache=cache, can_cut=can_cut, num_slots=2)
    expected = {}
    for which, num_less, text, namespace, num_steps in asked:
        pin = prompts[which % len(prompts)]
        prompt = [*pin[: len(pin) - num_less], *text]
        request_id = bench.submit(prompt, 3, sampling=LONG, namespace=namespace)
        expected[request_id] = answer_alone(prompt, 3, sampling=LONG)
        for _ in range(num_steps):
            bench.step()
    bench.run()
    assert {request_id: bench.answer(request_id) for request_id in expected} == expected
    assert bench.runtime.num_used_cells == 0
    if cache == 1 << 20:
        for pin in prompts:
            assert bench.cached([*pin, 7, 7], "y") >= len(pin)
    parking = bench.worker._kv._parking
    assert all(parking.parked_path(PINNED, tokens) for tokens in bench.worker._kv._pinned)
