"""What parsers find in an answer, put together again."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from llmserve.chat.tools.parser import Parser, Segment
from llmserve.core import Delta, ReasoningDelta, ToolCallDelta


class Understood(NamedTuple):
    text: str
    reasoning: str
    calls: list[tuple[str, str]]


def run(parser: Parser, pieces: Sequence[str]) -> list[Segment]:
    return [segment for piece in pieces for segment in parser.push(piece)] + parser.flush()


def understand(segments: Sequence[Segment]) -> Understood:
    text = reasoning = ""
    names: list[str] = []
    arguments: list[str] = []
    for _, part in segments:
        match part:
            case Delta(more):
                assert more
                text += more
            case ReasoningDelta(more):
                assert more
                reasoning += more
            case ToolCallDelta(index, more, id, name):
                if name is not None:
                    assert index == len(names)
                    assert id is not None
                    assert re.fullmatch(r"call_[a-zA-Z0-9]{24}", id)
                    names.append(name)
                    arguments.append("")
                else:
                    assert id is None
                assert index == len(names) - 1
                arguments[index] += more
    return Understood(text, reasoning, list(zip(names, arguments, strict=True)))
