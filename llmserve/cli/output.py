"""What people see: a download's progress, as a bar on a terminal or lines in a log; tables."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from llmserve.config.units import human
from llmserve.hub.progress import Progress

LINES_PER_FILE = 10


def for_stream() -> Progress:
    """Whatever suits standard error."""
    from huggingface_hub import constants  # HF_HUB_DISABLE_PROGRESS_BARS

    bar = sys.stderr.isatty() and not constants.HF_HUB_DISABLE_PROGRESS_BARS
    return Bar() if bar else Lines()


class Bar:
    """tqdm's bar: done, size, speed and time left."""

    def __init__(self) -> None:
        self._bar: Any = None

    def note(self, text: str) -> None:
        click.echo(text, err=True)

    def start(self, label: str, total_bytes: int | None, done_bytes: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        self._bar = tqdm(
            desc=label,
            total=total_bytes,
            initial=done_bytes,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
        )

    def advance(self, num_bytes: int) -> None:
        self._bar.update(num_bytes)

    def finish(self) -> None:
        self._bar.close()


class Lines:
    """A line at the start, at every tenth of the file, and at nothing else."""

    def __init__(self) -> None:
        self._label = ""
        self._total_bytes: int | None = None
        self._done_bytes = 0

    def note(self, text: str) -> None:
        click.echo(text, err=True)

    def start(self, label: str, total_bytes: int | None, done_bytes: int) -> None:
        self._label, self._total_bytes, self._done_bytes = label, total_bytes, done_bytes
        size = human(total_bytes) if total_bytes else "unknown size"
        rest = f", going on at {human(done_bytes)}" if done_bytes else ""
        self.note(f"{label}: {size}{rest}")

    def advance(self, num_bytes: int) -> None:
        before = self._tenths()
        self._done_bytes += num_bytes
        if self._total_bytes and self._tenths() > before:
            percent = 100 * self._done_bytes // self._total_bytes
            self.note(f"{self._label}: {percent} % of {human(self._total_bytes)}")

    def finish(self) -> None: ...

    def _tenths(self) -> int:
        return LINES_PER_FILE * self._done_bytes // self._total_bytes if self._total_bytes else 0


def lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """`rows`, the first one the titles, as aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
