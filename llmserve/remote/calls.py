"""Pieces of tool calls, as providers number and name them -> as core does."""

import secrets
from collections.abc import Iterator

from llmserve.core import ToolCallDelta
from llmserve.remote.errors import BrokenAnswerError


class CallPieces:
    """Of one answer."""

    def __init__(self) -> None:
        self._indexes: dict[int, int] = {}  # the provider's -> ours
        self._has_arguments: list[bool] = []

    @property
    def num_calls(self) -> int:
        return len(self._has_arguments)

    def add(
        self, index: int | None, call_id: str | None, name: str | None, arguments: str | None
    ) -> ToolCallDelta:
        """Raises `BrokenAnswerError` for a call without a name."""
        if index is None:  # Google's: every call in one piece, or a piece of the last one
            index = self.num_calls if name or not self.num_calls else self.num_calls - 1
        ours = self._indexes.get(index)
        if ours is not None:
            self._has_arguments[ours] |= bool(arguments)
            return ToolCallDelta(ours, arguments or "")
        if not name:
            raise BrokenAnswerError("sent a tool call without a name")
        ours = self._indexes[index] = self.num_calls
        self._has_arguments.append(bool(arguments))
        return ToolCallDelta(
            ours, arguments or "", call_id or f"call_{secrets.token_hex(12)}", name
        )

    def complete(self) -> Iterator[ToolCallDelta]:
        """What is missing at the end: a call without arguments has an empty object."""
        for index, has_arguments in enumerate(self._has_arguments):
            if not has_arguments:
                yield ToolCallDelta(index, "{}")
