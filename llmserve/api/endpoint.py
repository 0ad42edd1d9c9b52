"""What a route is, said once, beside its handler: routing, access, errors and documents read it.

A new route is one `@endpoint(…)` on its handler and its name in the `Dialect` of its package.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import Scope

from llmserve.api.http.auth import Level
from llmserve.api.http.errors import Describe, describe

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

BODY = (400, 408, 413)  # the errors of a route that reads a body,
MODEL = (404, 503)  # of one that needs a model,
GENERATION = (*BODY, *MODEL, 429, 502, 504)  # and of one that lets it write


class Endpoint(Struct, frozen=True, kw_only=True):
    """`body`, `answer` and `events` are wire types, or a text: a media type, an event's data."""

    method: str
    path: str  # as starlette has it
    handler: Handler
    level: Level = Level.KEY
    summary: str
    tag: str
    query: tuple[str, ...] = ()  # names of optional texts
    body: Any = None
    example: Any = None  # of a body
    answer: Any = None
    events: tuple[Any, ...] = ()  # of a stream, which is given if the body's `stream` is true
    items: dict[str, tuple[Any, ...]] = {}  # of arrays of the body that are decoded one by one
    errors: tuple[int, ...] = ()  # beside 500 and those of API keys
    is_probe: bool = False  # asked every few seconds: logged at debug, not traced
    is_documented: bool = True  # in /openapi.json


def endpoint(method: str, path: str, **facts: Any) -> Callable[[Handler], Endpoint]:
    """Makes an `Endpoint` of a handler; `facts` are its fields."""
    return lambda handler: Endpoint(method=method, path=path, handler=handler, **facts)


class Dialect(Struct, frozen=True):
    """Routes whose errors are told in the same words."""

    endpoints: tuple[Endpoint, ...]
    describe_error: Describe = describe
    prefix: str | None = None  # of paths that are the dialect's although no route has them


class Endpoints:
    """The one table of what this server answers."""

    def __init__(self, dialects: Iterable[Dialect]) -> None:
        self.dialects = tuple(dialects)
        self.all = tuple(each for dialect in self.dialects for each in dialect.endpoints)
        self._describe = {
            each.path: dialect.describe_error
            for dialect in self.dialects
            for each in dialect.endpoints
        }
        self._fixed: dict[str, list[Endpoint]] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        for each in self.all:
            if "{" in each.path:
                self._patterns.append((_whole(each.path), each))
            else:
                self._fixed.setdefault(each.path, []).append(each)

    def routes(self) -> list[Route]:
        """For starlette, in the order of the table: the first that fits is taken."""
        routes = []
        for each in self.all:
            route = Route(each.path, each.handler, methods=[each.method])
            route.path_regex = _whole(each.path)
            routes.append(route)
        return routes

    def at(self, path: str) -> list[Endpoint]:
        """Those of every method that `path` leads to."""
        if path in self._fixed:
            return self._fixed[path]
        return [each for pattern, each in self._patterns if pattern.match(path)]

    def level(self, scope: Scope) -> Level:
        """What a request asks for; what is in no table needs a key."""
        found = self.at(scope["path"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        levels = [each.level for each in found if each.method == method]
        return (levels or [max((each.level for each in found), default=Level.KEY)])[0]

    def is_probe(self, path: str) -> bool:
        return any(each.is_probe for each in self._fixed.get(path, ()))

    def describe_for(self, path: str) -> Describe:
        """How the errors of `path` are told."""
        for each in self.at(path):
            return self._describe[each.path]
        for dialect in self.dialects:
            if dialect.prefix and path.startswith(dialect.prefix):
                return dialect.describe_error
        return describe


def _whole(path: str) -> re.Pattern[str]:
    """Starlette's pattern, whose "$" lets a line's end pass: /metrics%0a is no path here."""
    pattern, _, _ = compile_path(path)
    return re.compile(pattern.pattern.removesuffix("$") + r"\Z")
