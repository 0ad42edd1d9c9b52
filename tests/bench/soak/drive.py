"""The load itself: laps of everything at once, and a rest after each, at which nothing is held."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import click
import httpx2

from tests.bench.soak import bad
from tests.bench.soak.asks import STAYS, TAKE_TURNS, Workload
from tests.bench.soak.client import answer, http_client
from tests.bench.soak.faults import SIGNALS, strike
from tests.bench.soak.judge import Judge
from tests.bench.soak.tally import Tally, Trouble
from tests.bench.soak.watch import Watch
from tests.bench.targets import Server

STALL_S = 15.0  # `stall_timeout` of its models: far more than a step takes on a busy machine
LAP_S = 60.0
MIN_LAPS = 4
_MAX_ACTIVE = 48  # requests at the same time; who comes then waits outside
_NUM_COMMANDS = 4  # of each lap
_BAD_SHARE = 0.15  # of what is sent
_HEALTH_PAUSE_S = 0.5
_LEFT_S = 20.0  # for what clients left behind to be gone


class Plan(NamedTuple):
    minutes: float
    seed: int
    rate: float  # arrivals a second
    has_faults: bool = True
    deadline_s: float = 180.0  # of a request with all its tries: far beyond what is sane

    @property
    def lap_s(self) -> float:
        return min(LAP_S, self.minutes * 60 / MIN_LAPS)

    @property
    def num_laps(self) -> int:
        return max(MIN_LAPS, round(self.minutes * 60 / self.lap_s))


class Soak:
    """Everything that it draws comes from the seed; when things happen is the machine's affair."""

    def __init__(
        self, server: Server, config: Path, plan: Plan, judge: Judge, tally: Tally
    ) -> None:
        self.watch = Watch(server.pid)
        self._server = server
        self._config = config
        self._config_text = config.read_text()
        self._plan = plan
        self._judge = judge
        self._tally = tally
        self._workload = Workload(plan.seed, [STAYS, *TAKE_TURNS])
        self._places = asyncio.Semaphore(_MAX_ACTIVE)
        self._num_asked = 0
        self._begin_s = time.perf_counter()

    async def drive(self) -> None:
        async with http_client(self._server.url) as client:
            await self._calm(client)
        await self._rest()
        for number in range(self._plan.num_laps):
            async with http_client(self._server.url) as client:
                await self._lap(client, number)
            await self._rest()
            counts = ", ".join(f"{count} {what}" for what, count in self._tally.counts.items())
            click.echo(f"lap {number + 1} of {self._plan.num_laps}: {counts}", err=True)

    async def _calm(self, client: httpx2.AsyncClient) -> None:
        """What the server answers when it has nothing else to do."""
        for ask in self._workload.calm():
            reply = (await answer(client, ask, deadline_s=self._plan.deadline_s))[-1]
            if not reply.is_whole:
                raise SystemExit(f"bench: {ask.kind}: {reply.status} {reply.message}")
            self._judge.take(ask, reply, is_calm=True)

    async def _lap(self, client: httpx2.AsyncClient, number: int) -> None:
        """Poisson arrivals for a while, beside them everything else; then all may finish."""
        rng, lap_s = random.Random(f"{self._plan.seed}/lap {number}"), self._plan.lap_s
        beside = [
            _after(rng.uniform(0.1, 0.9) * lap_s, self._command, client, rng.random())
            for _ in range(_NUM_COMMANDS)
        ]
        if self._plan.has_faults:
            signum = SIGNALS[number % len(SIGNALS)]
            beside.append(_after(rng.uniform(0.2, 0.6) * lap_s, self._strike, client, signum))
        async with asyncio.TaskGroup() as tasks:
            healthy = tasks.create_task(self._poll_health(client))
            async with asyncio.TaskGroup() as inner:
                for each in beside:
                    inner.create_task(each)
                await self._arrivals(client, rng, inner)
            healthy.cancel()

    async def _arrivals(
        self, client: httpx2.AsyncClient, rng: random.Random, tasks: asyncio.TaskGroup
    ) -> None:
        begin_s, due_s = time.perf_counter(), 0.0
        while (due_s := due_s + rng.expovariate(self._plan.rate)) < self._plan.lap_s:
            is_bad, bad_seed = rng.random() < _BAD_SHARE, rng.getrandbits(32)
            await asyncio.sleep(max(0.0, begin_s + due_s - time.perf_counter()))
            await self._places.acquire()
            if time.perf_counter() > begin_s + self._plan.lap_s:  # it waited too long for a place
                self._places.release()
                return
            task = tasks.create_task(self._bad(bad_seed) if is_bad else self._ask(client))
            task.add_done_callback(lambda _: self._places.release())

    # -- what is sent -----------------------------------------------------------------------

    async def _ask(self, client: httpx2.AsyncClient) -> None:
        self._num_asked += 1
        ask = self._workload.ask(self._num_asked)
        replies = await answer(client, ask, deadline_s=self._plan.deadline_s)
        self._tally.take(ask, replies)
        for reply in replies:
            self._judge.take(ask, reply)

    async def _bad(self, seed: int) -> None:
        drawn = bad.draw(random.Random(seed))
        self._tally.counts["bad"] += 1
        try:
            status = await bad.send(self._server.port, drawn, deadline_s=self._plan.deadline_s)
        except TimeoutError:
            self._tally.hangs.append(Trouble("bad input", drawn.name, "no end"))
        else:
            if status not in drawn.allowed:
                reason = f"{status} instead of {drawn.allowed}"
                self._tally.unruly.append(Trouble("bad input", drawn.name, reason))

    async def _command(self, client: httpx2.AsyncClient, draw: float) -> None:
        """Load, unload, or reload: what an operator does, and what a busy server may say to it."""
        self._tally.counts["commands"] += 1
        model = TAKE_TURNS[int(draw * 100) % len(TAKE_TURNS)]
        if draw < 0.3:
            await self._post(client, f"/models/{model}/load", (200, 503))
        elif draw < 0.6:
            await self._post(client, f"/models/{model}/unload", (200, 409))
        elif draw < 0.8:  # another spec of the same name: the old one leaves when it is idle
            text = self._config_text.replace("max_queue = 200", f"max_queue = {int(draw * 1000)}")
            self._config.write_text(text)
            await self._post(client, "/models/reload", (200,))
        else:
            self._config.write_text(self._config_text + "\n[models.broken")
            await self._post(client, "/models/reload", (400,))
            self._config.write_text(self._config_text)

    async def _post(self, client: httpx2.AsyncClient, path: str, allowed: tuple[int, ...]) -> None:
        try:
            async with asyncio.timeout(self._plan.deadline_s):
                status = (await client.post(path)).status_code
        except TimeoutError:
            self._tally.hangs.append(Trouble("command", path, "no end"))
        else:
            if status not in allowed:
                reason = f"{status} instead of {allowed}"
                self._tally.unruly.append(Trouble("command", path, reason))

    async def _strike(self, client: httpx2.AsyncClient, signum: signal.Signals) -> None:
        fault = await strike(client, TAKE_TURNS, signum, stall_s=STALL_S)
        if fault:
            self._tally.faults.append(fault)

    async def _poll_health(self, client: httpx2.AsyncClient) -> None:
        while True:
            begin_s = time.perf_counter()
            status = (await client.get("/health")).status_code
            self._tally.health_s.append(time.perf_counter() - begin_s)
            if status != 200:
                self._tally.unruly.append(Trouble("GET", "/health", f"{status}"))
            await asyncio.sleep(_HEALTH_PAUSE_S)

    # -- rest -------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """The same state after every lap: one model, nobody served. Then look at what is held."""
        async with http_client(self._server.url) as client:  # the others' connections are closed
            for model in TAKE_TURNS:
                await self._post(client, f"/models/{model}/unload", (200, 409))
            end_s = time.perf_counter() + _LEFT_S
            while True:
                now_s = time.perf_counter()
                reading = await self.watch.read(now_s - self._begin_s, client)
                if now_s > end_s or not (reading.num_held or reading.zombies):
                    break
                await asyncio.sleep(0.2)
        self._tally.readings.append(reading)


async def _after(delay_s: float, act: Callable[..., Awaitable[None]], *arguments: object) -> None:
    await asyncio.sleep(delay_s)
    await act(*arguments)
