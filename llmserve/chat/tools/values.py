"""Arguments that are written one by one -> the text of a JSON object, as it comes."""

from collections.abc import Mapping

from llmserve.chat.tools.json_scan import as_json, quoted

ValueTypes = Mapping[str, frozenset[str]]  # JSON types by parameter; one that is not there: any

_ANY = frozenset(["string", "any"])
_STRING = frozenset(["string"])


class WrittenObject:
    """Each method returns what comes next of the object's text.

    Strings are written as they are, so only the types can tell them from other values; what can be
    nothing else comes as it is written, the rest when it is whole. A line break at either end of a
    value belongs to the format.
    """

    def __init__(self, types: ValueTypes) -> None:
        self._types = types
        self._value_types = _ANY
        self._held = ""  # a line break that may be the last, or a value that is not whole
        self._is_empty = True
        self._is_value_start = True

    def begin(self, name: str) -> str:
        """A value begins."""
        self._value_types = self._types.get(name, _ANY)
        self._held, self._is_value_start = "", True
        before = "{" if self._is_empty else ", "
        self._is_empty = False
        return f"{before}{quoted(name)}: " + ('"' if self._value_types == _STRING else "")

    def push(self, text: str) -> str:
        if self._is_value_start and text:
            text = text.removeprefix("\n")
            self._is_value_start = False
        self._held += text
        if self._value_types != _STRING:
            return ""
        safe = self._held.removesuffix("\n")
        self._held = self._held[len(safe) :]
        return quoted(safe)[1:-1]

    def end(self) -> str:
        """The value ends."""
        if self._value_types == _STRING:
            return '"'
        return as_json(self._held.removesuffix("\n"), self._value_types)

    def close(self) -> str:
        return "{}" if self._is_empty else "}"
