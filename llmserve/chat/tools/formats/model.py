"""What a format of calls and thoughts is: states, read by one parser, and how a call is written.

A format is a set of states. Each says what its text is, and by which marker it is left for which
other; `chat/tools/parser.py` runs them. How a call is written as a whole is in `Writing`, of which
the grammars (`chat/tools/grammar.py`) and the prompts for models without tools
(`chat/prompted_tools.py`) are made.
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
    """A template whose source has all of `marks` and none of `foreign_marks` shows this format.

    Nothing is told by a format without marks.
    """

    name: str
    writing: Writing
    states: dict[str, State]
    marks: tuple[str, ...] = ()
    foreign_marks: tuple[str, ...] = ()  # of formats that we do not know
    triggers: dict[str, str] = {}  # marker in a text -> the state of a call
    at_start: dict[str, str] = {}  # the same, only at the start of an answer
    extra_markers: tuple[str, ...] = ()  # in `writing`, in no exit
    short_ids: bool = False  # templates want ids of nine letters and digits
    has_channels: bool = False  # the states are everything, thoughts and texts too


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
