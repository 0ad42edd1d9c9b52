"""GET /openapi.json: the OpenAPI 3.1 document, made of the routes and their wire types.

Only the summaries are written by hand: schemas are msgspec's, descriptions the types' docstrings.
"""

import asyncio
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import llmserve
from llmserve.api.endpoint import Operation
from llmserve.api.http.auth import Level, level_of
from llmserve.api.http.errors import ErrorEnvelope

Json = dict[str, Any]

_JSON = "application/json"
_EVENTS = "text/event-stream"
# Of two types with the same name msgspec gives the whole path; their dialect is enough.
_PATH = re.compile(rb"\bllmserve\.(?:api\.(?:\w+\.)*?)?(\w+)\.(?:\w+\.)?(?=[A-Z])")
_HEAD = {
    "openapi": "3.1.0",
    "info": {
        "title": "llmserve",
        "version": llmserve.__version__,
        "description": "A CPU-first local inference server. A field that is null is as good as left"
        " out; one that is not known is refused by its name.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
# A server without keys asks for none, and the document is the same on every server.
_ANY_SCHEME: list[Json] = [{}, *({name: []} for name in _SCHEMES)]
_KEY_ERRORS = {Level.OPEN: (), Level.KEY: (401,), Level.ADMIN: (401,)}


class Document:
    """Made when it is first asked for: most servers never are."""

    def __init__(self, routes: Sequence[BaseRoute], operations: Mapping[str, Operation]) -> None:
        self._routes = routes
        self._operations = operations

    @functools.cached_property
    def encoded(self) -> bytes:
        document = build_document(self._routes, self._operations)
        return _PATH.sub(rb"\1.", msgspec.json.encode(document))


async def openapi(request: Request) -> Response:
    document: Document = request.app.state.document
    encoded = await asyncio.to_thread(getattr, document, "encoded")  # tens of milliseconds, once
    return Response(encoded, media_type=_JSON)


def build_document(routes: Iterable[BaseRoute], operations: Mapping[str, Operation]) -> Json:
    """Of the routes that are in the schema; `operations` has each by its path, spelled as there."""
    shown = [route for route in routes if isinstance(route, Route) and route.include_in_schema]
    types = list(dict.fromkeys(t for route in shown for t in _types(operations[route.path])))
    refs, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(types, refs, strict=True))
    for route in shown:
        _fill_items(operations[route.path], schemas, components)
    paths = {_path(route): _path_item(route, operations[route.path], schemas) for route in shown}
    return {
        **_HEAD,
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _types(operation: Operation) -> list[Any]:
    types = [operation.body, operation.answer, *operation.events, ErrorEnvelope]
    types += [item for group in operation.items.values() for item in group]
    return [each for each in types if each is not None and not isinstance(each, str)]


def _fill_items(operation: Operation, schemas: Mapping[Any, Json], components: Json) -> None:
    """Say what is in the arrays of a body that msgspec only looks through."""
    if not operation.items:
        return
    properties = components[operation.body.__name__]["properties"]
    for name, group in operation.items.items():
        for option in properties[name]["anyOf"]:
            if option.get("type") == "array":
                option["items"] = {"anyOf": [schemas[item] for item in group]}


def _path(route: Route) -> str:
    return re.sub(r":\w+}", "}", route.path)


def _path_item(route: Route, operation: Operation, schemas: Mapping[Any, Json]) -> Json:
    (method,) = (route.methods or set()) - {"HEAD"}
    level = level_of(_path(route))
    errors = {*operation.errors, *_KEY_ERRORS[level], 403, 500}  # 403: foreign hosts and pages
    if level is Level.KEY and method == "POST":
        errors.add(429)
    item: Json = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{_path(route)}").strip("_"),
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": [] if level is Level.OPEN else _ANY_SCHEME,
        "responses": _responses(operation, errors, schemas),
    }
    parameters = [_parameter(name, "path") for name in route.param_convertors]
    parameters += [_parameter(name, "query") for name in operation.query]
    if parameters:
        item["parameters"] = parameters
    if operation.body is not None:
        content = {_JSON: {"schema": schemas[operation.body], "example": operation.example}}
        item["requestBody"] = {"required": True, "content": content}
    return {method.lower(): item}


def _parameter(name: str, place: str) -> Json:
    """All are names of models."""
    is_path = place == "path"
    schema = {"type": "string"}
    return {"name": name, "in": place, "required": is_path, "schema": schema, "example": "default"}


def _responses(operation: Operation, errors: Iterable[int], schemas: Mapping[Any, Json]) -> Json:
    if isinstance(operation.answer, str):
        answer: Json = {operation.answer: {"schema": {"type": "string"}}}
    else:
        answer = {_JSON: {"schema": schemas[operation.answer]}}
    if operation.events:
        answer[_EVENTS] = {"schema": _event(operation.events, schemas)}
    problems = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {_JSON: {"schema": schemas[ErrorEnvelope]}},
        }
        for status in sorted(errors)
    }
    return {"200": {"description": operation.summary, "content": answer}, **problems}


def _event(events: Sequence[Any], schemas: Mapping[Any, Json]) -> Json:
    """One event of a stream; OpenAPI has no words for the whole of it before 3.2."""
    content = [schemas[event] for event in events if not isinstance(event, str)]
    data: list[Json] = [{"const": event} for event in events if isinstance(event, str)]
    data.append({"contentMediaType": _JSON, "contentSchema": {"anyOf": content}})
    return {
        "description": "An event of the stream, which is given if `stream` is true.",
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"type": "string", "anyOf": data}},
        "required": ["data"],
    }
