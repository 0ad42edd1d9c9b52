"""JSON as text that comes in pieces: where a value ends, calls in it, arguments one by one."""

import json
from collections.abc import Mapping
from typing import Any

ValueTypes = Mapping[str, frozenset[str]]  # JSON types by parameter; one that is not there: any

_ANY = frozenset(["string", "any"])
_STRING = frozenset(["string"])


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


def read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a whole object in another order than usual."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):  # some models write JSON in JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        return None
    written = json.dumps(arguments or {}, ensure_ascii=False)
    if not is_unicode(written):
        written = json.dumps(arguments)
    return (name, written) if is_unicode(name) else None


def is_unicode(text: str) -> bool:
    """Whether it can be sent: JSON can escape half of a surrogate pair, UTF-8 has no such thing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_json(text: str, types: frozenset[str]) -> str:
    """A value that may be other than a string: JSON if it is of one of `types`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return quoted(text)
    fits = not isinstance(value, str) and ("any" in types or json_types(value) & types)
    return text if fits else quoted(text)


def json_types(value: Any) -> set[str]:
    """What a schema can call the type of a value."""
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case dict():
            return {"object"}
        case _:
            return {"null"}


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


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
