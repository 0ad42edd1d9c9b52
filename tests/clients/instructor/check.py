"""instructor: an answer as a pydantic model, by way of a tool that it forces."""

from typing import Any

import instructor
import openai

from tests.clients.report import Task, check, main
from tests.clients.trip import Trip


def ask(task: Task, mode: instructor.Mode, **settings: Any) -> Any:
    client = openai.OpenAI(base_url=task.base_url, api_key="none", max_retries=0)
    # One attempt: an answer that has to be asked for again is not enforced.
    return instructor.from_openai(client, mode=mode).create(
        messages=[{"role": "user", "content": task.request}],
        temperature=0,
        max_tokens=64,
        max_retries=0,
        **{"model": task.model, "response_model": Trip, **settings},
    )


@check
def tool_call(task: Task) -> object:
    trip = ask(task, instructor.Mode.TOOLS)
    assert isinstance(trip, Trip)
    return {"name": "book_trip", "arguments": trip.model_dump()}


@check
def structured(task: Task) -> object:
    trip = ask(task, instructor.Mode.JSON_SCHEMA)
    assert isinstance(trip, Trip)
    return trip.model_dump()


@check
def tool_stream(task: Task) -> object:
    """Streams the model, field by field."""
    *_, last = ask(
        task, instructor.Mode.TOOLS, response_model=instructor.Partial[Trip], stream=True
    )
    return {"name": "book_trip", "arguments": last.model_dump()}


@check
def error(task: Task) -> object:
    try:
        ask(task, instructor.Mode.JSON_SCHEMA, model="nobody")
    except Exception as failed:
        missing = failed.__cause__ or failed
        return {"status": 404 if "404" in str(missing) else None, "message": str(missing)}
    return None


if __name__ == "__main__":
    main()
