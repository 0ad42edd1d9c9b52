"""The source of a chat template -> the format in which its model writes calls and thoughts.

A template shows a model its own earlier calls, so it has the markers of the format. llama.cpp's
`common/chat.cpp` tells them apart in the same way. A new family is a file beside this one and a
place in `FORMATS`.

Sources of the formats: the models' own chat templates, and the outputs that llama.cpp's
`common/chat.cpp` and vLLM's `tool_parsers` are tested with.
"""

from llmserve.chat.tools.formats.deepseek import DEEPSEEK, DEEPSEEK_31
from llmserve.chat.tools.formats.harmony import HARMONY
from llmserve.chat.tools.formats.hermes import GENERIC, HERMES
from llmserve.chat.tools.formats.llama import LLAMA3
from llmserve.chat.tools.formats.mistral import MISTRAL, MISTRAL_ARRAY
from llmserve.chat.tools.formats.model import Format, Thinking
from llmserve.chat.tools.formats.qwen import QWEN_CODER

# The first whose marks fit is a template's; more than one can.
_BY_TEMPLATE = (
    HARMONY,
    QWEN_CODER,
    HERMES,
    MISTRAL,
    MISTRAL_ARRAY,
    DEEPSEEK,
    DEEPSEEK_31,
    LLAMA3,
)
FORMATS = {each.name: each for each in (*_BY_TEMPLATE, GENERIC)}
THINKING = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<seed:think>", "</seed:think>"),
)


def detect_format(source: str) -> Format | None:
    """None if the model has learned no calls, or writes them in a way that is not in the table."""
    for each in _BY_TEMPLATE:
        if all(mark in source for mark in each.marks) and not any(
            mark in source for mark in each.foreign_marks
        ):
            return each
    return None


def detect_thinking(source: str) -> Thinking | None:
    return next((pair for pair in THINKING if pair.close in source), None)
