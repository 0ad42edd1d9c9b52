"""What an answer must match -> core: OpenAI's fields, and those of llama-server and vLLM."""

import json

import msgspec
from msgspec import Raw

from llmserve.api.openai.schemas import GenerationRequest, StructuredOutputs
from llmserve.core import Constraint
from llmserve.engine.structured.gbnf import syntax_of
from llmserve.errors import InvalidRequestError


def structured_constraint(
    wire: GenerationRequest, response_format: Constraint | None = None
) -> Constraint | None:
    """The one constraint of a request. Raises `InvalidRequestError` if there are several."""
    found = [] if response_format is None else [response_format]
    if wire.grammar:  # llama-server's default is ""
        found.append(Constraint(syntax_of(wire.grammar), wire.grammar, "grammar"))
    if wire.structured_outputs is not None:
        found += _constraints(wire.structured_outputs)
    if len(found) > 1:
        names = " and ".join(each.field or "response_format" for each in found)
        raise InvalidRequestError(
            f"{names} are given; an answer can have one of them", param=found[1].field
        )
    return found[0] if found else None


def _constraints(wire: StructuredOutputs) -> list[Constraint]:
    path = "structured_outputs"
    found = []
    if text := _schema_text(wire):
        found.append(Constraint("json_schema", text, f"{path}.json"))
    if wire.json_object:
        found.append(Constraint("json", field=f"{path}.json_object"))
    if wire.regex is not None:
        found.append(Constraint("regex", wire.regex, f"{path}.regex"))
    if wire.choice is not None:
        words = " | ".join(json.dumps(word, ensure_ascii=False) for word in wire.choice)
        # One terminal: of alternatives in a rule the parser would follow all at once.
        found.append(Constraint("lark", f"start: WORD\nWORD: {words}", f"{path}.choice"))
    if wire.grammar is not None:
        found.append(Constraint(syntax_of(wire.grammar), wire.grammar, f"{path}.grammar"))
    return found


def _schema_text(wire: StructuredOutputs) -> str | None:
    """The schema as it was sent, or the text that was sent as a string."""
    path = "structured_outputs.json"
    try:
        text = bytes(wire.json).decode()
        if text.startswith('"'):
            text = msgspec.json.decode(text, type=str)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:  # it was not read so far
        raise InvalidRequestError(f"{path} is not valid text: {error}", param=path) from error
    return None if text in ("", "null") else text


def format_constraint(kind: str, schema: Raw, *, path: str) -> Constraint | None:
    """Of a `text`, `json_object` or `json_schema` format; an absent schema is any JSON object.

    `path` is the schema's, for the `InvalidRequestError` about one that is no object.
    """
    text = object_text(schema, path=path)
    match kind:
        case "text":
            return None
        case "json_schema" if text:
            return Constraint("json_schema", text)
        case _:
            return Constraint("json")


def object_text(raw: Raw, *, path: str) -> str | None:
    """The JSON text of an object, as it was sent: Python's types do not hold all of it.

    None if it is absent or null. Raises `InvalidRequestError` for anything else than an object.
    """
    try:
        text = bytes(raw).decode()
    except UnicodeDecodeError as error:  # it was not read so far
        raise InvalidRequestError(f"{path} is not valid UTF-8: {error}", param=path) from error
    if text in ("", "null"):
        return None
    if not text.startswith("{"):
        raise InvalidRequestError(f"{path} is {text[:80]}; it must be an object", param=path)
    return text
