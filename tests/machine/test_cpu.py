"""How many threads compute where nobody says."""

import os

import psutil
import pytest

from llmserve.machine import cgroup, cpu
from llmserve.machine.cpu import choose_threads, default_threads


@pytest.mark.parametrize(
    ("cores", "allowed", "quota", "count", "word"),
    [
        (8, 16, None, 8, "physical cores"),
        (8, None, None, 8, "physical cores"),  # macOS has no affinity
        (8, 2, None, 2, "may run on"),
        (8, 16, 3.9, 3, "quota"),
        (8, 16, 0.5, 1, "quota"),
        (8, 1, 4.0, 1, "may run on"),
    ],
)
def test_the_tightest_limit_counts_and_is_told(
    cores: int, allowed: int | None, quota: float | None, count: int, word: str
) -> None:
    chosen = choose_threads(cores, allowed, quota)
    assert chosen.num == count
    assert word in chosen.reason


def test_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= default_threads().num <= (os.cpu_count() or 1)
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 1.2)
    assert default_threads().num == 1


def test_where_cores_are_not_told_there_is_one_for_each_logical(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(logical: bool) -> int:
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(psutil, "cpu_count", fail)
    assert cpu.num_cores() == os.cpu_count()
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert cpu.num_cores() == os.cpu_count()


def test_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu.num_allowed() is None
    assert default_threads().num >= 1
