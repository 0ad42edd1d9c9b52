"""Bytes <-> wire Structs: the one place that knows msgspec's errors."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct
from starlette.responses import Response

from llmserve.errors import InvalidRequestError

T = TypeVar("T")
Schema = dict[str, Any]


class UnknownFieldError(InvalidRequestError):
    """The body has a field that the dialect does not have."""


class MissingFieldError(InvalidRequestError):
    """The body lacks a field that it must have."""


class UnknownKindError(InvalidRequestError):
    """A part of the body is of a `type` that the dialect does not have, or we do not support."""


_MAX_SHOWN = 80  # characters of a wrong value in a message
_MAX_SEARCHED = 256 << 10  # bytes of a body: a million things in a larger one hold up the streams


def decode_body(body: bytes | Raw, wire_type: type[T], *, at: str = "") -> T:
    """`body` as `wire_type`, or an `InvalidRequestError` naming field, value and allowed range.

    `at` is the path of a part that is decoded by itself.
    """
    try:
        return msgspec.json.decode(body, type=wire_type)
    except msgspec.ValidationError as error:
        raise _explain(str(error), bytes(body), wire_type, at) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequestError("the body is nested too deeply") from error


def json_response(body: Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


_NO_REASONS: Mapping[str, str] = {}


class _Kind(Struct):
    type: str | None = None


def decode_kind(
    body: Raw,
    kinds: Mapping[str | None, type[T]],
    *,
    at: str,
    reasons: Mapping[str, str] = _NO_REASONS,
) -> T:
    """A part of a body, whose `type` says which of `kinds` it is. Raises `UnknownKindError`.

    `reasons` says of types that are not supported why, or what to do instead.
    """
    kind = decode_body(body, _Kind, at=at).type
    if kind not in kinds:
        known = ", ".join(str(kind) for kind in kinds if kind)
        why = reasons.get(kind or "", f"the types are: {known}")
        raise UnknownKindError(
            f"{at} is of type {_shown(kind)}, which is not supported; {why}", param=f"{at}.type"
        )
    return decode_body(body, kinds[kind], at=at)


def _explain(message: str, body: bytes, wire_type: type[object], at: str) -> InvalidRequestError:
    what, is_key, inner = _split(message)
    path = _join(at, inner)
    if unknown := re.search(r"unknown field `(.*)`", what, re.DOTALL):
        return _unknown_field(clipped(unknown[1]), path, _schema_at(inner, wire_type))
    if missing := re.search(r"missing required field `(.*)`", what):
        field = _join(path, missing[1])
        return MissingFieldError(f"{field} is missing", param=field)
    if is_key:
        return InvalidRequestError(f"a key of {path} is wrong: {what}", param=path)
    value = "wrong"
    try:
        if len(body) <= _MAX_SEARCHED:
            value = _shown(_value_at(inner, msgspec.json.decode(body)))
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, RecursionError):
        pass  # msgspec stops at the first fault: a later one, or a repeated key, can spoil the rest
    allowed = _describe(_schema_at(inner, wire_type), _definitions(wire_type))
    return InvalidRequestError(
        f"{path or 'the body'} is {value}; it must be {allowed}", param=path or None
    )


def _split(message: str) -> tuple[str, bool, str]:
    """msgspec's message -> what is wrong, whether with a key, and the path ("" for the root).

    The end is matched, because an unknown field's name can hold anything.
    """
    match = re.fullmatch(r"(.*) - at `(key` in `)?\$\.?([^`]*)`", message, re.DOTALL)
    return (match[1], bool(match[2]), match[3]) if match else (message, False, "")


def _unknown_field(name: str, path: str, schema: Schema) -> InvalidRequestError:
    known = list(schema.get("properties", ()))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the fields are: {', '.join(known)}"
    field = _join(path, name)
    return UnknownFieldError(f"there is no field {field}; {hint}", param=field)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name and not name.startswith("[") else path + name


def _steps(path: str) -> list[str]:
    """`messages[0].content` -> ["messages", "[0]", "content"]."""
    return re.findall(r"\[[^\]]*\]|[^.\[\]]+", path)


def _value_at(path: str, value: Any) -> Any:
    """What the body has at `path`; LookupError for a dict's `[...]`, which names no key."""
    for step in _steps(path):
        index = step.strip("[]")
        value = value[int(index)] if index.isdecimal() and isinstance(value, list) else value[step]
    return value


def _shown(value: Any) -> str:
    return clipped(msgspec.json.encode(value).decode())


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
