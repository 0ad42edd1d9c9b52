"""Memory of the machine and of processes, also where half of it cannot be read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llmserve.machine import cgroup
from llmserve.machine.cgroup import MemoryLimit
from llmserve.machine.memory import available_bytes, process_bytes, read_bytes, total_bytes

GB = 10**9
LIMITS = [MemoryLimit(GB // 2, 100_000_000), MemoryLimit(GB // 4, 200_000_000)]


@pytest.fixture
def no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_limits", list)


@pytest.mark.usefixtures("no_groups")
def test_without_a_limit_the_machine_counts() -> None:
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.1)
    assert total_bytes() == psutil.virtual_memory().total


def test_the_tightest_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_limits", lambda: LIMITS)
    assert total_bytes() == GB // 4
    assert available_bytes() == 50_000_000


def test_a_group_over_its_limit_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_limits", lambda: [MemoryLimit(1000, 2000)])
    assert available_bytes() == 0


@pytest.mark.usefixtures("no_groups")
def test_where_meminfo_is_hidden_the_system_still_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    total = psutil.virtual_memory().total

    def fail() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    assert total_bytes() == total
    assert 0 < available_bytes() <= total


def test_processes() -> None:
    own = process_bytes(os.getpid())
    assert own is not None
    assert own > 10_000_000
    assert read_bytes(os.getpid()) is not None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert process_bytes(gone.pid) is None
    assert read_bytes(gone.pid) is None


PROBE = (
    "import os; from llmserve.machine import cpu, memory;"
    "memory.available_bytes(); memory.total_bytes(); memory.process_bytes(os.getpid());"
    "print(cpu.default_threads().num)"
)


def test_with_a_proc_of_processes_only() -> None:
    """As `hidepid` and `subset=pid` have it."""
    shell = f"mount -t proc -o subset=pid proc /proc && exec {sys.executable} -c '{PROBE}'"
    unshare = [shutil.which("unshare") or "unshare", "-m", "-p", "-f", "bash", "-c", shell]
    root = Path(__file__).parents[2]
    done = subprocess.run(unshare, cwd=root, capture_output=True, text=True, timeout=50)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"not permitted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
