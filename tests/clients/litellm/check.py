"""litellm as a library: the `openai/` provider with another address."""

import json
from typing import Any

import litellm

from tests.clients.report import Task, check, main
from tests.clients.trip import Trip

TOOL = {
    "type": "function",
    "function": {
        "name": "book_trip",
        "description": "Book a trip to a city.",
        "parameters": Trip.model_json_schema(),
    },
}


def arguments(task: Task, question: str, **settings: Any) -> dict[str, Any]:
    return {
        "model": f"openai/{task.model}",
        "base_url": task.base_url,
        "api_key": "none",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": task.max_tokens,
        "num_retries": 0,
        **settings,
    }


@check
def chat(task: Task) -> object:
    answer = litellm.completion(**arguments(task, task.question))
    return {
        "text": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }


@check
async def stream(task: Task) -> object:
    options = {"include_usage": True}
    settings = arguments(task, task.question, stream=True, stream_options=options)
    chunks = [chunk async for chunk in await litellm.acompletion(**settings)]
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    (usage,) = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    return {
        "text": "".join(delta or "" for delta in deltas),
        "num_deltas": sum(bool(delta) for delta in deltas),
        "completion_tokens": usage.completion_tokens,
    }


@check
def completions(task: Task) -> object:
    settings = arguments(task, task.question, model=f"text-completion-openai/{task.model}")
    del settings["messages"]
    return {"text": litellm.text_completion(prompt=task.prompt, **settings).choices[0].text}


@check
def structured(task: Task) -> object:
    settings = arguments(task, task.request, response_format=Trip, max_tokens=64)
    answer = litellm.completion(**settings)
    return Trip.model_validate_json(answer.choices[0].message.content).model_dump()


@check
def tool_call(task: Task) -> object:
    settings = arguments(task, task.request, tools=[TOOL], tool_choice="required", max_tokens=64)
    settings["parallel_tool_calls"] = False
    (call,) = litellm.completion(**settings).choices[0].message.tool_calls
    return {"name": call.function.name, "arguments": json.loads(call.function.arguments)}


@check
async def responses_chat(task: Task) -> object:
    settings = arguments(task, task.question, max_output_tokens=task.max_tokens)
    settings["api_base"] = settings.pop("base_url")
    del settings["messages"], settings["max_tokens"]
    answer = await litellm.aresponses(input=task.question, **settings)
    return {
        "text": answer.output_text,
        "prompt_tokens": answer.usage.input_tokens,
        "completion_tokens": answer.usage.output_tokens,
    }


@check
def embeddings(task: Task) -> object:
    answer = litellm.embedding(
        model=f"openai/{task.model}", api_base=task.base_url, api_key="none", input=task.texts
    )
    return {"vectors": [one["embedding"] for one in answer.data]}


@check
def error(task: Task) -> object:
    try:
        litellm.completion(**arguments(task, task.question, model="openai/nobody"))
    except litellm.NotFoundError as missing:
        return {"status": missing.status_code, "message": str(missing)}
    return None


if __name__ == "__main__":
    main()
