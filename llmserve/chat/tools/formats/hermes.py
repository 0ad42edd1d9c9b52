"""Hermes 2 and 3, Qwen 2.5 and 3, and models that have learned no format."""

from msgspec.structs import replace

from llmserve.chat.tools.formats.model import START, Format, Kind, State, Writing

_HERMES_STATES = {
    "object": State(Kind.OBJECT, then="closing"),
    "closing": State(Kind.EDGE, {"</tool_call>": START, "<tool_call>": "object"}),
}
HERMES = Format(
    "hermes",
    Writing(
        '<tool_call>\n{"name": "',
        '", "arguments": ',
        "}\n</tool_call>",
        trigger="<tool_call>",
        between="\n",
    ),
    _HERMES_STATES,
    marks=("<tool_call>", "arguments"),
    foreign_marks=("<arg_key>", "<function="),
    triggers={"<tool_call>": "object"},
)
# For models that have learned none.
GENERIC = replace(HERMES, name="generic", marks=(), foreign_marks=())
