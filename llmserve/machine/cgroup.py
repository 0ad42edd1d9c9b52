"""The limits of this process's control groups, of versions 1 and 2, and both at once (hybrid).

A limit holds for a group and for all below it, so each is looked for from the own group up to the
root of its mount. Sources: cgroups(7), the kernel's `cgroup-v2.rst`, proc(5) for `mountinfo`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")  # of all files; tests have a tree of their own
_NO_LIMIT = 2**60  # version 1 says that there is none with a number above it


class MemoryLimit(NamedTuple):
    """One group with a limit. Its page cache is not used: the kernel drops that before it kills."""

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def memory_limits(root: Path | None = None) -> list[MemoryLimit]:
    """Of the own group and those above it, as far as they have one."""
    found = (_memory_limit(folder) for folder in _folders("memory", root or ROOT))
    return [limit for limit in found if limit]


def cpu_quota(root: Path | None = None) -> float | None:
    """Cores' worth of time that this process may use; None: as much as there is."""
    found = (_cpu_quota(folder) for folder in _folders("cpu", root or ROOT))
    return min((quota for quota in found if quota), default=None)


def _memory_limit(folder: Path) -> MemoryLimit | None:
    for limit_file, used_file, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit_file), _number(folder / used_file)
        if limit is None:
            continue
        counts = _counts(folder / "memory.stat")
        # Version 1 tells the tightest limit above, also of groups that a namespace hides.
        limit = min(limit, counts.get("hierarchical_memory_limit", limit))
        if limit < _NO_LIMIT:
            return MemoryLimit(limit, max(0, (used or 0) - counts.get(cache_key, 0)))
    return None


def _cpu_quota(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us")
        period = _text(folder / "cpu.cfs_period_us")
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None
    return cores if cores > 0 else None  # version 1 says -1


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Of the own group and those above it, with the files of `controller`."""
    found = _own_group(controller, root)
    if found is None:
        return
    group, is_v1 = found
    mounts = _mounts(controller if is_v1 else None, root)
    if not mounts:
        return
    # Every mount that holds the group: of one that was bind-mounted the parents cannot be seen.
    # Where none does, as in some namespaces, what is mounted is all that can be seen of the group.
    holding = [
        (point, inside)
        for mounted, point in mounts
        if (inside := _inside(group, mounted)) is not None
    ]
    for point, inside in holding or [(mounts[0][1], ())]:
        top = root / point.lstrip("/")
        for depth in range(len(inside), -1, -1):
            yield top.joinpath(*inside[:depth])


def _own_group(controller: str, root: Path) -> tuple[str, bool] | None:
    """The path of the group that limits this process, and whether it is one of version 1."""
    unified = None
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controller in controllers.split(","):
            return group, True
        if number == "0" and not controllers:
            unified = group
    return None if unified is None else (unified, False)


def _mounts(controller: str | None, root: Path) -> list[tuple[str, str]]:
    """What is mounted where, of `controller`, or of version 2; the closest to a root last."""
    found = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        is_v1 = kind[0] == "cgroup" and controller in kind[2].split(",")
        if is_v1 if controller else kind[0] == "cgroup2":
            found.append((_unescaped(fields[3]), _unescaped(fields[4])))
    return sorted(found, key=lambda mount: -len(mount[0]))


def _inside(group: str, mounted: str) -> tuple[str, ...] | None:
    """The folders that lead from what is mounted to the group; None if it is not in there.

    Both are seen from the process's namespace, where `/..` is outside of it: the names of the
    folders from there to here are not told, so such a mount only shows its own root.
    """
    if ".." in group.split("/") or ".." in mounted.split("/"):
        return None
    top = mounted.rstrip("/")
    if group != top and not group.startswith(top + "/"):
        return None
    return tuple(part for part in group[len(top) :].split("/") if part)


def _unescaped(path: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(code, character)
    return path


def _text(file: Path) -> str:
    """What is in it; "" if it is not there or not for us."""
    try:
        return file.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isascii() and text.isdigit() else None


def _counts(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
