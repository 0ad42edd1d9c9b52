"""openai-agents: by default over /v1/responses, or over chat completions."""

from typing import Any

import openai
from agents import (
    Agent,
    AgentOutputSchema,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)

from tests.clients.report import Task, check, main
from tests.clients.trip import Trip

CHAT, RESPONSES = OpenAIChatCompletionsModel, OpenAIResponsesModel


def agent(task: Task, kind: Any, *, max_tokens: int = 64, **settings: Any) -> Agent:
    client = openai.AsyncOpenAI(base_url=task.base_url, api_key="none", max_retries=0)
    more = ModelSettings(temperature=0, max_tokens=max_tokens)
    return Agent(
        name="traveller",
        model=kind(settings.pop("name", task.model), client),
        model_settings=more.resolve(settings.pop("model_settings", None)),
        **settings,
    )


async def run_chat(task: Task, kind: Any) -> object:
    result = await Runner.run(agent(task, kind, max_tokens=task.max_tokens), task.question)
    (response,) = result.raw_responses
    return {
        "text": result.final_output,
        "prompt_tokens": response.usage.input_tokens,
        "completion_tokens": response.usage.output_tokens,
    }


async def run_stream(task: Task, kind: Any) -> object:
    running = agent(task, kind, max_tokens=task.max_tokens)
    result = Runner.run_streamed(running, task.question)
    raw = [event.data async for event in result.stream_events() if "raw" in event.type]
    deltas = [event.delta for event in raw if event.type == "response.output_text.delta"]
    assert result.final_output == "".join(deltas)
    return {"text": result.final_output, "num_deltas": len(deltas)}


async def run_structured(task: Task, kind: Any) -> object:
    output = AgentOutputSchema(Trip, strict_json_schema=True)
    result = await Runner.run(agent(task, kind, output_type=output), task.request)
    assert isinstance(result.final_output, Trip)
    return result.final_output.model_dump()


async def run_tool_loop(task: Task, kind: Any, *, stream: bool = False) -> object:
    """The first turn has to call; the agent then sets the choice back, and the model may talk."""
    calls = []

    @function_tool
    def book_trip(trip: Trip) -> str:
        """Book a trip to a city."""
        calls.append(trip.model_dump())
        return task.result

    once = ModelSettings(tool_choice="required", parallel_tool_calls=False)
    booking = agent(task, kind, tools=[book_trip], model_settings=once, max_tokens=200)
    if stream:
        result = Runner.run_streamed(booking, task.request)
        _ = [event async for event in result.stream_events()]
    else:
        result = await Runner.run(booking, task.request)
    return {"calls": calls, "text": result.final_output}


@check
async def chat(task: Task) -> object:
    return await run_chat(task, CHAT)


@check
async def stream(task: Task) -> object:
    return await run_stream(task, CHAT)


@check
async def structured(task: Task) -> object:
    return await run_structured(task, CHAT)


@check
async def tool_loop(task: Task) -> object:
    return await run_tool_loop(task, CHAT)


@check
async def responses_chat(task: Task) -> object:
    return await run_chat(task, RESPONSES)


@check
async def responses_stream(task: Task) -> object:
    return await run_stream(task, RESPONSES)


@check
async def responses_structured(task: Task) -> object:
    return await run_structured(task, RESPONSES)


@check
async def responses_tool_loop(task: Task) -> object:
    return await run_tool_loop(task, RESPONSES)


@check
async def responses_tool_loop_stream(task: Task) -> object:
    return await run_tool_loop(task, RESPONSES, stream=True)


@check
async def error(task: Task) -> object:
    try:
        await Runner.run(agent(task, CHAT, name="nobody"), task.question)
    except openai.NotFoundError as missing:
        return {"status": missing.status_code, "message": str(missing)}
    return None


if __name__ == "__main__":
    main()
