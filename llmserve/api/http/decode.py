"""Bytes <-> wire Structs."""

import functools
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct
from starlette.responses import Response

from llmserve.errors import InvalidRequestError
from llmserve.wire.validation import clipped, explain, value_at

T = TypeVar("T")


class UnknownKindError(InvalidRequestError):
    """A part of the body is of a `type` that the dialect does not have, or we do not support."""


_MAX_SEARCHED = 256 << 10  # bytes of a body: a million things in a larger one hold up the streams


def decode_body(body: bytes | Raw, wire_type: type[T], *, at: str = "") -> T:
    """`body` as `wire_type`, or an `InvalidRequestError` naming field, value and allowed range.

    `at` is the path of a part that is decoded by itself.
    """
    try:
        return msgspec.json.decode(body, type=wire_type)
    except msgspec.ValidationError as error:
        found = functools.partial(_found, bytes(body))
        raise explain(str(error), wire_type, found, at=at) from error
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


def _found(body: bytes, path: str) -> str:
    """What `body` has at `path`, as far as that can be told."""
    try:
        if len(body) <= _MAX_SEARCHED:
            return _shown(value_at(path, msgspec.json.decode(body)))
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, RecursionError):
        pass  # msgspec stops at the first fault: a later one, or a repeated key, can spoil the rest
    return "wrong"


def _shown(value: object) -> str:
    return clipped(msgspec.json.encode(value).decode())
