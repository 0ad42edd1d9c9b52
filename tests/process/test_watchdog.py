"""By a clock of the test's own."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmserve.process.watchdog import Watchdog


class FakeLoop:
    """One timer at most."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timer: tuple[float, Callable[[float], None], float] | None = None

    def time(self) -> float:
        return self.now_s

    def call_at(self, due_s: float, call: Callable[[float], None], argument: float) -> "FakeLoop":
        assert self.timer is None
        self.timer = (due_s, call, argument)
        return self

    def cancel(self) -> None:
        self.timer = None

    def advance(self, seconds: float) -> None:
        """Timers that fall due meanwhile fire in time."""
        end_s = self.now_s + seconds
        while self.timer and self.timer[0] <= end_s:
            (due_s, call, argument), self.timer = self.timer, None
            self.now_s = max(self.now_s, due_s)
            call(argument)
        self.now_s = end_s

    def jump(self, seconds: float) -> None:
        """As if everything had been stopped for so long."""
        self.now_s += seconds
        self.advance(0)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    loop = FakeLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def watchdog(**options: Any) -> tuple[Watchdog, list[str]]:
    barks: list[str] = []
    return Watchdog(10.0, lambda: barks.append("stall"), **options), barks


def test_work_without_a_sign(loop: FakeLoop) -> None:
    dog, barks = watchdog()
    loop.advance(100)
    dog.begin()
    loop.advance(9.9)
    assert not barks
    loop.advance(0.1)
    assert barks == ["stall"]
    assert loop.timer is None


def test_signs_put_it_off(loop: FakeLoop) -> None:
    dog, barks = watchdog()
    dog.begin()
    for _ in range(20):
        loop.advance(9)
        dog.sign()
    assert not barks
    loop.advance(10)
    assert barks


def test_without_work_there_is_nothing_to_show(loop: FakeLoop) -> None:
    dog, barks = watchdog()
    dog.begin()
    dog.begin()
    dog.end()
    dog.end()
    loop.advance(100)
    assert not barks
    assert loop.timer is None, "an idle model has no timer"
    dog.begin()
    loop.advance(9)
    assert not barks, "new work has all of the time"
    loop.advance(1)
    assert barks


def test_who_was_stopped_itself_blames_nobody(loop: FakeLoop) -> None:
    dog, barks = watchdog()
    dog.begin()
    loop.jump(500)
    assert not barks
    loop.advance(9.9)
    assert not barks
    loop.advance(0.2)
    assert barks


def test_a_hidden_sign(loop: FakeLoop) -> None:
    moves = iter([True, True, False])
    dog, barks = watchdog(has_moved=lambda: next(moves))
    dog.begin()
    loop.advance(29)
    assert not barks
    loop.advance(1)
    assert barks


def test_closed(loop: FakeLoop) -> None:
    dog, barks = watchdog()
    dog.begin()
    dog.close()
    loop.advance(100)
    assert not barks
