"""Random leases, releases, loads, failures and unloads: the invariants hold after every step."""

import asyncio
from contextlib import AsyncExitStack, suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmserve.config.schema import ModelSpec
from llmserve.errors import LlmserveError, ModelBusyError, ModelFileError
from llmserve.pool.pool import Pool
from tests.pool.fakes import FakeEngine, FakeLoader, make_pool, make_spec, settle

BUDGET = 100
SPECS = [make_spec("a"), make_spec("b"), make_spec("c"), make_spec("d", pinned=True)]
specs = st.sampled_from(SPECS)


class User:
    """One request: wants a model, holds it until told to let go."""

    def __init__(self, pool: Pool, spec: ModelSpec) -> None:
        self.spec = spec
        self.may_go = asyncio.Event()
        self.engine: FakeEngine | None = None
        self.task = asyncio.ensure_future(self._run(pool))

    async def _run(self, pool: Pool) -> None:
        async with AsyncExitStack() as stack:
            try:
                engine = await stack.enter_async_context(pool.lease(self.spec))
            except LlmserveError:
                return
            assert isinstance(engine, FakeEngine)
            self.engine = engine
            try:
                await self.may_go.wait()
            finally:
                self.engine = None


class PoolMachine(RuleBasedStateMachine):
    @initialize(sizes=st.lists(st.integers(1, 120), min_size=4, max_size=4))
    def begin(self, sizes: list[int]) -> None:
        self.loop = asyncio.new_event_loop()
        named = {spec.name: size for spec, size in zip(SPECS, sizes, strict=True)}
        self.loader = FakeLoader(named, is_instant=False)
        self.pool = make_pool(self.loader, BUDGET, load_wait_s=3600)
        self.users: list[User] = []

    def run(self) -> None:
        self.loop.run_until_complete(settle())

    @rule(spec=specs)
    def want(self, spec: ModelSpec) -> None:
        async def start() -> None:
            self.users.append(User(self.pool, spec))

        self.loop.run_until_complete(start())
        self.run()

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.users)).may_go.set()
        self.run()

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.users)).task.cancel()
        self.run()

    @precondition(lambda self: self.loader.loading)
    @rule(data=st.data(), fails=st.booleans())
    def end_load(self, data: st.DataObject, fails: bool) -> None:
        spec = data.draw(st.sampled_from(list(self.loader.loading)))
        self.loader.finish(spec, ModelFileError("no") if fails else None)
        self.run()

    @precondition(lambda self: self.closing())
    @rule(data=st.data())
    def end_close(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.closing())).may_close.set()
        self.run()

    @rule(spec=specs)
    def unload(self, spec: ModelSpec) -> None:
        async def start() -> None:
            async def unload() -> None:
                with suppress(ModelBusyError):
                    await self.pool.unload(spec)

            self.unloading = asyncio.ensure_future(unload())

        self.loop.run_until_complete(start())
        self.run()

    def closing(self) -> list[FakeEngine]:
        return [e for e in self.loader.engines if not e.is_alive and not e.may_close.is_set()]

    @invariant()
    def integrity(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        assert self.loader.used <= BUDGET
        assert self.loader.used <= self.pool.resident_bytes <= BUDGET
        assert all(user.engine.is_alive for user in self.users if user.engine)
        for user in self.users:
            if user.task.done() and not user.task.cancelled():
                user.task.result()

    def teardown(self) -> None:
        """Whatever happened: once loads end and users let go, everybody is answered."""
        if not hasattr(self, "pool"):
            return
        for user in self.users:
            user.may_go.set()
        for _ in range(100):
            for spec in list(self.loader.loading):
                self.loader.finish(spec)
            for engine in self.loader.engines:
                engine.may_close.set()
            self.run()
        assert all(user.task.done() for user in self.users), "somebody still waits"
        self.loop.run_until_complete(self.pool.close())
        assert self.loader.used == 0
        self.loop.close()


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
