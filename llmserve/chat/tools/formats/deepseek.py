"""DeepSeek V3, R1 and V3.1."""

from llmserve.chat.tools.formats.model import START, Format, Kind, State, Writing

_DEEPSEEK_CALLS = State(Kind.SKIP, {"<｜tool▁call▁begin｜>": "call", "<｜tool▁calls▁end｜>": START})
_DEEPSEEK_AFTER = State(Kind.SKIP, {"<｜tool▁call▁end｜>": "calls", "<｜tool▁calls▁end｜>": START})
DEEPSEEK = Format(  # V3, R1
    "deepseek",
    Writing(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        trigger="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁calls▁begin｜>",
        between="\n",
        end="<｜tool▁calls▁end｜>",
    ),
    {
        "calls": _DEEPSEEK_CALLS,
        "call": State(Kind.SKIP, {"<｜tool▁sep｜>": "name"}),
        "name": State(Kind.NAME, {"```json": "arguments"}),
        "arguments": State(Kind.ARGUMENTS, then="after"),
        "after": _DEEPSEEK_AFTER,
    },
    marks=("<｜tool▁calls▁begin｜>", "```json"),
    triggers={"<｜tool▁calls▁begin｜>": "calls"},
)
DEEPSEEK_31 = Format(
    "deepseek-3.1",
    Writing(
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        trigger="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁calls▁begin｜>",
        end="<｜tool▁calls▁end｜>",
    ),
    {
        "calls": _DEEPSEEK_CALLS,
        "call": State(Kind.NAME, {"<｜tool▁sep｜>": "arguments"}),
        "arguments": State(Kind.ARGUMENTS, then="after"),
        "after": _DEEPSEEK_AFTER,
    },
    marks=("<｜tool▁calls▁begin｜>",),
    triggers={"<｜tool▁calls▁begin｜>": "calls"},
)
