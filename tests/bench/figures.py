"""Figures with their targets, and how they are printed."""

import os
import platform
import subprocess
from pathlib import Path

import msgspec
from msgspec import Struct


class Figure(Struct):
    """One line of the table. `reach` is the target, where there is one: "<= 3" or ">= 0.9"."""

    name: str
    value: float
    unit: str = ""
    reach: str = ""

    @property
    def verdict(self) -> str:
        if not self.reach:
            return ""
        sign, bound = self.reach.split()
        is_met = self.value <= float(bound) if sign == "<=" else self.value >= float(bound)
        return "met" if is_met else "MISSED"


def percentile(values: list[float], percent: int) -> float:
    """The value that `percent` of 100 are below."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def render(figures: list[Figure], *, as_json: bool) -> str:
    """All figures of one run, with the machine they were taken on."""
    if as_json:
        result = {"machine": _machine(), "figures": figures}
        return msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    lines = [_machine(), "", "| figure | measured | reach | |", "|---|---|---|---|"]
    for figure in figures:
        is_count = figure.value == int(figure.value)
        num_digits = 0 if is_count or figure.value >= 10 else 2
        value = f"{figure.value:.{num_digits}f} {figure.unit}".strip()
        lines.append(f"| {figure.name} | {value} | {figure.reach} | {figure.verdict} |")
    return "\n".join(lines)


def _machine() -> str:
    """CPU, cores and commit: what a figure means nothing without."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return f"{cpu}, {os.cpu_count()} cores, commit {commit.stdout.strip() or 'unknown'}"
