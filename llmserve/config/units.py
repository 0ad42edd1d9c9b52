"""Values that models.toml writes in a way of its own: "6GiB", "10m", names of hosts, headers."""

import re

_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_DURATIONS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_HOST_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\s]+")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?) *([A-Za-z]+)")


class Size(int):
    """Bytes."""

    @classmethod
    def parse(cls, text: object) -> "Size":
        """`"6GiB"`. Raises ValueError that says what is expected."""
        match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
        if not match or match[2].upper() not in _SIZES:
            raise ValueError(
                f"{text!r} is not a valid size; write a number and a unit, such as '6GiB'"
            )
        return cls(float(match[1]) * _SIZES[match[2].upper()])


class Duration(float):
    """Seconds."""

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """`"10m"`. Raises ValueError that says what is expected."""
        match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
        if not match or match[2].lower() not in _DURATIONS:
            raise ValueError(
                f"{text!r} is not a valid duration; write a number and a unit, such as '10m'"
            )
        return cls(float(match[1]) * _DURATIONS[match[2].lower()])


class HostName(str):
    """The name of a host, in lower case; `*.domain`: all below that; `*`: any."""

    @classmethod
    def parse(cls, text: object) -> "HostName":
        """`"llm.example"`. Raises ValueError that says what is expected."""
        name = text.lower().removesuffix(".") if isinstance(text, str) else ""
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(
                f"{text!r} is not a valid host name; write it without scheme, port and path,"
                " such as 'llm.example' or '*.example'"
            )
        return cls(name)


class Origin(str):
    """Where a page comes from, as browsers write it; `*`: anywhere."""

    @classmethod
    def parse(cls, text: object) -> "Origin":
        """`"https://app.example"`. Raises ValueError that says what is expected."""
        origin = text.lower() if isinstance(text, str) else ""
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{text!r} is not a valid origin; write scheme and host, and the port if it is not"
                " the scheme's own, such as 'https://app.example' or 'http://localhost:3000'"
            )
        return cls(origin)


class Headers(tuple[tuple[str, str], ...]):
    """HTTP headers, in the order of their table. A tuple, so that a spec can be hashed."""

    @classmethod
    def parse(cls, table: object) -> "Headers":
        """`{"x-team" = "a"}`. Raises ValueError that says what is expected."""
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            raise ValueError("Expected a table of strings, such as { x-team = 'a' }")
        return cls(table.items())


def human(size_bytes: int) -> str:
    """`size_bytes` in decimal units, as disks and the hub count them: "98 MB", "4.7 GB"."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"
    return f"{size / 1000:.1f} TB"
