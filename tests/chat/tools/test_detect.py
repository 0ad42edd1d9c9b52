"""Which format a template's source speaks of. The templates are in `tests/chat/templates.py`."""

import pytest

from llmserve.chat.tools.formats.detect import detect_format, detect_thinking
from tests.chat import templates


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (templates.QWEN3, "hermes"),
        (templates.HERMES2, "hermes"),
        (templates.LLAMA32, "llama3"),
        (templates.NEMO, "mistral-array"),
        (templates.SMALL32, "mistral"),
        (templates.QWEN3_CODER, "qwen-coder"),
        (templates.GPT_OSS, "harmony"),
        (templates.DEEPSEEK_R1, "deepseek"),
        (templates.DEEPSEEK_V31, "deepseek-3.1"),
        (templates.GLM, None),
        (templates.SEED, None),
        (templates.CHATML, None),
        ("", None),
    ],
)
def test_format(source: str, name: str | None) -> None:
    found = detect_format(source)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("source", "opening"),
    [
        (templates.QWEN3, "<think>"),
        (templates.DEEPSEEK_R1, "<think>"),
        (templates.SEED, "<seed:think>"),
        ("{{ '[THINK]' + message.thinking + '[/THINK]' }}", "[THINK]"),
        (templates.LLAMA32, None),
        (templates.CHATML, None),
    ],
)
def test_thinking(source: str, opening: str | None) -> None:
    found = detect_thinking(source)
    assert (found and found.open) == opening
