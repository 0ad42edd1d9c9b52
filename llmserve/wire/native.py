"""What POST /inference and the library have in common -> core: defaults, and formats of answers."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from llmserve.core import DEFAULT_TEMPERATURE, Constraint, SamplingParams
from llmserve.engine.structured.gbnf import syntax_of
from llmserve.wire.fields import Grammar, JsonObject


class TextFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    pass


class JsonSchema(Struct, forbid_unknown_fields=True):
    schema: JsonObject  # engine/structured/compiler.py bounds it
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: Annotated[str, Meta(max_length=4096)] | None = None
    strict: bool | None = None  # it is enforced either way


class JsonSchemaFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


class RegexFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="regex"):
    regex: Grammar


class GrammarFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="grammar"):
    grammar: Grammar
    syntax: Literal["lark", "gbnf"] | None = None  # none: what it looks like


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat


def to_sampling(given: Mapping[str, Any]) -> SamplingParams:
    """Of fields with its names, and others. Not given, or None, is neutral, but the temperature."""
    names = SamplingParams.__struct_fields__
    chosen = {name: given[name] for name in names if given.get(name) is not None}
    return SamplingParams(**{"temperature": DEFAULT_TEMPERATURE, **chosen})


def to_constraint(wanted: ResponseFormat | None) -> Constraint | None:
    match wanted:
        case JsonObjectFormat():
            return Constraint("json")
        case JsonSchemaFormat(json_schema):
            return Constraint("json_schema", bytes(json_schema.schema).decode())
        case RegexFormat(regex):
            return Constraint("regex", regex)
        case GrammarFormat(grammar, syntax):
            return Constraint(syntax or syntax_of(grammar), grammar)
        case _:
            return None
