"""What the pool does about models whose process dies: by a loader that the test drives."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.engine.interface import Crash
from llmserve.errors import (
    EngineCrashedError,
    LlmserveError,
    ModelQuarantinedError,
    RequestLostError,
)
from llmserve.pool import model as pool_model
from llmserve.pool.model import State
from llmserve.pool.pool import Pool
from tests.pool.fakes import FakeEngine, FakeLoader, make_pool, make_spec, settle

pytestmark = pytest.mark.anyio
SPEC = make_spec("a")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_model, "FIRST_PAUSE_S", 0.0)


def crash(engine: FakeEngine, *, has_answered: bool = False, lived_s: float = 1) -> None:
    engine.is_alive = False
    engine.on_crash(Crash("it was killed", ("last words",), has_answered, lived_s))


def crash_of_load() -> EngineCrashedError:
    error = EngineCrashedError("it died while it was loading")
    error.log_lines = ("last words",)
    return error


async def use(pool: Pool, spec: ModelSpec = SPEC) -> None:
    async with pool.lease(spec):
        pass


async def die_three_times(pool: Pool, loader: FakeLoader, spec: ModelSpec = SPEC) -> None:
    for engine in range(3):
        await use(pool, spec)
        crash(loader.engines[engine])
        await settle()


async def refusal(pool: Pool, spec: ModelSpec = SPEC) -> LlmserveError:
    with pytest.raises(LlmserveError) as error:
        await use(pool, spec)
    pool.check_integrity()
    return error.value


async def test_a_model_that_dies_unused_is_loaded_by_the_next_request() -> None:
    loader = FakeLoader({"a": 1})
    crashed: list[str] = []
    pool = Pool(loader, budget_bytes=lambda resident: 9, load_wait_s=30, count_crash=crashed.append)
    await use(pool)
    crash(loader.engines[0], has_answered=True)
    await settle()
    model = pool.look(SPEC)
    assert (model.state, pool.resident_bytes, loader.loads) == (State.COLD, 0, ["a"])
    assert (model.restarts.num_crashes, model.log_lines) == (1, ("last words",))
    assert crashed == ["a"]
    pool.check_integrity()
    await use(pool)
    assert loader.loads == ["a", "a"]


@pytest.mark.parametrize("is_pinned", [True, False])
async def test_a_model_that_dies_in_use_or_pinned_comes_back_by_itself(is_pinned: bool) -> None:
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9)
    spec = make_spec("a", pinned=is_pinned)
    if is_pinned:
        await use(pool, spec)
        crash(loader.engines[0])
    else:
        async with pool.lease(spec):
            crash(loader.engines[0])
    await settle()
    assert (pool.look(spec).state, loader.loads) == (State.READY, ["a", "a"])
    pool.check_integrity()


async def test_a_process_that_dies_again_and_again_is_quarantined() -> None:
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9)
    await die_three_times(pool, loader)
    error = await refusal(pool)
    assert isinstance(error, ModelQuarantinedError)
    assert error.status == 503
    for words in ("3 times", "it was killed", "GET /models", "POST /models/a/load", "[models.a]"):
        assert words in error.message
    assert pool.look(SPEC).state is State.QUARANTINED
    assert len(loader.loads) == 3
    pool.forgive(SPEC)
    await use(pool)
    assert pool.look(SPEC).state is State.READY


async def test_who_answers_between_is_never_quarantined() -> None:
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9)
    for engine in range(10):
        await use(pool)
        crash(loader.engines[engine], has_answered=True)
        await settle()
    await use(pool)


async def test_a_load_that_dies_is_tried_again_while_somebody_waits() -> None:
    loader = FakeLoader({"a": 1}, is_instant=False)
    pool = make_pool(loader, 9)
    asking = asyncio.create_task(use(pool))
    for _ in range(2):
        await settle()
        loader.finish(SPEC, crash_of_load())
    await settle()
    pool.check_integrity()
    loader.finish(SPEC)
    await asking
    assert loader.loads == ["a"] * 3


async def test_a_file_that_kills_its_loader_is_quarantined() -> None:
    loader = FakeLoader({"a": 1}, is_instant=False)
    pool = make_pool(loader, 9)
    asking = [asyncio.create_task(refusal(pool)) for _ in range(3)]
    for _ in range(3):
        await settle()
        loader.finish(SPEC, crash_of_load())
    assert {error.code for error in await asyncio.gather(*asking)} == {"model_quarantined"}
    assert pool.look(SPEC).log_lines == ("last words",)
    assert pool.resident_bytes == 0


async def test_a_load_that_dies_with_nobody_waiting_is_not_tried_again() -> None:
    loader = FakeLoader({"a": 1}, is_instant=False)
    pool = make_pool(loader, 9, load_wait_s=0)
    assert (await refusal(pool)).code == "model_loading"
    loader.finish(SPEC, crash_of_load())
    await settle()
    assert (pool.look(SPEC).state, loader.loads) == (State.FAILED, ["a"])
    pool.check_integrity()


async def test_a_changed_file_ends_the_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"bad")
    spec = ModelSpec(name="a", path=path)
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9)
    await die_three_times(pool, loader, spec)
    assert (await refusal(pool, spec)).code == "model_quarantined"
    path.write_bytes(b"better")
    await use(pool, spec)


async def test_a_quarantined_model_that_leaves_the_config_is_forgotten() -> None:
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9)
    await die_three_times(pool, loader)
    pool.retain([])
    assert pool.look(SPEC).state is State.COLD
    pool.check_integrity()


async def test_a_pause_before_another_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_model, "FIRST_PAUSE_S", 1000.0)
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9, load_wait_s=0.1)
    for engine in range(2):
        await use(pool)
        crash(loader.engines[engine])
        await settle()
    error = await refusal(pool)
    assert "waiting after a crash" in error.message
    assert error.retry_after_s
    assert 60 < error.retry_after_s <= 65
    await pool.close()
    assert len(loader.loads) == 2


async def test_closing_while_a_load_waits_to_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_model, "FIRST_PAUSE_S", 1000.0)
    loader = FakeLoader({"a": 1}, is_instant=False)
    pool = make_pool(loader, 9)
    asking = asyncio.create_task(refusal(pool))
    for _ in range(2):
        await settle()
        loader.finish(SPEC, crash_of_load())
    await settle()
    await pool.close()
    assert (await asking).code == "shutting_down"


async def test_a_process_that_is_dead_before_anybody_could_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9)
    real = FakeEngine.watch

    def watch(self: FakeEngine, on_crash: Callable[[Crash], None]) -> None:
        real(self, on_crash)
        if len(loader.engines) == 1:
            crash(self)

    monkeypatch.setattr(FakeEngine, "watch", watch)
    with contextlib.suppress(RequestLostError):
        async with pool.lease(SPEC) as engine:
            assert engine.is_alive
    await settle()
    assert pool.look(SPEC).restarts.num_crashes == 1
    await use(pool)
    assert loader.loads == ["a", "a"]
    pool.check_integrity()


async def test_a_load_by_hand_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_model, "FIRST_PAUSE_S", 1000.0)
    loader = FakeLoader({"a": 1})
    pool = make_pool(loader, 9)
    for engine in range(2):
        await use(pool)
        crash(loader.engines[engine])
        await settle()
    asking = asyncio.create_task(use(pool))
    await settle()
    assert pool.look(SPEC).progress.doing == "waiting after a crash"
    pool.forgive(SPEC)
    await asking
    assert pool.look(SPEC).state is State.READY
