"""Llama 3.1 and later: calls are bare JSON."""

from llmserve.chat.tools.formats.model import Format, Kind, State, Writing

LLAMA3 = Format(
    "llama3",
    Writing('{"name": "', '", "parameters": ', "}", trigger="", between="; "),
    {
        "object": State(Kind.OBJECT, then="after"),
        "after": State(Kind.EDGE, {";": "after", "{": "object"}),
    },
    marks=("<|start_header_id|>", "ipython", '"parameters": '),
    triggers={"<|python_tag|>": "object"},
    at_start={"{": "object"},
)
