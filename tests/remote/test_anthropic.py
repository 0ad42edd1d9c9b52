"""The Anthropic protocol: what is sent, what is refused, and what its events mean."""

import json
from typing import Any

import pytest

from llmserve.core import (
    Constraint,
    Delta,
    FinishReason,
    Message,
    Mode,
    Part,
    ReasoningDelta,
    Request,
    SamplingParams,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolUse,
    Usage,
)
from llmserve.errors import InvalidRequestError
from llmserve.remote.anthropic import AnthropicDecoder, AnthropicProtocol
from llmserve.remote.errors import BrokenAnswerError, ErrorInStreamError
from llmserve.remote.protocol import DEFAULT_MAX_TOKENS
from llmserve.remote.sse import SseEvent

USER = (Message("user", "hi"),)
WIRE_USER = {"role": "user", "content": [{"type": "text", "text": "hi"}]}


def sent(request: Request, mode: Mode = Mode.CHAT) -> dict[str, Any]:
    call = AnthropicProtocol("claude").encode(request, mode)
    assert call.path == "/messages"
    body: dict[str, Any] = json.loads(call.body)
    assert body.pop("model") == "claude"
    assert body.pop("stream") is True
    return body


# -- requests ------------------------------------------------------------------------------------


def test_the_headers() -> None:
    headers = AnthropicProtocol("claude").headers("k")
    assert headers == {"anthropic-version": "2023-06-01", "x-api-key": "k"}


def test_the_modes() -> None:
    always = {"max_tokens": DEFAULT_MAX_TOKENS}
    user = {"role": "user", "content": "hi"}
    assert sent(Request(prompt="hi"), Mode.INSTRUCT) == {**always, "messages": [user]}
    asked = Request(prompt="hi", system="be")
    assert sent(asked, Mode.INSTRUCT) == {**always, "messages": [user], "system": "be"}
    chat = Request(messages=(Message("system", "be"), Message("system", "good"), *USER))
    assert sent(chat) == {**always, "messages": [WIRE_USER], "system": "be\n\ngood"}


def test_parameters() -> None:
    sampling = SamplingParams(temperature=1, top_p=0.5, top_k=3)
    body = sent(Request(messages=USER, sampling=sampling, max_tokens=9, stop=("a",)))
    assert body == {
        "messages": [WIRE_USER],
        "top_p": 0.5,
        "top_k": 3,
        "max_tokens": 9,
        "stop_sequences": ["a"],
    }
    warm = Request(messages=USER, sampling=SamplingParams(temperature=0.7))
    assert sent(warm)["temperature"] == 0.7


@pytest.mark.parametrize(
    ("use", "choice"),
    [
        (ToolUse((Tool("now"),)), {"type": "auto"}),
        (ToolUse((Tool("now"),), "none"), {"type": "none"}),
        (ToolUse((Tool("now"),), "required"), {"type": "any"}),
        (ToolUse((Tool("now"),), "required", "now"), {"type": "tool", "name": "now"}),
        (
            ToolUse((Tool("now"),), parallel=False),
            {"type": "auto", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_tools(use: ToolUse, choice: dict[str, Any]) -> None:
    body = sent(Request(messages=USER, tool_use=use))
    assert body["tools"] == [{"name": "now", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == choice


def test_a_conversation_with_tools() -> None:
    calls = (ToolCall("c1", "add", '{"a": 2}'), ToolCall("c2", "now", "{}"))
    messages = (
        *USER,
        Message("assistant", "Wait.", reasoning="hm", tool_calls=calls),
        Message("tool", "5", name="add", tool_call_id="c1"),
        Message("tool", "noon", tool_call_id="c2"),
        Message("user", "and?"),
    )
    assert sent(Request(messages=messages))["messages"] == [
        WIRE_USER,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Wait."},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 2}},
                {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "5"},
                {"type": "tool_result", "tool_use_id": "c2", "content": "noon"},
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "and?"}]},
    ]


def call(call_id: str, arguments: str) -> tuple[Message, ...]:
    return (*USER, Message("assistant", "", tool_calls=(ToolCall(call_id, "f", arguments),)))


REFUSED = [
    (Request(messages=USER, seed=1), "parameters.seed"),
    (Request(messages=USER, num_logprobs=1), "logprobs"),
    (Request(messages=USER, constraint=Constraint("json")), "response_format"),
    (Request(messages=USER, reasoning_effort="low"), "reasoning_effort"),
    (Request(messages=USER, sampling=SamplingParams(min_p=0.1)), "parameters.min_p"),
    (Request(messages=USER, sampling=SamplingParams(temperature=1.1)), "parameters.temperature"),
    (
        Request(messages=USER, sampling=SamplingParams(presence_penalty=1)),
        "parameters.presence_penalty",
    ),
    (
        Request(messages=USER, sampling=SamplingParams(frequency_penalty=1)),
        "parameters.frequency_penalty",
    ),
    (Request(messages=USER, sampling=SamplingParams(logit_bias={1: 1})), "parameters.logit_bias"),
    (Request(messages=USER, sampling=SamplingParams(ignore_eos=True)), "parameters.ignore_eos"),
    (Request(messages=(Message("user", "hi", name="ada"),)), "messages[0].name"),
    (Request(messages=(*USER, Message("system", "be"))), "messages[1].role"),
    (Request(messages=(Message("narrator", "x"),)), "messages[0].role"),
    (Request(messages=call("c 1", "{}")), "messages[1].tool_calls"),
    (Request(messages=call("c1", "[]")), "messages[1].tool_calls"),
]


@pytest.mark.parametrize(("request_", "param"), REFUSED, ids=[param for _, param in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(request_: Request, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sent(request_)
    assert caught.value.param == param
    assert param in caught.value.message


def test_there_is_no_mode_completion() -> None:
    with pytest.raises(InvalidRequestError, match="chats only") as caught:
        sent(Request(prompt="x"), Mode.COMPLETION)
    assert caught.value.param == "mode"


# -- answers -------------------------------------------------------------------------------------


def decode(*bodies: dict[str, Any]) -> tuple[list[Part], AnthropicDecoder]:
    decoder = AnthropicDecoder()
    parts: list[Part] = []
    for body in bodies:
        parts += decoder.push(SseEvent(str(body["type"]), json.dumps(body).encode()))
    return parts, decoder


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def part(index: int, kind: str, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}


def end(reason: str, stop: str | None = None, **usage: Any) -> dict[str, Any]:
    delta = {"stop_reason": reason, "stop_sequence": stop}
    return {"type": "message_delta", "delta": delta, "usage": usage}


BEGIN = {
    "type": "message_start",
    "message": {
        "usage": {
            "input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5,
            "output_tokens": 1,
        }
    },
}  # fmt: skip
STOP = {"type": "message_stop"}


def test_text_thoughts_usage_and_the_end() -> None:
    parts, decoder = decode(
        BEGIN,
        {"type": "ping"},
        start(0, type="thinking", thinking=""),
        part(0, "thinking_delta", thinking="hm"),
        part(0, "signature_delta", signature="xyz"),
        {"type": "content_block_stop", "index": 0},
        start(1, type="text", text=""),
        part(1, "text_delta", text="Hel"),
        part(1, "text_delta", text="lo"),
        {"type": "something_new", "index": 7},
        end("stop_sequence", "\n", output_tokens=9),
        STOP,
    )
    assert parts == [ReasoningDelta("hm"), Delta("Hel"), Delta("lo")]
    assert decoder.is_done
    assert decoder.end() == (FinishReason.STOP, "\n", Usage(12, 4, 9))


def test_tool_calls() -> None:
    parts, decoder = decode(
        BEGIN,
        start(1, type="tool_use", id="c1", name="add", input={}),
        part(1, "input_json_delta", partial_json=""),
        part(1, "input_json_delta", partial_json='{"a":'),
        part(1, "input_json_delta", partial_json=" 2}"),
        start(2, type="tool_use", id="c2", name="now", input={}),
        end("tool_use", output_tokens=2),
        STOP,
    )
    assert parts == [
        ToolCallDelta(0, "", "c1", "add"),
        ToolCallDelta(0, '{"a":'),
        ToolCallDelta(0, " 2}"),
        ToolCallDelta(1, "", "c2", "now"),
        ToolCallDelta(1, "{}"),
    ]
    assert decoder.end().reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
    ],
)
def test_reasons(word: str, reason: FinishReason) -> None:
    assert decode(BEGIN, end(word))[1].end().reason is reason


def test_broken_answers() -> None:
    with pytest.raises(BrokenAnswerError, match="'refusal'"):
        decode(BEGIN, end("refusal"))
    with pytest.raises(BrokenAnswerError, match="more after the end"):
        decode(BEGIN, end("end_turn"), part(0, "text_delta", text="x"))
    with pytest.raises(BrokenAnswerError, match="cut its answer off"):
        decode(BEGIN, part(0, "text_delta", text="x"))[1].end()
    with pytest.raises(BrokenAnswerError, match="cannot be read"):
        list(AnthropicDecoder().push(SseEvent("x", b"{")))
    with pytest.raises(ErrorInStreamError):
        decode({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}})
