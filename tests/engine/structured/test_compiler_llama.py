"""Constraints on the embedded model: real tokens, which are longer than a character."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from llmserve.core import Constraint, Delta, Finished, FinishReason, Mode, Request, SamplingParams
from llmserve.engine.engine import LocalEngine
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from tests.engine.structured.schemas import is_valid
from tests.policies import policy
from tests.smollm2 import MODEL

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "mood": {"enum": ["calm", "<|im_end|>", "très ému"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "grid": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {"type": "array", "minItems": 0, "maxItems": 2, "items": {"type": "boolean"}},
        },
    },
    "required": ["name", "mood", "age", "grid"],
    "additionalProperties": False,
}
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"


@pytest.fixture(scope="module")
def runtime() -> Iterator[LlamaRuntime]:
    params = LlamaParams(context_length=2048, max_sequences=16, max_outputs=16, num_threads=1)
    loaded = LlamaRuntime(MODEL, params)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def answers(runtime: LlamaRuntime) -> "dict[str, tuple[str, Finished]]":
    """All the questions of this module, asked at once: 16, of which some are free."""

    async def one(engine: LocalEngine, request: Request) -> tuple[str, Finished]:
        text = ""
        async for event in engine.generate(request):
            if isinstance(event, Delta):
                text += event.text
        assert isinstance(event, Finished)
        return text, event

    async def ask() -> dict[str, tuple[str, Finished]]:
        engine = LocalEngine("real", runtime, policy=policy(max_queue=100))
        try:
            found = await asyncio.gather(*(one(engine, r) for r in QUESTIONS.values()))
            return dict(zip(QUESTIONS, found, strict=True))
        finally:
            await engine.close()

    return asyncio.run(asyncio.wait_for(ask(), timeout=60))


def question(
    constraint: Constraint | None, temperature: float, seed: int, max_tokens: int = 90
) -> Request:
    return Request(
        prompt=f"Person {seed}:",
        mode=Mode.COMPLETION,
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=temperature),
        seed=seed,
        constraint=constraint,
    )


DATE_REGEX = Constraint("regex", DATE)
SCHEMA = Constraint("json_schema", json.dumps(PERSON))
QUESTIONS = (
    {f"schema {t} {i}": question(SCHEMA, t, i) for t in (0.0, 1.0) for i in range(2)}
    | {f"date {t} {i}": question(DATE_REGEX, t, i) for t in (0.0, 1.0) for i in range(2)}
    | {f"json {i}": question(Constraint("json"), 1.0, i, 24) for i in range(2)}
    | {f"free {i}": question(None, 0.0, i, 8) for i in range(6)}
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name.startswith("schema")])
def test_json_schema(answers: "dict[str, tuple[str, Finished]]", name: str) -> None:
    text, finished = answers[name]
    assert finished.reason is FinishReason.STOP
    assert is_valid(json.loads(text), PERSON), text


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name.startswith("date")])
def test_regex(answers: "dict[str, tuple[str, Finished]]", name: str) -> None:
    text, finished = answers[name]
    assert finished.reason is FinishReason.STOP
    assert re.fullmatch(DATE, text)


def test_any_object(answers: "dict[str, tuple[str, Finished]]") -> None:
    for i in range(2):
        text, finished = answers[f"json {i}"]
        assert text.startswith("{")
        if finished.reason is FinishReason.STOP:
            assert isinstance(json.loads(text), dict)


def test_neighbours_are_free(answers: "dict[str, tuple[str, Finished]]") -> None:
    assert len(QUESTIONS) == 16
    for i in range(6):
        text, finished = answers[f"free {i}"]
        assert finished.usage.generated_tokens <= 8
        assert not text.startswith("{")
