"""What the machine or its control group offers, read from files as the kernel writes them."""

from pathlib import Path

import msgspec
import psutil
import pytest

from llmserve.config.units import Size
from llmserve.pool.memory import budget
from llmserve.pool.memory.budget import MemoryBudget, available_bytes, machine_bytes

GB = 10**9


def write_cgroup_v2(root: Path, limit: str, used: int, cache: int) -> None:
    (root / "memory.max").write_text(f"{limit}\n")
    (root / "memory.current").write_text(f"{used}\n")
    (root / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def write_cgroup_v1(root: Path, limit: int, used: int, cache: int) -> None:
    folder = root / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"total_inactive_file {cache}\n")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(budget, "_CGROUP", tmp_path)
    return tmp_path


def test_without_a_limit_the_machine_counts(cgroup: Path) -> None:
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.1)
    write_cgroup_v2(cgroup, "max", 0, 0)
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_a_smaller_control_group_counts_and_its_page_cache_is_free(cgroup: Path) -> None:
    write_cgroup_v2(cgroup, str(GB // 2), 300_000_000, 200_000_000)
    assert available_bytes() == 400_000_000


def test_the_machine_is_no_larger_than_its_control_group(cgroup: Path) -> None:
    assert machine_bytes() == psutil.virtual_memory().total
    write_cgroup_v2(cgroup, str(GB // 2), 300_000_000, 0)
    assert machine_bytes() == GB // 2


def test_control_groups_of_version_1_count_too(cgroup: Path) -> None:
    write_cgroup_v1(cgroup, GB // 2, 300_000_000, 0)
    assert available_bytes() == 200_000_000


def test_version_1_says_no_limit_with_a_huge_number(cgroup: Path) -> None:
    write_cgroup_v1(cgroup, 2**63 - 4096, 0, 0)
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_a_group_over_its_limit_offers_nothing(cgroup: Path) -> None:
    write_cgroup_v2(cgroup, "1000", 2000, 0)
    assert available_bytes() == 0


def test_auto_is_a_share_of_what_is_free_at_the_start(cgroup: Path) -> None:
    write_cgroup_v2(cgroup, str(GB // 2), 0, 0)
    assert MemoryBudget().total_bytes == GB // 2 * 0.8


def test_the_budget_shrinks_when_others_take_memory(cgroup: Path) -> None:
    write_cgroup_v2(cgroup, str(GB // 2), 0, 0)
    memory = MemoryBudget(400_000_000)
    assert memory(0) == 400_000_000
    write_cgroup_v2(cgroup, str(GB // 2), 450_000_000, 0)  # 100 MB of it are ours
    assert memory(100_000_000) == 150_000_000


def test_a_size_of_the_config_can_be_shown(cgroup: Path) -> None:
    budget = MemoryBudget(Size.parse("4 MiB"))
    assert msgspec.json.encode(budget(0)) == b"4194304"
