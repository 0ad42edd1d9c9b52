"""The grammar of arguments that are written one by one, as Qwen3-Coder does."""

import json
import re
from collections.abc import Callable
from typing import Any

from llmserve.chat.formats.schemas import Schema, properties, resolve, types_of
from llmserve.errors import InvalidRequestError

END = json.dumps("\n</parameter>\n")
_LIMITS = ("pattern", "minLength", "maxLength")  # nothing can hold a bare string to these


def parameter_rule(schema: Schema, field: str, as_rule: Callable[[Schema], str]) -> str:
    """The body of a rule: the parameters in their order. `as_rule` makes one of a JSON schema.

    A bare string ends with the rule `raw`. Raises `InvalidRequestError` for schemas that this way
    to write arguments cannot keep to.
    """
    listed = properties(schema)
    required = schema.get("required")
    parts = []
    for name, each in listed.items():
        where = f"{field}.properties.{name}"
        if not re.fullmatch(r"[^<>\s]+", name):
            raise InvalidRequestError(f"{where}: this model cannot write such a name", param=where)
        value = _value(each, schema, where, as_rule)
        part = f"{json.dumps(f'<parameter={name}>' + chr(10))} {value}"
        is_required = isinstance(required, list) and name in required
        parts.append(part if is_required else f"({part})?")
    if not listed and schema.get("additionalProperties") is not False:
        parts.append(r'("<parameter=" /[a-zA-Z0-9_.-]+/ ">\n" raw)*')
    return " ".join(parts) or '""'


def _value(schema: Any, root: Schema, where: str, as_rule: Callable[[Schema], str]) -> str:
    types = types_of(schema, root)
    plain = resolve(schema, root)
    if "string" not in types:
        definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return f"{as_rule({**definitions, **schema})} {END}"
    if types == {"string"} and isinstance(plain, dict):
        values = plain.get("enum", [plain["const"]] if "const" in plain else None)
        if isinstance(values, list) and values:
            return f"({' | '.join(json.dumps(str(v)) for v in values)}) {END}"
        for keyword in _LIMITS:
            if keyword in plain:
                raise InvalidRequestError(
                    f"{where}.{keyword} cannot be enforced: this model writes strings without"
                    " quotes; leave it out",
                    param=f"{where}.{keyword}",
                )
    return "raw"
