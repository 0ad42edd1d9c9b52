"""Limits of control groups, in trees of files as the kernel writes them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.machine.cgroup import MemoryLimit, cpu_quota, memory_limits

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V1_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"


class Tree:
    """A root with the groups of one process."""

    def __init__(self, root: Path, groups: str, *mounts: str) -> None:
        self.root = root
        self.write("proc/self/cgroup", groups)
        self.write("proc/self/mountinfo", "\n".join([*mounts, "bad line", ""]))

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def memory_v2(self, folder: str, limit: object, used: int = 0, cache: int = 0) -> None:
        self.write(f"{folder}/memory.max", str(limit))
        self.write(f"{folder}/memory.current", str(used))
        self.write(f"{folder}/memory.stat", f"anon 5\ninactive_file {cache}")

    def memory_v1(self, folder: str, limit: int, used: int = 0, cache: int = 0) -> None:
        self.write(f"{folder}/memory.limit_in_bytes", str(limit))
        self.write(f"{folder}/memory.usage_in_bytes", str(used))
        self.write(f"{folder}/memory.stat", f"total_inactive_file {cache}")

    def cpu_v1(self, folder: str, quota: int, period: int = 100_000) -> None:
        self.write(f"{folder}/cpu.cfs_quota_us", str(quota))
        self.write(f"{folder}/cpu.cfs_period_us", str(period))

    @property
    def limits(self) -> list[int]:
        return [limit.limit_bytes for limit in memory_limits(self.root)]


def test_version_2_has_the_own_group_and_those_above_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/user.slice/app.service", V2)
    tree.memory_v2("sys/fs/cgroup/user.slice/app.service", "max")
    tree.memory_v2("sys/fs/cgroup/user.slice", 500, used=300, cache=200)
    tree.memory_v2("sys/fs/cgroup/other.slice", 1)
    assert memory_limits(tmp_path) == [MemoryLimit(500, 100)]
    assert memory_limits(tmp_path)[0].free_bytes == 400


def test_all_limits_on_the_way_count(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/a/b", V2)
    tree.memory_v2("sys/fs/cgroup/a/b", 700)
    tree.memory_v2("sys/fs/cgroup/a", 600)
    assert tree.limits == [700, 600]


def test_version_1_has_several_controllers_in_a_line(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/t\n4:memory:/t/u\n1:name=systemd:/x\n0::/y"
    tree = Tree(tmp_path, groups, V1_CPU, V1_MEMORY, HYBRID)
    tree.memory_v1("sys/fs/cgroup/memory/t/u", 2**63 - 4096)
    tree.memory_v1("sys/fs/cgroup/memory/t", 512, used=100, cache=40)
    tree.cpu_v1("sys/fs/cgroup/cpu,cpuacct/t", 150_000)
    tree.cpu_v1("sys/fs/cgroup/cpu,cpuacct", -1)
    assert memory_limits(tmp_path) == [MemoryLimit(512, 60)]
    assert cpu_quota(tmp_path) == 1.5


def test_hybrid_takes_the_version_that_has_the_controller(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "4:memory:/m\n0::/u", V1_MEMORY, HYBRID)
    tree.memory_v1("sys/fs/cgroup/memory/m", 512)
    tree.memory_v2("sys/fs/cgroup/unified/u", 1)
    tree.write("sys/fs/cgroup/unified/u/cpu.max", "50000 100000")
    assert tree.limits == [512]
    assert cpu_quota(tmp_path) == 0.5


@pytest.mark.parametrize("group", ["/", "/../..", "/../other", "/docker/abc"])
def test_in_a_namespace_what_is_mounted_is_the_group(tmp_path: Path, group: str) -> None:
    mounted = "/" if group == "/" else "/somewhere"
    tree = Tree(tmp_path, f"0::{group}", V2.replace(" / ", f" {mounted} ", 1))
    tree.memory_v2("sys/fs/cgroup", 800)
    assert tree.limits == [800]


def test_a_subtree_may_be_what_is_mounted(tmp_path: Path) -> None:
    outer = V1_MEMORY.replace("/sys/fs/cgroup/memory", "/mnt/all")
    inner = V1_MEMORY.replace(" / ", " /docker/abc ", 1)
    tree = Tree(tmp_path, "4:memory:/docker/abc/in", outer, inner)
    tree.memory_v1("sys/fs/cgroup/memory/in", 300)
    tree.memory_v1("sys/fs/cgroup/memory", 400)
    assert tree.limits == [300, 400]


def test_a_bind_mount_of_the_own_group_hides_no_parent_that_can_be_seen(tmp_path: Path) -> None:
    inner = V1_MEMORY.replace(" / /sys/fs/cgroup/memory", " /a/b /mnt/own")
    tree = Tree(tmp_path, "4:memory:/a/b", V1_MEMORY, inner)
    tree.memory_v1("mnt/own", 2**63 - 4096)
    tree.memory_v1("sys/fs/cgroup/memory/a/b", 2**63 - 4096)
    tree.memory_v1("sys/fs/cgroup/memory/a", 512)
    assert tree.limits == [512]


def test_version_1_tells_a_limit_above_a_namespace(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "4:memory:/", V1_MEMORY.replace(" / ", " /../.. ", 1), V1_MEMORY)
    tree.memory_v1("sys/fs/cgroup/memory", 2**63 - 4096, used=9)
    tree.write("sys/fs/cgroup/memory/memory.stat", "hierarchical_memory_limit 512")
    assert memory_limits(tmp_path) == [MemoryLimit(512, 9)]


def test_a_name_that_begins_alike_is_another_group(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/docker2/a", V2.replace(" / ", " /docker ", 1))
    tree.memory_v2("sys/fs/cgroup", 800)
    tree.memory_v2("sys/fs/cgroup/2/a", 1)
    assert tree.limits == [800]


def test_a_path_with_a_blank(tmp_path: Path) -> None:
    mount = V2.replace(" / /sys/fs/cgroup", r" / /my\040groups")
    tree = Tree(tmp_path, "0::/a b", mount)
    tree.memory_v2("my groups/a b", 77)
    assert tree.limits == [77]


def test_the_smallest_quota_counts(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/a/b", V2)
    tree.write("sys/fs/cgroup/a/b/cpu.max", "max 100000")
    assert cpu_quota(tmp_path) is None
    tree.write("sys/fs/cgroup/a/cpu.max", "200000 100000")
    assert cpu_quota(tmp_path) == 2
    tree.write("sys/fs/cgroup/a/b/cpu.max", "300000 100000")
    assert cpu_quota(tmp_path) == 2


def test_a_system_without_proc_has_no_limits(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == []
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize("text", ["", "-1", "99999999999999999999", "a lot", "12 34"])
def test_a_limit_that_is_none(tmp_path: Path, text: str) -> None:
    tree = Tree(tmp_path, "0::/", V2)
    tree.write("sys/fs/cgroup/memory.max", text)
    assert tree.limits == []


def test_what_must_not_be_read_is_no_limit(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/", V2)
    (tmp_path / "sys/fs/cgroup/memory.max").mkdir(parents=True)  # reading it fails, also for root
    tree.write("sys/fs/cgroup/cpu.max", "1000 0")
    assert tree.limits == []
    assert cpu_quota(tmp_path) is None


FILES: st.SearchStrategy[Mapping[str, bytes]] = st.fixed_dictionaries(
    {
        "proc/self/cgroup": st.binary(max_size=60) | st.just(b"4:memory:/a\n0::/a\n"),
        "proc/self/mountinfo": st.binary(max_size=80) | st.just(f"{V2}\n{V1_MEMORY}\n".encode()),
        "sys/fs/cgroup/memory.max": st.binary(max_size=9),
        "sys/fs/cgroup/cpu.max": st.binary(max_size=9),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": st.binary(max_size=9),
        "sys/fs/cgroup/memory/memory.stat": st.binary(max_size=30),
    }
)


@given(FILES)
def test_no_file_raises(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    root = tmp_path_factory.mktemp("tree")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    assert all(limit.limit_bytes >= 0 for limit in memory_limits(root))
    quota = cpu_quota(root)
    assert quota is None or quota > 0
