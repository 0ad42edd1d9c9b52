"""langchain-openai: its chat model and what it builds on top of it."""

from typing import Any

import httpx2
import openai
import tiktoken
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from tests.clients.report import Task, check, main
from tests.clients.trip import Trip


@tool(args_schema=Trip)
def book_trip(**trip: Any) -> None:
    """Book a trip to a city."""


def model(task: Task, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=task.base_url,
        api_key="none",
        temperature=0,
        max_retries=0,
        **{"model": task.model, "max_completion_tokens": task.max_tokens, **settings},
    )


@check
def chat(task: Task) -> object:
    answer = model(task).invoke(task.question)
    return {
        "text": answer.content,
        "finish": answer.response_metadata["finish_reason"],
        "prompt_tokens": answer.usage_metadata["input_tokens"],
        "completion_tokens": answer.usage_metadata["output_tokens"],
    }


@check
async def stream(task: Task) -> object:
    chunks = [chunk async for chunk in model(task, stream_usage=True).astream(task.question)]
    deltas = [chunk.content for chunk in chunks if chunk.content]
    usage = sum(chunks[1:], chunks[0]).usage_metadata
    return {
        "text": "".join(deltas),
        "num_deltas": len(deltas),
        "completion_tokens": usage["output_tokens"],
    }


@check
def completions(task: Task) -> object:
    base = OpenAI(
        base_url=task.base_url,
        api_key="none",
        model=task.model,
        temperature=0,
        max_tokens=task.max_tokens,
        max_retries=0,
    )
    whole, again = base.generate([task.prompt, task.prompt]).generations
    assert whole[0].text == again[0].text
    return {"text": "".join(base.stream(task.prompt))}


@check
async def together(task: Task) -> object:
    """Several at once, as chains do."""
    answers = await model(task).abatch([task.question] * 4)
    return {"texts": [answer.content for answer in answers]}


@check
def structured(task: Task) -> object:
    trip = model(task, max_completion_tokens=64).with_structured_output(Trip).invoke(task.request)
    assert isinstance(trip, Trip)
    return trip.model_dump()


@check
def tool_call(task: Task) -> object:
    bound = model(task, max_completion_tokens=64).bind_tools([book_trip], tool_choice="book_trip")
    (call,) = bound.invoke(task.request).tool_calls
    return {"name": call["name"], "arguments": call["args"]}


@check
def tool_stream(task: Task) -> object:
    bound = model(task, max_completion_tokens=64).bind_tools(
        [book_trip], tool_choice="required", parallel_tool_calls=False
    )
    chunks = list(bound.stream(task.request))
    (call,) = sum(chunks[1:], chunks[0]).tool_calls
    return {"name": call["name"], "arguments": call["args"]}


@check
def tool_loop(task: Task) -> object:
    """The call is carried out and its result sent back, for the model to go on."""
    first = model(task, max_completion_tokens=64).bind_tools(
        [book_trip], tool_choice="any", parallel_tool_calls=False
    )
    call = first.invoke(task.request)
    results = [ToolMessage(task.result, tool_call_id=one["id"]) for one in call.tool_calls]
    free = model(task, max_completion_tokens=64).bind_tools([book_trip], tool_choice="none")
    answer = free.invoke([HumanMessage(task.request), call, *results])
    return {"calls": [one["args"] for one in call.tool_calls], "text": answer.content}


@check
def responses_chat(task: Task) -> object:
    answer = model(task, use_responses_api=True).invoke(task.question)
    return {
        "text": answer.text,
        "prompt_tokens": answer.usage_metadata["input_tokens"],
        "completion_tokens": answer.usage_metadata["output_tokens"],
    }


@check
async def responses_stream(task: Task) -> object:
    running = model(task, use_responses_api=True).astream(task.question)
    deltas = [chunk.text async for chunk in running if chunk.text]
    return {"text": "".join(deltas), "num_deltas": len(deltas)}


@check
def responses_tool_call(task: Task) -> object:
    base = model(task, use_responses_api=True, max_completion_tokens=64)
    (call,) = base.bind_tools([book_trip], tool_choice="book_trip").invoke(task.request).tool_calls
    return {"name": call["name"], "arguments": call["args"]}


def embedder(task: Task, **settings: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        base_url=task.base_url, api_key="none", model=task.model, max_retries=0, **settings
    )


@check
def embeddings(task: Task) -> object:
    vectors = embedder(task, check_embedding_ctx_length=False).embed_documents(task.texts)
    return {"vectors": vectors}


class ServedEncoding:
    """The served model's tokens in the place of `cl100k_base`, a file of which cannot be had here.

    OpenAI's own ids, which are sent unless `check_embedding_ctx_length` is off, mean something
    else to every other model.
    """

    def __init__(self, task: Task) -> None:
        self._url = task.base_url.removesuffix("/v1") + "/tokenize"

    def encode_ordinary(self, text: str) -> list[int]:
        return list(httpx2.post(self._url, json={"content": text}).json()["tokens"])


@check
def embeddings_of_tokens(task: Task) -> object:
    """By default lists of token ids are sent."""
    tiktoken.registry.ENCODINGS["cl100k_base"] = ServedEncoding(task)
    return {"vectors": embedder(task).embed_documents(task.texts)}


@check
def error(task: Task) -> object:
    try:
        model(task, model="nobody").invoke(task.question)
    except openai.NotFoundError as missing:
        return {"status": missing.status_code, "message": str(missing)}
    return None


if __name__ == "__main__":
    main()
