"""What models may take of what is there."""

import msgspec
import pytest

from llmserve.config.units import Size
from llmserve.machine import cgroup
from llmserve.machine.cgroup import MemoryLimit
from llmserve.pool.memory.budget import MemoryBudget

GB = 10**9


def limit(monkeypatch: pytest.MonkeyPatch, used_bytes: int) -> None:
    monkeypatch.setattr(cgroup, "memory_limits", lambda: [MemoryLimit(GB // 2, used_bytes)])


def test_auto_is_a_share_of_what_is_free_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0)
    assert MemoryBudget().total_bytes == GB // 2 * 0.8


def test_the_budget_shrinks_when_others_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0)
    memory = MemoryBudget(400_000_000)
    assert memory(0) == 400_000_000
    limit(monkeypatch, 450_000_000)  # 100 MB of it are ours
    assert memory(100_000_000) == 150_000_000


def test_a_size_of_the_config_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0)
    budget = MemoryBudget(Size.parse("4 MiB"))
    assert msgspec.json.encode(budget(0)) == b"4194304"
