"""The pool, one situation at a time; `test_pool_machine.py` throws random ones at it."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.config.units import Duration
from llmserve.errors import (
    InsufficientMemoryError,
    ModelBusyError,
    ModelFileError,
    ModelLoadingError,
    ModelUnavailableError,
    ShuttingDownError,
)
from llmserve.pool.model import State
from llmserve.pool.pool import Pool
from tests.pool.fakes import FakeLoader, make_pool, make_spec, settle

A, B, C = make_spec("a"), make_spec("b"), make_spec("c")

pytestmark = pytest.mark.anyio


async def hold(pool: Pool, spec: ModelSpec, stack: AsyncExitStack) -> None:
    await stack.enter_async_context(pool.lease(spec))


async def use(pool: Pool, spec: ModelSpec) -> None:
    async with pool.lease(spec) as engine:
        assert engine.is_alive
        pool.check_integrity()


async def test_all_who_want_a_model_share_one_load() -> None:
    loader = FakeLoader({"a": 10}, is_instant=False)
    pool = make_pool(loader, 100)
    users = [asyncio.create_task(use(pool, A)) for _ in range(8)]
    await settle()
    assert pool.look(A).state is State.LOADING
    loader.finish(A)
    await asyncio.gather(*users)
    assert loader.loads == ["a"]


async def test_a_load_holds_up_nobody_else() -> None:
    loader = FakeLoader({"a": 10, "b": 10}, is_instant=False)
    pool = make_pool(loader, 100)
    slow = asyncio.create_task(use(pool, A))
    other = asyncio.create_task(use(pool, B))
    await settle()
    loader.finish(B)
    await other
    assert not slow.done()
    loader.finish(A)
    await slow


async def test_the_least_recently_used_idle_model_makes_room() -> None:
    loader = FakeLoader({"a": 40, "b": 40, "c": 40})
    pool = make_pool(loader, 100)
    await use(pool, A)
    await use(pool, B)
    await use(pool, A)
    pool.look(A).last_used_s += 1  # the clock may not have ticked
    await use(pool, C)
    assert pool.look(B).state is State.COLD
    assert pool.look(A).state is State.READY
    assert loader.used == 80


async def test_what_cannot_fit_is_refused_with_the_numbers_and_evicts_nobody() -> None:
    loader = FakeLoader({"a": 40_000_000, "b": 120_000_000})
    pool = make_pool(loader, 100_000_000)
    await use(pool, A)
    with pytest.raises(InsufficientMemoryError, match=r"needs 120 MB.*100 MB.*a 40 MB"):
        await use(pool, B)
    assert pool.look(A).state is State.READY
    assert pool.look(B).state is State.FAILED


async def test_a_busy_model_is_waited_for_and_takes_nobody_new_meanwhile() -> None:
    loader = FakeLoader({"a": 60, "b": 60})
    pool = make_pool(loader, 100)
    async with AsyncExitStack() as stack:
        await hold(pool, A, stack)
        wants_b = asyncio.create_task(use(pool, B))
        await settle()
        late = asyncio.create_task(use(pool, A))
        await settle()
        assert not wants_b.done()
        assert not late.done()
        assert loader.engines[0].is_alive
    await asyncio.gather(wants_b, late)
    assert loader.loads == ["a", "b", "a"]


async def test_a_load_that_gives_up_waiting_releases_what_it_drained() -> None:
    loader = FakeLoader({"a": 60, "b": 60})
    pool = make_pool(loader, 100, load_wait_s=0.01)
    async with AsyncExitStack() as stack:
        await hold(pool, A, stack)
        with pytest.raises(ModelLoadingError):
            await use(pool, B)
        await settle()
        await use(pool, A)


async def test_a_pinned_model_stays() -> None:
    pinned = make_spec("a", pinned=True)
    pool = make_pool(FakeLoader({"a": 60, "b": 60}), 100)
    await use(pool, pinned)
    with pytest.raises(InsufficientMemoryError):
        await use(pool, B)
    assert pool.look(pinned).state is State.READY


async def test_an_idle_model_leaves_after_its_keep_alive_and_not_while_it_is_used() -> None:
    brief = make_spec("a", keep_alive=Duration(0.01))
    loader = FakeLoader({"a": 60})
    pool = make_pool(loader, 100)
    async with pool.lease(brief):
        await asyncio.sleep(0.03)
        assert pool.look(brief).state is State.READY
    while pool.look(brief).state is not State.COLD:  # noqa: ASYNC110 - a timer, not an event
        await asyncio.sleep(0.005)
    assert loader.used == 0


async def test_a_failed_load_tells_everybody_and_is_tried_again() -> None:
    loader = FakeLoader({"a": 10}, is_instant=False)
    pool = make_pool(loader, 100)
    users = [asyncio.create_task(use(pool, A)) for _ in range(3)]
    await settle()
    loader.finish(A, ModelFileError("the file is broken"))
    for outcome in await asyncio.gather(*users, return_exceptions=True):
        assert isinstance(outcome, ModelUnavailableError)
        assert "the file is broken" in outcome.message
    assert loader.used == 0
    again = asyncio.create_task(use(pool, A))
    await settle()
    loader.finish(A)
    await again


async def test_a_bug_in_a_load_is_a_clear_error_too(caplog: pytest.LogCaptureFixture) -> None:
    loader = FakeLoader({"a": 10}, is_instant=False)
    pool = make_pool(loader, 100)
    user = asyncio.create_task(use(pool, A))
    await settle()
    loader.finish(A, ZeroDivisionError("oops"))
    with pytest.raises(ModelUnavailableError, match=r"^internal error; see the server's log$"):
        await user
    assert "a bug ended a load" in caplog.text
    assert "ZeroDivisionError: oops" in caplog.text


async def test_an_engine_that_died_is_replaced() -> None:
    loader = FakeLoader({"a": 10})
    pool = make_pool(loader, 100)
    await use(pool, A)
    loader.engines[0].is_alive = False
    await use(pool, A)
    assert loader.loads == ["a", "a"]
    assert loader.engines[0].is_closed


async def test_unload_frees_an_idle_model_and_refuses_a_busy_one() -> None:
    loader = FakeLoader({"a": 10})
    pool = make_pool(loader, 100)
    await pool.unload(A)
    async with pool.lease(A):
        with pytest.raises(ModelBusyError, match="answering 1 request"):
            await pool.unload(A)
    await pool.unload(A)
    assert loader.used == 0


async def test_a_retired_model_finishes_what_it_does_and_leaves() -> None:
    loader = FakeLoader({"a": 10, "b": 10})
    pool = make_pool(loader, 100)
    await use(pool, B)
    async with pool.lease(A) as engine:
        pool.retain([])
        await settle()
        assert engine.is_alive
        assert pool.resident_bytes == 10
    await settle()
    assert loader.used == 0


async def test_a_model_that_is_defined_anew_is_another_model() -> None:
    loader = FakeLoader({"a": 10})
    pool = make_pool(loader, 100)
    changed = make_spec("a", context_length=99)
    async with pool.lease(A):
        pool.retain([changed])
        await use(pool, changed)
    await settle()
    assert pool.look(A).state is State.COLD
    assert pool.look(changed).state is State.READY


async def test_close_ends_loads_and_engines_and_refuses_what_comes_later() -> None:
    loader = FakeLoader({"a": 60, "b": 60, "c": 60})
    pool = make_pool(loader, 100)
    async with pool.lease(A):
        queued = asyncio.create_task(use(pool, B))
        await settle()
        closing = asyncio.create_task(pool.close())
        with pytest.raises(ShuttingDownError):
            await queued
        with pytest.raises(ShuttingDownError):
            await use(pool, C)
        await closing  # the engine ends its own requests as cancelled
    assert loader.used == 0
