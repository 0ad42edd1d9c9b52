"""Qwen3-Coder: arguments are written one by one."""

from llmserve.chat.tools.formats.model import START, Format, Kind, State, Writing

QWEN_CODER = Format(
    "qwen-coder",
    Writing(
        "<tool_call>\n<function=",
        ">\n",
        "</function>\n</tool_call>",
        trigger="<tool_call>",
        between="\n",
        arguments="parameters",
    ),
    {
        "opening": State(Kind.EDGE, {"<function=": "name"}),
        "name": State(Kind.NAME, {">": "parameters"}),
        "parameters": State(Kind.PARAMETERS, {"<parameter=": "key", "</function>": "closing"}),
        "key": State(Kind.KEY, {">": "value"}),
        "value": State(Kind.VALUE, {"</parameter>": "parameters"}),
        "closing": State(Kind.EDGE, {"</tool_call>": START, "<tool_call>": "opening"}),
    },
    marks=("<tool_call>", "<function=", "<parameter="),
    foreign_marks=("<seed:tool_call>",),
    triggers={"<tool_call>": "opening", "<function=": "name"},
)
