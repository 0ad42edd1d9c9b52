"""Mistral: an array until 2024, then a name and arguments for each call."""

from llmserve.chat.tools.formats.model import START, Format, Kind, State, Writing

_MISTRAL_STATES = {
    "calls": State(Kind.EDGE, {"[": "item", "{": "item"}, then="name"),
    "item": State(Kind.OBJECT, then="comma"),
    "comma": State(Kind.EDGE, {",": "item", "]": START}),
    "name": State(Kind.NAME, {"[ARGS]": "arguments", "[CALL_ID]": "id", "{": "arguments"}),
    "id": State(Kind.SKIP, {"[ARGS]": "arguments"}),
    "arguments": State(Kind.ARGUMENTS, then=START),
}
MISTRAL_ARRAY = Format(  # until 2024
    "mistral-array",
    Writing(
        '{"name": "',
        '", "arguments": ',
        "}",
        trigger="[TOOL_CALLS]",
        begin="[TOOL_CALLS][",
        between=", ",
        end="]",
    ),
    _MISTRAL_STATES,
    marks=("[TOOL_CALLS]",),
    triggers={"[TOOL_CALLS]": "calls"},
    short_ids=True,
)
MISTRAL = Format(
    "mistral",
    Writing("[TOOL_CALLS]", "[ARGS]", "", trigger="[TOOL_CALLS]"),
    _MISTRAL_STATES,
    marks=("[TOOL_CALLS]", "[ARGS]"),
    triggers={"[TOOL_CALLS]": "calls"},
    short_ids=True,
)
