"""pydantic-ai: agents with an output type and tools."""

from typing import Any

from pydantic_ai import Agent, Embedder, ModelHTTPError, NativeOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.report import Task, check, main
from tests.clients.trip import Trip


def provider(task: Task) -> OpenAIProvider:
    return OpenAIProvider(base_url=task.base_url, api_key="none")


def agent(
    task: Task,
    *,
    kind: Any = OpenAIChatModel,
    name: str = "",
    max_tokens: int = 64,
    **settings: Any,
) -> Agent:
    return Agent(
        kind(name or task.model, provider=provider(task)),
        model_settings={"temperature": 0, "max_tokens": max_tokens},
        retries=0,  # an answer that has to be asked for again is not enforced
        **settings,
    )


@check
async def chat(task: Task) -> object:
    result = await agent(task, max_tokens=task.max_tokens).run(task.question)
    return {
        "text": result.output,
        "finish": result.response.finish_reason,
        "prompt_tokens": result.usage.input_tokens,
        "completion_tokens": result.usage.output_tokens,
    }


@check
async def stream(task: Task) -> object:
    running = agent(task, max_tokens=task.max_tokens).run_stream(task.question)
    async with running as result:
        deltas = [delta async for delta in result.stream_text(delta=True, debounce_by=None)]
        usage = result.usage
    return {
        "text": "".join(deltas),
        "num_deltas": len(deltas),
        "completion_tokens": usage.output_tokens,
    }


@check
async def structured(task: Task) -> object:
    result = await agent(task, output_type=NativeOutput(Trip)).run(task.request)
    assert isinstance(result.output, Trip)
    return result.output.model_dump()


@check
async def tool_call(task: Task) -> object:
    """An output type is by default a tool that has to be called."""
    result = await agent(task, output_type=Trip).run(task.request)
    assert isinstance(result.output, Trip)
    return {"name": "book_trip", "arguments": result.output.model_dump()}


class CallFirst(AbstractCapability):
    """The first step has to call a tool; the second may not."""

    def get_model_settings(self) -> Any:
        return lambda context: {"tool_choice": "required" if context.run_step == 1 else "none"}


@check
async def tool_loop(task: Task) -> object:
    calls = []
    booking = agent(task, max_tokens=200, capabilities=[CallFirst()])
    booking.model_settings["parallel_tool_calls"] = False

    @booking.tool_plain
    def book_trip(trip: Trip) -> str:
        """Book a trip to a city."""
        calls.append(trip.model_dump())
        return task.result

    result = await booking.run(task.request)
    return {"calls": calls, "text": result.output}


@check
async def responses_chat(task: Task) -> object:
    asking = agent(task, kind=OpenAIResponsesModel, max_tokens=task.max_tokens)
    result = await asking.run(task.question)
    return {
        "text": result.output,
        "prompt_tokens": result.usage.input_tokens,
        "completion_tokens": result.usage.output_tokens,
    }


@check
async def responses_tool_call(task: Task) -> object:
    result = await agent(task, kind=OpenAIResponsesModel, output_type=Trip).run(task.request)
    assert isinstance(result.output, Trip)
    return {"name": "book_trip", "arguments": result.output.model_dump()}


@check
async def embeddings(task: Task) -> object:
    model = OpenAIEmbeddingModel(task.model, provider=provider(task))
    return {"vectors": (await Embedder(model).embed_documents(task.texts)).embeddings}


@check
async def error(task: Task) -> object:
    try:
        await agent(task, name="nobody").run(task.question)
    except ModelHTTPError as missing:
        return {"status": missing.status_code, "message": str(missing)}
    return None


if __name__ == "__main__":
    main()
