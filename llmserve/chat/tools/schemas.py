"""What the JSON schema of a tool's arguments says about them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.chat.tools.json_scan import json_types
from llmserve.core import Tool
from llmserve.errors import InvalidRequestError

ANY_OBJECT = '{"type": "object"}'

Schema = Mapping[str, Any]

_COMPOSED = ("allOf", "anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties")


def argument_schema(parameters: str | None, field: str) -> dict[str, Any]:
    """The schema that arguments must match: that of an object.

    Without parameters there are no arguments. A plain object has no others than it lists, unless
    it says so: it is what a function is called with. Raises `InvalidRequestError` for anything
    that is no object.
    """
    schema: dict[str, Any] = json.loads(parameters) if parameters is not None else {}
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise InvalidRequestError(
            f"{field}.type is {json.dumps(schema['type'])[:80]}; it must be 'object'",
            param=f"{field}.type",
        )
    is_open = "additionalProperties" in schema or any(key in schema for key in _COMPOSED)
    if "properties" in schema and not is_open:
        schema["additionalProperties"] = False
    return {**schema, "type": "object"}


def value_types(tools: Sequence[Tool]) -> dict[str, dict[str, frozenset[str]]]:
    """Of all parameters of all tools, for formats that write strings as they are."""
    found = {}
    for tool in tools:
        schema = json.loads(tool.parameters or "{}")
        listed = properties(schema)
        found[tool.name] = {name: types_of(each, schema) for name, each in listed.items()}
    return found


def properties(schema: Schema) -> Schema:
    """Those that it lists; a schema that is wrong here is refused when it is compiled."""
    listed = schema.get("properties")
    return listed if isinstance(listed, dict) else {}


def types_of(schema: Any, root: Schema) -> frozenset[str]:
    """The JSON types that a value can have; `any` is among them where nothing is said."""
    schema = resolve(schema, root)
    match schema:
        case {"type": str(only)}:
            types = {only}
        case {"type": list(several)}:
            types = {each for each in several if isinstance(each, str)}
        case {"enum": list(values)}:
            types = set[str]().union(*map(json_types, values))
        case {"const": value}:
            types = json_types(value)
        case {"anyOf": list(options)} | {"oneOf": list(options)}:
            types = set[str]().union(*(types_of(option, root) for option in options))
        case _:
            types = {"string", "any"}
    return frozenset(types | {"integer"} if "number" in types else types)


def resolve(schema: Any, root: Schema) -> Any:
    """What a reference at its top points at, if it can be found."""
    seen = 0
    while isinstance(schema, dict) and isinstance(ref := schema.get("$ref"), str) and seen < 32:
        node: Any = root
        for step in ref.removeprefix("#").split("/")[1:]:
            node = node.get(step) if isinstance(node, dict) else None
        schema, seen = node, seen + 1
    return schema
