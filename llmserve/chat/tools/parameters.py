"""The grammar of arguments that are written one by one, as Qwen3-Coder does."""

import json
import re
from typing import Any, Protocol

from llmserve.chat.tools.schemas import Schema, properties, resolve, types_of
from llmserve.errors import InvalidRequestError

END = json.dumps("\n</parameter>\n")


class Rules(Protocol):
    """The names of rules in the grammar that this becomes a part of."""

    def json(self, schema: Schema) -> str:
        """Of JSON that matches."""

    def bare_string(self, bounds: str) -> str:
        """Of a string as it is, with so many characters (as in a regex), and its END."""


def parameter_rule(schema: Schema, field: str, rules: Rules) -> str:
    """The body of a rule: the parameters in their order.

    Raises `InvalidRequestError` for schemas that this way to write arguments cannot keep to.
    """
    listed = properties(schema)
    required = schema.get("required")
    parts = []
    for name, each in listed.items():
        where = f"{field}.properties.{name}"
        if not re.fullmatch(r"[^<>\s]+", name):
            raise InvalidRequestError(f"{where}: this model cannot write such a name", param=where)
        value = _value(each, schema, where, rules)
        part = f"{json.dumps(f'<parameter={name}>' + chr(10))} {value}"
        is_required = isinstance(required, list) and name in required
        parts.append(part if is_required else f"({part})?")
    if not listed and schema.get("additionalProperties") is not False:
        any_value = rules.bare_string("*")
        parts.append(rf'("<parameter=" /[a-zA-Z0-9_.-]+/ ">\n" {any_value})*')
    return " ".join(parts) or '""'


def _value(schema: Any, root: Schema, where: str, rules: Rules) -> str:
    types = types_of(schema, root)
    plain = resolve(schema, root)
    if "string" not in types:
        definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return f"{rules.json({**definitions, **schema})} {END}"
    if types == {"string"} and isinstance(plain, dict):
        values = plain.get("enum", [plain["const"]] if "const" in plain else None)
        if isinstance(values, list) and values:
            return f"({' | '.join(json.dumps(str(v)) for v in values)}) {END}"
        if "pattern" in plain:
            raise InvalidRequestError(
                f"{where}.pattern cannot be enforced: this model writes strings without quotes;"
                " leave it out",
                param=f"{where}.pattern",
            )
        least, most = plain.get("minLength", 0), plain.get("maxLength", "")
        if isinstance(least, int) and (least or isinstance(most, int)):
            return rules.bare_string(f"{{{least},{most}}}")
    return rules.bare_string("*")
