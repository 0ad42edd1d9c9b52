"""The source of a chat template -> the format in which its model writes calls and thoughts.

A template shows a model its own earlier calls, so it has the markers of the format. llama.cpp's
`common/chat.cpp` tells them apart in the same way.
"""

from typing import NamedTuple

from llmserve.chat.tools.formats.table import (
    DEEPSEEK,
    DEEPSEEK_31,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARRAY,
    QWEN_CODER,
    THINKING,
    Format,
    Thinking,
)


class _Rule(NamedTuple):
    format: Format
    has: tuple[str, ...]  # all of these
    lacks: tuple[str, ...] = ()  # and none of these, which are of formats that we do not know


_RULES = (  # the first that fits
    _Rule(HARMONY, ("<|channel|>", "<|message|>")),
    _Rule(QWEN_CODER, ("<tool_call>", "<function=", "<parameter="), ("<seed:tool_call>",)),
    _Rule(HERMES, ("<tool_call>", "arguments"), ("<arg_key>", "<function=")),
    _Rule(MISTRAL, ("[TOOL_CALLS]", "[ARGS]")),
    _Rule(MISTRAL_ARRAY, ("[TOOL_CALLS]",)),
    _Rule(DEEPSEEK, ("<｜tool▁calls▁begin｜>", "```json")),
    _Rule(DEEPSEEK_31, ("<｜tool▁calls▁begin｜>",)),
    _Rule(LLAMA3, ("<|start_header_id|>", "ipython", '"parameters": ')),
)


def detect_format(source: str) -> Format | None:
    """None if the model has learned no calls, or writes them in a way that is not in the table."""
    for rule in _RULES:
        if all(m in source for m in rule.has) and not any(m in source for m in rule.lacks):
            return rule.format
    return None


def detect_thinking(source: str) -> Thinking | None:
    return next((pair for pair in THINKING if pair.close in source), None)
