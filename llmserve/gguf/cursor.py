"""A bounded forward cursor over a binary file of little-endian integers and sized strings.

Invariant: nothing is read, allocated or looped over before its length is checked against what is
left of the file and against a cap, so that neither memory nor time grows with what a file claims.
The file is read, never mapped: a file that shrinks meanwhile is a short read, not a SIGBUS.
"""

import struct
from typing import BinaryIO, Final

from llmserve.errors import ModelFileError, sanitized

MAX_STRINGS: Final = 1 << 22  # walked over in one file: each costs a step
MAX_STRINGS_BYTES: Final = 512 << 20  # walked over in one file
MAX_KEPT_BYTES: Final = 8 << 20  # all names and strings of one file that stay in memory

_WINDOW_BYTES: Final = 256 << 10
_MAX_WHAT_LEN: Final = 200  # a key may be 65,535 bytes long
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class Cursor:
    """Reads forward through an open file of `size` bytes; `path` is for messages."""

    def __init__(self, file: BinaryIO, path: str, size: int) -> None:
        self.size = size
        self.offset = 0
        self._file = file
        self._path = path
        self._window = b""
        self._window_offset = 0
        self._keepable_bytes = MAX_KEPT_BYTES
        self._walkable_strings = MAX_STRINGS
        self._walkable_bytes = MAX_STRINGS_BYTES

    @property
    def remaining(self) -> int:
        return self.size - self.offset

    def error(
        self, what: str, expected: str, found: object, *, at: int | None = None
    ) -> ModelFileError:
        at = self.offset if at is None else at
        if len(what) > _MAX_WHAT_LEN:
            what = what[:_MAX_WHAT_LEN] + "…"
        reason = sanitized(f"{what} at byte {at}: expected {expected}, found {found}")
        return ModelFileError(f"{self._path}: {reason}")

    def check(self, num_bytes: int, what: str) -> None:
        if num_bytes > self.remaining:
            found = f"{self.remaining} before the end of the file (truncated?)"
            raise self.error(what, f"{num_bytes} more bytes", found)

    def take(self, num_bytes: int, what: str) -> bytes:
        self.check(num_bytes, what)
        self._fill(num_bytes, what)
        start = self.offset - self._window_offset
        self.offset += num_bytes
        return self._window[start : start + num_bytes]

    def skip(self, num_bytes: int, what: str) -> None:
        self.check(num_bytes, what)
        self.offset += num_bytes

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str, limit: int, min_bytes: int) -> int:
        """A count of things of at least `min_bytes` each, which must fit in what is left."""
        at = self.offset
        count = self.u64(what)
        if count > limit:
            raise self.error(what, f"at most {limit}", count, at=at)
        if count * min_bytes > self.remaining:
            raise self.error(what, f"what fits in the {self.remaining} bytes left", count, at=at)
        return count

    def name(self, what: str, limit: int) -> str:
        """A key or a tensor's name: not empty, UTF-8, and always kept."""
        at = self.offset
        length = self.count(f"length of {what}", limit, 1)
        if length == 0:
            raise self.error(f"length of {what}", "at least 1", 0, at=at)
        if not self.keep(length):
            raise self.error(what, f"at most {MAX_KEPT_BYTES} bytes of names", "more", at=at)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(what, "UTF-8", error.reason, at=at + 8) from error

    def keep(self, num_bytes: int) -> bool:
        """Whether a value of this size may stay in memory; the budget is the whole file's."""
        if num_bytes > self._keepable_bytes:
            return False
        self._keepable_bytes -= num_bytes
        return True

    def skip_strings(self, count: int, what: str) -> None:
        """Walk `count` strings, checking each length against the end of the file."""
        start = self.offset
        self._walkable_strings -= count
        if self._walkable_strings < 0:
            raise self.error(what, f"at most {MAX_STRINGS} strings in all arrays", "more")
        while count > 0:
            self.check(8 * count, what)
            self._fill(8, what)
            window, base = self._window, self._window_offset
            position, end = self.offset - base, len(window) - 8
            unpack = _U64.unpack_from
            # The hot loop: stay inside the window and leave every check to its border.
            while count > 0 and position <= end:
                position += 8 + unpack(window, position)[0]
                count -= 1
            self.offset = base + position
            if self.offset > self.size:
                past = self.offset - self.size
                raise self.error(
                    what, "to end inside the file", f"{past} bytes past it", at=self.size
                )
            if self.offset - start > self._walkable_bytes:
                limit = f"at most {MAX_STRINGS_BYTES} bytes of strings in all arrays"
                raise self.error(what, limit, "more", at=start)
        self._walkable_bytes -= self.offset - start

    def _fill(self, num_bytes: int, what: str) -> None:
        start = self.offset - self._window_offset
        if start >= 0 and start + num_bytes <= len(self._window):
            return
        self._file.seek(self.offset)
        self._window = self._file.read(max(num_bytes, _WINDOW_BYTES))
        self._window_offset = self.offset
        if len(self._window) < num_bytes:  # the file shrank after it was opened
            raise self.error(what, f"{num_bytes} more bytes", len(self._window))
