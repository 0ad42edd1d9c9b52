"""Where a JSON value ends in a text that comes in pieces."""


class JsonScan:
    """Counts brackets outside of strings; whether it is valid JSON is not its business."""

    __slots__ = ("_depth", "_in_string", "_is_escaped")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._is_escaped = False

    def feed(self, text: str, begin: int = 0) -> int | None:
        """The index behind the bracket that closes the outermost one, if it is in `text`.

        Looks at `text[begin:]` only, which must follow what was fed before.
        """
        for index in range(begin, len(text)):
            char = text[index]
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                if char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return index + 1
        return None
