"""The format that an answer must have, under the names that chats and responses share -> core."""

from msgspec import Raw

from llmserve.core import Constraint
from llmserve.errors import InvalidRequestError


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
    except UnicodeDecodeError as error:  # nobody has read it so far
        raise InvalidRequestError(f"{path} is not valid UTF-8: {error}", param=path) from error
    if text in ("", "null"):
        return None
    if not text.startswith("{"):
        raise InvalidRequestError(f"{path} is {text[:80]}; it must be an object", param=path)
    return text
