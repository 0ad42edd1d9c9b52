"""How models write calls and thoughts: a table for each format, read by one parser.

A format is a set of states. Each says what its text is, and by which marker it is left for which
other; `parser.py` runs them. How a call is written as a whole is in `Writing`, of which the
grammars (`grammar.py`) and the prompts for models without tools (`chat/prompted_tools.py`) are
made.

Sources: the models' own chat templates, and the outputs that llama.cpp's `common/chat.cpp` and
vLLM's `tool_parsers` are tested with.
"""

from enum import Enum, auto
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

START = "start"  # where an answer begins, and where it is again after a thought or a call
TEXT = "text"
THOUGHT = "thought"


class Kind(Enum):
    """What the text of a state is."""

    EDGE = auto()  # whitespace up to a marker; anything else belongs to the state `then`
    TEXT = auto()  # for the user
    THOUGHT = auto()
    SKIP = auto()  # nothing that counts
    HEADER = auto()  # says what follows, by `routes`
    NAME = auto()  # of the tool; the call begins with the next state
    ARGUMENTS = auto()  # a JSON object, then the state `then`
    OBJECT = auto()  # a JSON object with the name and the arguments, then the state `then`
    PARAMETERS = auto()  # what is between arguments that are written one by one
    KEY = auto()  # the name of one of them
    VALUE = auto()  # its value: a string as it is, anything else as JSON


class State(Struct, frozen=True):
    """In one state no marker contains another, so that the first one in the text is the one."""

    kind: Kind
    exits: dict[str, str] = {}  # marker -> the next state; `{` is also the next state's first
    then: str = TEXT
    routes: tuple[tuple[str, str], ...] = ()  # pattern in the header (group 1: a name) -> state


class Writing(Struct, frozen=True):
    """Calls: `begin`, then each with `between` before the next, then `end`.

    A call: `before_name` NAME `before_arguments` ARGUMENTS `after`. The first one starts with
    `trigger`, which no text for the user has in it; "" means that calls come first in an answer.
    """

    before_name: str
    before_arguments: str
    after: str
    trigger: str
    begin: str = ""
    between: str = ""
    end: str = ""
    arguments: Literal["json", "parameters"] = "json"
    most: int | None = None  # calls in one answer


class Thinking(Struct, frozen=True):
    """Markers around a thought, at the start of an answer. The prompt may end with `open`."""

    open: str
    close: str


class Format(Struct, frozen=True):
    name: str
    writing: Writing
    states: dict[str, State]
    triggers: dict[str, str] = {}  # marker in a text -> the state of a call
    at_start: dict[str, str] = {}  # the same, only at the start of an answer
    extra_markers: tuple[str, ...] = ()  # in `writing`, in no exit
    short_ids: bool = False  # templates want ids of nine letters and digits
    has_channels: bool = False  # the states are everything, thoughts and texts too


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
    {"<tool_call>": "object"},
)
GENERIC = replace(HERMES, name="generic")  # for models that have learned none

LLAMA3 = Format(
    "llama3",
    Writing('{"name": "', '", "parameters": ', "}", trigger="", between="; "),
    {
        "object": State(Kind.OBJECT, then="after"),
        "after": State(Kind.EDGE, {";": "after", "{": "object"}),
    },
    {"<|python_tag|>": "object"},
    {"{": "object"},
)

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
    {"[TOOL_CALLS]": "calls"},
    short_ids=True,
)
MISTRAL = Format(
    "mistral",
    Writing("[TOOL_CALLS]", "[ARGS]", "", trigger="[TOOL_CALLS]"),
    _MISTRAL_STATES,
    {"[TOOL_CALLS]": "calls"},
    short_ids=True,
)

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
    {"<tool_call>": "opening", "<function=": "name"},
)

_CHANNEL_EXITS = dict.fromkeys(("<|end|>", "<|return|>", "<|call|>", "<|start|>"), START)
HARMONY = Format(  # gpt-oss; the prompt ends with <|start|>assistant
    "harmony",
    Writing(
        "<|channel|>commentary to=functions.",
        " <|constrain|>json<|message|>",
        "",
        trigger="<|channel|>",
        most=1,  # its <|call|> ends the generation
    ),
    {
        START: State(
            Kind.HEADER,
            {"<|message|>": TEXT},
            routes=((r"to=functions\.([a-zA-Z0-9_.-]+)", "arguments"), ("analysis", THOUGHT)),
        ),
        TEXT: State(Kind.TEXT, _CHANNEL_EXITS),
        THOUGHT: State(Kind.THOUGHT, _CHANNEL_EXITS),
        "arguments": State(Kind.ARGUMENTS, then="after"),
        "after": State(Kind.SKIP, {"<|start|>": START}),
    },
    extra_markers=("<|channel|>", "<|constrain|>"),
    has_channels=True,
)

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
    {"<｜tool▁calls▁begin｜>": "calls"},
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
    {"<｜tool▁calls▁begin｜>": "calls"},
)

FORMATS = {
    each.name: each
    for each in (
        HERMES,
        LLAMA3,
        MISTRAL_ARRAY,
        MISTRAL,
        QWEN_CODER,
        HARMONY,
        DEEPSEEK,
        DEEPSEEK_31,
        GENERIC,
    )
}
THINKING = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<seed:think>", "</seed:think>"),
)


def states_of(written: Format, thinking: Thinking | None, *, with_calls: bool) -> dict[str, State]:
    """All states of an answer. Without calls, what would be one is text."""
    if written.has_channels:
        return written.states if with_calls else _without_calls(written)
    triggers = written.triggers if with_calls else {}
    openers = {**triggers, **(written.at_start if with_calls else {})}
    states = {
        START: State(Kind.EDGE, {**openers, **({thinking.open: THOUGHT} if thinking else {})}),
        TEXT: State(Kind.TEXT, triggers),
        **(written.states if with_calls else {}),
    }
    if thinking:
        states[THOUGHT] = State(Kind.THOUGHT, {thinking.close: START})
    return states


def _without_calls(written: Format) -> dict[str, State]:
    start = written.states[START]
    routes = tuple(route for route in start.routes if route[1] in (TEXT, THOUGHT))
    return {**written.states, START: replace(start, routes=routes)}


def markers_of(written: Format, thinking: Thinking | None, *, with_calls: bool) -> list[str]:
    """Everything that can be a token of its own, which is invisible if it is a control token."""
    states = states_of(written, thinking, with_calls=with_calls).values()
    exits = [marker for state in states for marker in state.exits]
    return list(dict.fromkeys((*exits, *written.extra_markers)))
