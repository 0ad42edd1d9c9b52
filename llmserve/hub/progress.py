"""How a download tells what it is doing: one small interface, and an implementation that is silent.

The command line draws a bar, a server would log; see `cli/output.py`.
"""

from typing import Protocol


class Progress(Protocol):
    """Called from the downloading thread, in this order: note*, (start, advance*, finish)*."""

    def note(self, text: str) -> None:
        """A decision or event worth a line."""

    def start(self, label: str, total_bytes: int | None, done_bytes: int) -> None:
        """One file begins; `done_bytes` of it were on disk already."""

    def advance(self, num_bytes: int) -> None:
        """More bytes arrived; negative when some have to be fetched again."""

    def finish(self) -> None:
        """The file ended, well or not."""


class Silent:
    """Tells nothing."""

    def note(self, text: str) -> None: ...
    def start(self, label: str, total_bytes: int | None, done_bytes: int) -> None: ...
    def advance(self, num_bytes: int) -> None: ...
    def finish(self) -> None: ...
