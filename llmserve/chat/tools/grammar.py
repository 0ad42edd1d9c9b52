"""Tools -> a grammar of the answers that may call them, in llguidance's Lark.

With `auto` any text may come first; from the trigger on, it must become calls. What is thought is
not in the grammar: the engine asks it about nothing else. Markers that are control tokens stand in
a grammar as their ids, because as text they could be written without being meant.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from llmserve.chat.tools.formats.model import Format
from llmserve.chat.tools.schemas import Schema, argument_schema, properties, resolve, types_of
from llmserve.core import Tool, ToolUse
from llmserve.errors import InvalidRequestError

END = json.dumps("\n</parameter>\n")


def call_grammar(
    use: ToolUse,
    written: Format,
    controls: Mapping[str, int],
    *,
    options: Mapping[str, Any],
    text_schema: str | None = None,
) -> str:
    """`controls` are the markers that are control tokens, `options` llguidance's for a schema.

    An answer without calls must match `text_schema`, if there is one. The arguments of tool i are
    the rule `args_i`. Raises `InvalidRequestError` for what the model's format cannot express.
    """
    rules = _Rules(written, controls, options)
    tools = [tool for tool in use.tools if use.name in (None, tool.name)]
    more = use.parallel and use.name is None and written.writing.most != 1
    rules.add_tails((i, tool) for i, tool in enumerate(use.tools) if tool in tools)
    if written.has_channels:
        return rules.with_channels(use.choice == "required", text_schema)
    return rules.of_text(use.choice == "required", text_schema, more=more)


class _Rules:
    """Collects the rules of one grammar."""

    def __init__(
        self, written: Format, controls: Mapping[str, int], options: Mapping[str, Any]
    ) -> None:
        self._written = written
        self._writing = written.writing
        self._controls = controls
        self._options = options
        self._lines = ["%llguidance {}", "TEXT: /(?s:.*)/", r"GAP: /\n{1,2}/"]

    def add_tails(self, tools: Iterable[tuple[int, Tool]]) -> None:
        """`tail`: a call from its name on."""
        names = []
        for index, tool in tools:
            names.append(f"tail_{index}")
            begin = self._literal(tool.name + self._writing.before_arguments)
            self._lines.append(
                f"tail_{index}: {begin} args_{index} {self._literal(self._writing.after)}"
            )
            self._lines.append(f"args_{index}: {self._arguments(index, tool)}")
        self._lines.append(f"tail: {' | '.join(names)}")

    def _arguments(self, index: int, tool: Tool) -> str:
        field = f"tools[{index}].function.parameters"
        schema = argument_schema(tool.parameters, field)
        if self._writing.arguments == "json":
            return self.json(schema)
        return parameter_rule(schema, field, self)

    def of_text(self, is_required: bool, text_schema: str | None, *, more: bool) -> str:
        writing = self._writing
        first = self._literal((writing.begin + writing.before_name).removeprefix(writing.trigger))
        again = f"({self._literal(writing.between + writing.before_name)} tail)*" if more else ""
        calls = f"{first} tail {again} {self._literal(writing.end)}"
        trigger = self._literal(writing.trigger)
        if is_required:
            return self._done(f"GAP? {trigger} {calls}")
        if text_schema is not None:
            if not trigger:
                raise InvalidRequestError(
                    "response_format does not go with tools here: this model writes calls as JSON,"
                    " and answers could not be told from them; use one or the other, or tool_choice"
                    " 'required'",
                    param="response_format",
                )
            return self._done(f"GAP? ({trigger} {calls} | {self.json(json.loads(text_schema))})")
        if not trigger:
            tags = [self._literal(m) + "?" for m in self._written.triggers if m in self._controls]
            self._lines.append(r"PLAIN: /\s*[^{\s](?s:.*)/")
            return self._done(f"PLAIN? | GAP? {' '.join(tags)} {calls}")
        if writing.trigger in self._controls:
            return self._done(f"TEXT ({trigger} {calls})?")
        self._lines.append(f"head[lazy]: TEXT {trigger}")
        return self._done(f"TEXT | head {calls}")

    def with_channels(self, is_required: bool, text_schema: str | None) -> str:
        """gpt-oss. The thought itself is left out, with the <|end|> behind it."""
        again = self._literal("<|start|>assistant")
        text = "TEXT" if text_schema is None else self.json(json.loads(text_schema))
        self._lines += [
            f"thought: {self._literal('<|channel|>analysis<|message|>')} {again}",
            f"preamble: {self._literal('<|channel|>commentary<|message|>')} said {again}",
            f"call: {self._literal(self._writing.before_name)} tail",
            f"final: {self._literal('<|channel|>final<|message|>')} {text}",
        ]
        end = self._literal("<|end|>")
        lazy = "<|end|>" not in self._controls
        self._lines.append(f"said[lazy]: TEXT {end}" if lazy else f"said: TEXT {end}")
        return self._done(f"(thought | preamble)* {'call' if is_required else '(call | final)'}")

    def _done(self, start: str) -> str:
        return "\n".join([*self._lines, f"start: {start}", ""])

    def bare_string(self, bounds: str) -> str:
        name = "raw" + re.sub(r"\W", "_", bounds)
        rule = rf"{name}[lazy]: /(?s:.{bounds})\n<\/parameter>\n/"
        if rule not in self._lines:
            self._lines.append(rule)
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        own = schema.get("x-guidance")
        guidance = {**(own if isinstance(own, dict) else {}), **self._options}
        return f"%json {json.dumps({**schema, 'x-guidance': guidance})}"

    def _literal(self, text: str) -> str:
        """`text` as the sequence of its control tokens and of what is between them."""
        marks = "|".join(map(re.escape, sorted(self._controls, key=len, reverse=True)))
        parts = re.split(f"({marks})", text) if marks else [text]
        return " ".join(
            f"<[{self._controls[part]}]>" if part in self._controls else json.dumps(part)
            for part in parts
            if part
        )


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
