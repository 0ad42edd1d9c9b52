"""What a route takes and gives, said once, beside the route; `api/openapi.py` publishes it."""

from typing import Any

from msgspec import Struct

BODY = (400, 408, 413)  # the errors of a route that reads a body,
MODEL = (404, 503)  # of one that needs a model,
GENERATION = (*BODY, *MODEL, 429, 502, 504)  # and of one that lets it write


class Operation(Struct, frozen=True, kw_only=True):
    """`body`, `answer` and `events` are wire types, or a text: a media type, an event's data."""

    summary: str
    tag: str
    query: tuple[str, ...] = ()  # names of optional texts
    body: Any = None
    example: Any = None  # of a body
    answer: Any
    events: tuple[Any, ...] = ()  # of a stream, which is given if the body's `stream` is true
    items: dict[str, tuple[Any, ...]] = {}  # of arrays of the body that are decoded one by one
    errors: tuple[int, ...] = ()  # beside 500 and those of API keys
