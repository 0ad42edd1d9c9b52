"""The one place that knows msgspec's errors: each becomes one that names field, value and range.

Pure. What is sent as JSON is decoded by `api/http/decode.py`; what Python gives is converted here.
"""

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from llmserve.errors import InvalidRequestError

T = TypeVar("T")
Schema = dict[str, Any]

_MAX_SHOWN = 80  # characters of a wrong value in a message


class UnknownFieldError(InvalidRequestError):
    """There is a field that is not known."""


class MissingFieldError(InvalidRequestError):
    """A field that there must be is not there."""


def convert(given: object, wire_type: type[T], *, at: str = "") -> T:
    """`given`, in Python's own types, as if it had been sent. Raises `InvalidRequestError`s.

    `at` is the path of a part that is converted by itself.
    """
    try:
        return msgspec.json.decode(_encode(given, at), type=wire_type)
    except msgspec.ValidationError as error:
        raise explain(str(error), wire_type, functools.partial(_show, given), at=at) from error


_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)


def _encode(given: object, at: str) -> bytes:
    try:
        return msgspec.json.encode(given)
    except _UNENCODABLE as error:
        parts = given if isinstance(given, dict) else {}
        path = _join(at, next((name for name in parts if not _is_encodable(parts[name])), ""))
        raise InvalidRequestError(
            f"{path or 'it'} cannot be written as JSON: {error}", param=path or None
        ) from error


def _is_encodable(value: object) -> bool:
    try:
        msgspec.json.encode(value)
    except _UNENCODABLE:
        return False
    return True


def _show(given: object, path: str) -> str:
    try:
        return clipped(repr(value_at(path, given)))
    except (LookupError, TypeError):
        return "wrong"


def explain(
    message: str, wire_type: type[object], show: Callable[[str], str], *, at: str = ""
) -> InvalidRequestError:
    """msgspec's `message` in our words; `show(path)` is how the value there reads."""
    what, is_key, inner = _split(message)
    path = _join(at, inner)
    if unknown := re.search(r"unknown field `(.*)`", what, re.DOTALL):
        known = list(_schema_at(inner, wire_type).get("properties", ()))
        return unknown_field(clipped(unknown[1]), known, at=path)
    if missing := re.search(r"missing required field `(.*)`", what):
        field = _join(path, missing[1])
        return MissingFieldError(f"{field} is missing", param=field)
    if is_key:
        return InvalidRequestError(f"a key of {path} is wrong: {what}", param=path)
    allowed = _describe(_schema_at(inner, wire_type), _definitions(wire_type))
    return InvalidRequestError(
        f"{path or 'the body'} is {show(inner)}; it must be {allowed}", param=path or None
    )


def _split(message: str) -> tuple[str, bool, str]:
    """msgspec's message -> what is wrong, whether with a key, and the path ("" for the root).

    The end is matched, because an unknown field's name can hold anything.
    """
    match = re.fullmatch(r"(.*) - at `(key` in `)?\$\.?([^`]*)`", message, re.DOTALL)
    return (match[1], bool(match[2]), match[3]) if match else (message, False, "")


def unknown_field(name: str, known: Sequence[str], *, at: str = "") -> UnknownFieldError:
    """Of what has the fields `known`, at the path `at`."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the fields are: {', '.join(known)}"
    field = _join(at, name)
    return UnknownFieldError(f"there is no field {field}; {hint}", param=field)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name and not name.startswith("[") else path + name


def _steps(path: str) -> list[str]:
    """`messages[0].content` -> ["messages", "[0]", "content"]."""
    return re.findall(r"\[[^\]]*\]|[^.\[\]]+", path)


def value_at(path: str, value: Any) -> Any:
    """What is at msgspec's `path`; LookupError for a dict's `[...]`, which names no key."""
    for step in _steps(path):
        index = step.strip("[]")
        is_index = index.isdecimal() and isinstance(value, list | tuple)
        value = value[int(index) if is_index else step]
    return value


def clipped(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


# -- the allowed values, read from the JSON schema of the wire type ------------------------------

_made: dict[type[object], Schema] = {}  # making one takes milliseconds


def _definitions(wire_type: type[object]) -> Schema:
    if wire_type not in _made:
        _, _made[wire_type] = msgspec.json.schema_components([wire_type], ref_template="{name}")
    return _made[wire_type]


def _schema_at(path: str, wire_type: type[object]) -> Schema:
    definitions = _definitions(wire_type)
    schema: Schema = definitions[wire_type.__name__]
    for step in _steps(path):
        inner = [_inner(option, step) for option in _options(schema, definitions)]
        if found := [s for s in inner if s]:
            schema = {"anyOf": found}
    (schema, *others) = _options(schema, definitions)
    return {"anyOf": [schema, *others]} if others else schema


def _inner(schema: Schema, step: str) -> Schema | None:
    if step.startswith("["):
        return schema.get("items") or schema.get("additionalProperties")
    return schema.get("properties", {}).get(step)  # type: ignore[no-any-return]


def _options(schema: Schema, definitions: Schema) -> list[Schema]:
    """The alternatives of a schema but null, with references resolved."""
    if "$ref" in schema:
        return [definitions[schema["$ref"]]]
    if "anyOf" in schema:
        return [option for s in schema["anyOf"] for option in _options(s, definitions)]
    return [] if schema.get("type") == "null" else [schema]


def _describe(schema: Schema, definitions: Schema) -> str:
    """In words: «a number from 0 to 2», «a string of 1 to 1024 characters or an array …»."""
    words = (_describe_one(s, definitions) for s in _options(schema, definitions))
    return " or ".join(dict.fromkeys(words))


def _describe_one(schema: Schema, definitions: Schema) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "integer":
            return "an integer" + _range(schema, "minimum", "maximum", "")
        case "number":
            return "a number" + _range(schema, "minimum", "maximum", "")
        case "string":
            return "a string" + _range(schema, "minLength", "maxLength", " characters")
        case "array":
            items = _describe(schema["items"], definitions)
            return f"an array{_range(schema, 'minItems', 'maxItems', ' items')}, each {items}"
        case _:
            return "an object" + _range(schema, "minProperties", "maxProperties", " entries")


def _range(schema: Schema, low: str, high: str, unit: str) -> str:
    least, most = schema.get(low), schema.get(high)
    above = schema.get("exclusiveMinimum")
    if above is not None:
        return f" above {above}" + (f" and at most {most}" if most is not None else "")
    if least is not None and most is not None:
        return f" {'of' if unit else 'from'} {least} to {most}{unit}"
    if least is not None:
        return f" of at least {least}{unit}"
    return f" of at most {most}{unit}" if most is not None else ""
