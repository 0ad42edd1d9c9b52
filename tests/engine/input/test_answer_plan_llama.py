"""Calls of the embedded model: real tokens, which are longer than a character, and its template,
which has no tools.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from llmserve.core import Event, FinishReason, Message, Mode, Request, SamplingParams, Tool, ToolUse
from llmserve.engine.engine import LocalEngine
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from tests.engine.input.test_answer_plan import calls, end, read
from tests.policies import policy
from tests.smollm2 import MODEL

BOOK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "nights": {"type": "integer", "minimum": 1, "maximum": 30},
        "board": {"enum": ["none", "½ board", "full"]},
        "guest": {"$ref": "#/$defs/guest"},
    },
    "required": ["city", "nights", "board", "guest"],
    "$defs": {
        "guest": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}},
            "required": ["name"],
            "additionalProperties": False,
        }
    },
}
NOW = Tool("now", "The current time.")
TOOLS = (Tool("book_room", None, json.dumps(BOOK)), NOW)


@pytest.fixture(scope="module")
def runtime() -> Iterator[LlamaRuntime]:
    loaded = LlamaRuntime(
        MODEL, LlamaParams(context_length=2048, max_sequences=4, max_outputs=16, num_threads=1)
    )
    yield loaded
    loaded.close()


def question(use: ToolUse, seed: int, **fields: Any) -> Request:
    return Request(
        messages=(Message("user", "Book a room in Paris for Ada, two nights."),),
        mode=Mode.CHAT,
        tool_use=use,
        sampling=SamplingParams(temperature=1.2),
        max_tokens=120,
        seed=seed,
        **fields,
    )


REQUIRED = ToolUse(TOOLS, choice="required", parallel=False)
NAMED = ToolUse(TOOLS, choice="required", name="book_room")
QUESTIONS = {
    "required": question(REQUIRED, 1),
    "named": question(NAMED, 2),
    "auto": question(ToolUse(TOOLS, parallel=False), 3),
}


@pytest.fixture(scope="module")
def answers(runtime: LlamaRuntime) -> dict[str, list[Event]]:
    """All the questions of this module, asked at once."""

    async def one(engine: LocalEngine, request: Request) -> list[Event]:
        return [event async for event in engine.generate(request)]

    async def ask() -> dict[str, list[Event]]:
        engine = LocalEngine("real", runtime, policy=policy())
        try:
            found = await asyncio.gather(*(one(engine, r) for r in QUESTIONS.values()))
            return dict(zip(QUESTIONS, found, strict=True))
        finally:
            await engine.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("name", ["required", "named"])
def test_enforced_calls_are_valid(answers: dict[str, list[Event]], name: str) -> None:
    events = answers[name]
    assert end(events).reason is FinishReason.TOOL_CALLS
    assert read(events).text == ""
    ((tool, arguments),) = calls(events)
    if name == "named":
        assert tool == "book_room"
    jsonschema.validate(arguments, BOOK if tool == "book_room" else {"maxProperties": 0})
    assert set(arguments) <= set(BOOK["properties"])


def test_whatever_is_called_is_valid(answers: dict[str, list[Event]]) -> None:
    events = answers["auto"]
    whole = read(events).calls if end(events).reason is FinishReason.TOOL_CALLS else []
    for tool, arguments in whole:
        jsonschema.validate(json.loads(arguments), BOOK if tool == "book_room" else {})
    assert "<tool_call>" not in read(events).text or not read(events).calls
