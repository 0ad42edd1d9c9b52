"""Slots: never more than there are, in order, interactive first, and none is lost."""

import asyncio
from contextlib import AsyncExitStack

from hypothesis import given
from hypothesis import strategies as st

from llmserve.core import Priority
from llmserve.remote.concurrency import Slots


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_interactive_requests_come_before_batch_in_order() -> None:
    async def main() -> None:
        slots, order = Slots(1), []

        async def use(name: str, priority: Priority) -> None:
            async with slots.slot(priority):
                order.append(name)
                await asyncio.sleep(0)

        async with slots.slot("batch"), asyncio.TaskGroup() as tasks:
            tasks.create_task(use("batch 1", "batch"))
            tasks.create_task(use("one", "interactive"))
            tasks.create_task(use("batch 2", "batch"))
            tasks.create_task(use("two", "interactive"))
            await settle()
            assert (slots.num_waiting, slots.is_full) == (4, True)
            slots._give_back()  # what the block above has
            await settle()
            assert order == ["one", "two", "batch 1", "batch 2"]
            await slots._take("batch")

    asyncio.run(main())


def test_without_a_limit_nobody_waits() -> None:
    async def main() -> None:
        slots = Slots(None)
        async with AsyncExitStack() as held:
            for _ in range(100):
                await held.enter_async_context(slots.slot("interactive"))
            assert not slots.is_full

    asyncio.run(main())


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "cancel"]), st.booleans()), max_size=40),
)
def test_any_history_loses_no_slot(num_slots: int, steps: list[tuple[str, bool]]) -> None:
    async def main() -> None:
        slots = Slots(num_slots)
        inside: list[asyncio.Event] = []
        tasks: list[asyncio.Task[None]] = []

        async def use(priority: Priority) -> None:
            leave = asyncio.Event()
            async with slots.slot(priority):
                inside.append(leave)
                try:
                    await leave.wait()
                finally:
                    inside.remove(leave)

        for step, flag in steps:
            if step == "enter":
                tasks.append(asyncio.create_task(use("batch" if flag else "interactive")))
            elif step == "leave" and inside:
                inside[0].set()
            elif step == "cancel" and tasks:
                tasks[-1 if flag else 0].cancel()
            if flag:
                await settle()
                slots.check_integrity()
            assert len(inside) <= num_slots
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        slots.check_integrity()
        assert slots._num_free == num_slots

    asyncio.run(main())
