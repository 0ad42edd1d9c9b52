"""GET /openapi.json: the OpenAPI 3.1 document, made of the table of endpoints.

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

import llmserve
from llmserve.api.endpoint import Endpoint, endpoint
from llmserve.api.http.auth import Level
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

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints

    @functools.cached_property
    def encoded(self) -> bytes:
        document = build_document(self._endpoints)
        return _PATH.sub(rb"\1.", msgspec.json.encode(document))


@endpoint(
    "GET",
    "/openapi.json",
    level=Level.OPEN,
    summary="This document",
    tag="Operation",
    answer=dict[str, Any],
)
async def openapi(request: Request) -> Response:
    document: Document = request.app.state.document
    encoded = await asyncio.to_thread(getattr, document, "encoded")  # tens of milliseconds, once
    return Response(encoded, media_type=_JSON)


def build_document(endpoints: Iterable[Endpoint]) -> Json:
    """Of those that are documented."""
    shown = [each for each in endpoints if each.is_documented]
    types = list(dict.fromkeys(t for each in shown for t in _types(each)))
    refs, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(types, refs, strict=True))
    paths: Json = {}
    for each in shown:
        _fill_items(each, schemas, components)
        paths.setdefault(_path(each), {})[each.method.lower()] = _operation(each, schemas)
    return {
        **_HEAD,
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _types(each: Endpoint) -> list[Any]:
    types = [each.body, each.answer, *each.events, ErrorEnvelope]
    types += [item for group in each.items.values() for item in group]
    return [kind for kind in types if kind is not None and not isinstance(kind, str)]


def _fill_items(each: Endpoint, schemas: Mapping[Any, Json], components: Json) -> None:
    """Say what is in the arrays of a body that msgspec only looks through."""
    if not each.items:
        return
    properties = components[each.body.__name__]["properties"]
    for name, group in each.items.items():
        for option in properties[name]["anyOf"]:
            if option.get("type") == "array":
                option["items"] = {"anyOf": [schemas[item] for item in group]}


def _path(each: Endpoint) -> str:
    return re.sub(r":\w+}", "}", each.path)


def _operation(each: Endpoint, schemas: Mapping[Any, Json]) -> Json:
    path = _path(each)
    errors = {*each.errors, *_KEY_ERRORS[each.level], 403, 500}  # 403: foreign hosts and pages
    if each.level is Level.KEY and each.method == "POST":
        errors.add(429)
    item: Json = {
        "operationId": re.sub(r"\W+", "_", f"{each.method.lower()}{path}").strip("_"),
        "summary": each.summary,
        "tags": [each.tag],
        "security": [] if each.level is Level.OPEN else _ANY_SCHEME,
        "responses": _responses(each, errors, schemas),
    }
    parameters = [_parameter(name, "path") for name in re.findall(r"{(\w+)", path)]
    parameters += [_parameter(name, "query") for name in each.query]
    if parameters:
        item["parameters"] = parameters
    if each.body is not None:
        content = {_JSON: {"schema": schemas[each.body], "example": each.example}}
        item["requestBody"] = {"required": True, "content": content}
    return item


def _parameter(name: str, place: str) -> Json:
    """All are names of models."""
    is_path = place == "path"
    schema = {"type": "string"}
    return {"name": name, "in": place, "required": is_path, "schema": schema, "example": "default"}


def _responses(each: Endpoint, errors: Iterable[int], schemas: Mapping[Any, Json]) -> Json:
    if isinstance(each.answer, str):
        answer: Json = {each.answer: {"schema": {"type": "string"}}}
    else:
        answer = {_JSON: {"schema": schemas[each.answer]}}
    if each.events:
        answer[_EVENTS] = {"schema": _event(each.events, schemas)}
    problems = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "content": {_JSON: {"schema": schemas[ErrorEnvelope]}},
        }
        for status in sorted(errors)
    }
    return {"200": {"description": each.summary, "content": answer}, **problems}


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
