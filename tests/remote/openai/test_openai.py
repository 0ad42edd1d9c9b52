"""The OpenAI protocol: what is sent, what is refused, and what its events mean."""

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
from llmserve.remote.errors import BrokenAnswerError, ErrorInStreamError
from llmserve.remote.openai.request import OpenAIProtocol
from llmserve.remote.openai.response import OpenAIDecoder
from llmserve.remote.protocol import DEFAULT_MAX_TOKENS
from llmserve.remote.sse import SseEvent
from tests.remote.serving import provider

SERVER = provider("http://127.0.0.1:8080/v1")
OPENAI = provider("https://api.openai.com/v1")
USER = (Message("user", "hi"),)
HEAD = {"model": "big", "stream": True, "stream_options": {"include_usage": True}}


def sent(
    request: Request, mode: Mode = Mode.CHAT, remote: Any = SERVER
) -> tuple[str, dict[str, Any]]:
    """Path and body, without what every body has."""
    call = OpenAIProtocol(remote, "big").encode(request, mode)
    body = json.loads(call.body)
    assert {key: body.pop(key) for key in HEAD} == HEAD
    return call.path, body


def sampled(**fields: Any) -> Request:
    return Request(messages=USER, sampling=SamplingParams(**fields))


# -- requests ------------------------------------------------------------------------------------


def test_the_modes() -> None:
    always = {"temperature": 1.0, "top_p": 1.0}
    user, system = {"role": "user", "content": "hi"}, {"role": "system", "content": "be"}
    instruct = Request(prompt="hi", system="be")
    assert sent(instruct, Mode.INSTRUCT) == (
        "/chat/completions",
        {**always, "messages": [system, user]},
    )
    assert sent(Request(messages=USER)) == ("/chat/completions", {**always, "messages": [user]})
    assert sent(Request(prompt="hi"), Mode.COMPLETION) == (
        "/completions",
        {**always, "prompt": "hi", "max_tokens": DEFAULT_MAX_TOKENS},
    )
    tokens = Request(prompt_tokens=(1, 2), max_tokens=0, num_logprobs=0, suffix="end")
    assert sent(tokens, Mode.COMPLETION) == (
        "/completions",
        {**always, "prompt": [1, 2], "max_tokens": 0, "logprobs": 0, "suffix": "end"},
    )


def test_parameters() -> None:
    request = Request(
        messages=USER,
        sampling=SamplingParams(
            temperature=0, top_p=0.5, frequency_penalty=1, presence_penalty=-1, logit_bias={7: 2.0}
        ),
        max_tokens=9,
        stop=("a", "b"),
        seed=3,
        num_logprobs=2,
        reasoning_effort="low",
    )
    _, body = sent(request)
    del body["messages"]
    assert body == {
        "temperature": 0,
        "top_p": 0.5,
        "frequency_penalty": 1,
        "presence_penalty": -1,
        "logit_bias": {"7": 2.0},
        "max_tokens": 9,
        "stop": ["a", "b"],
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
    }


def test_the_seed_is_signed_as_openais() -> None:
    assert sent(Request(messages=USER, seed=2**64 - 1))[1]["seed"] == -1
    assert sent(Request(messages=USER, seed=2**63 - 1))[1]["seed"] == 2**63 - 1


def test_openais_own_models_get_the_new_name_and_no_defaults() -> None:
    request = Request(messages=USER, max_tokens=9, sampling=SamplingParams(temperature=1))
    _, body = sent(request, remote=OPENAI)
    assert body == {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 9}
    new = provider("https://other.example", extra_parameters=("max_completion_tokens",))
    assert "max_completion_tokens" in sent(request, remote=new)[1]


def test_a_server_with_parameters_of_its_own_is_told_them_all() -> None:
    remote = provider("http://127.0.0.1", extra_parameters=("top_k", "min_p", "ignore_eos"))
    _, body = sent(sampled(), remote=remote)
    assert (body["top_k"], body["min_p"], body["ignore_eos"]) == (0, 0.0, False)
    _, body = sent(sampled(temperature=0.7, top_k=1, min_p=0.1, ignore_eos=True), remote=remote)
    assert (body["top_k"], body["min_p"], body["ignore_eos"]) == (1, 0.1, True)
    assert body["temperature"] == 0.7


def test_the_most_likely_token_alone_is_temperature_0() -> None:
    _, body = sent(sampled(top_k=1, temperature=1.5))
    assert body["temperature"] == 0
    assert "top_k" not in body


def test_structured_output() -> None:
    _, body = sent(Request(messages=USER, constraint=Constraint("json")))
    assert body["response_format"] == {"type": "json_object"}
    schema = Constraint("json_schema", '{"type": "object"}')
    _, body = sent(Request(messages=USER, constraint=schema))
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    }
    takes = provider("http://127.0.0.1", extra_parameters=("response_format",))
    _, body = sent(Request(prompt="x", constraint=schema), Mode.COMPLETION, takes)
    assert "response_format" in body


def test_tools() -> None:
    tools = (Tool("add", "Adds.", '{"type": "object"}'), Tool("now"))
    _, body = sent(Request(messages=USER, tool_use=ToolUse(tools)))
    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
        },
        {"type": "function", "function": {"name": "now"}},
    ]
    assert body["tool_choice"] == "auto"
    assert "parallel_tool_calls" not in body
    use = ToolUse(tools, "required", "now", parallel=False)
    _, body = sent(Request(messages=USER, tool_use=use))
    assert body["tool_choice"] == {"type": "function", "function": {"name": "now"}}
    assert body["parallel_tool_calls"] is False


def test_a_conversation_with_tools_and_thoughts() -> None:
    messages = (
        Message("user", "2+3?", name="ada"),
        Message("assistant", "", reasoning="hm", tool_calls=(ToolCall("c1", "add", '{"a": 2}'),)),
        Message("tool", "5", name="add", tool_call_id="c1"),
    )
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    wire: list[dict[str, Any]] = [
        {"role": "user", "content": "2+3?", "name": "ada"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
    ]
    assert sent(Request(messages=messages))[1]["messages"] == wire
    del wire[1]["reasoning_content"]
    assert sent(Request(messages=messages), remote=OPENAI)[1]["messages"] == wire


REFUSED = [
    (sampled(top_k=5), Mode.CHAT, "parameters.top_k"),
    (sampled(min_p=0.1), Mode.CHAT, "parameters.min_p"),
    (sampled(ignore_eos=True), Mode.CHAT, "parameters.ignore_eos"),
    (Request(messages=USER, constraint=Constraint("regex", "a")), Mode.CHAT, "response_format"),
    (Request(messages=USER, constraint=Constraint("lark", "a")), Mode.CHAT, "response_format"),
    (Request(messages=USER, constraint=Constraint("gbnf", "a")), Mode.CHAT, "response_format"),
    (Request(messages=USER, constraint=Constraint("gbnf", "a", "grammar")), Mode.CHAT, "grammar"),
    (Request(prompt="x", constraint=Constraint("json")), Mode.COMPLETION, "response_format"),
    (Request(prompt="x", constraint=Constraint("json", "", "own")), Mode.COMPLETION, "own"),
    (Request(prompt="x", reasoning_effort="low"), Mode.COMPLETION, "reasoning_effort"),
    (Request(prompt="x", prompt_logprobs=True, num_logprobs=1), Mode.COMPLETION, "echo"),
    (Request(messages=(Message("user", "\ud800"),)), Mode.CHAT, None),
]


@pytest.mark.parametrize(("request_", "mode", "param"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(
    request_: Request, mode: Mode, param: str | None
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sent(request_, mode)
    assert caught.value.param == param
    assert (param or "Unicode") in caught.value.message


# -- answers -------------------------------------------------------------------------------------


def decode(*bodies: Any, with_logprobs: bool = False) -> tuple[list[Part], OpenAIDecoder]:
    """The parts of these chunks."""
    decoder = OpenAIDecoder(with_logprobs=with_logprobs)
    parts: list[Part] = []
    for body in bodies:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        parts += decoder.push(SseEvent("", data))
    return parts, decoder


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_text_thoughts_usage_and_the_end() -> None:
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    parts, decoder = decode(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="hm"),
        chunk(reasoning="m"),
        chunk(content="Hel"),
        chunk("length", content="lo"),
        {"choices": [], "usage": usage},
        b"[DONE]",
        b"{",
    )
    assert parts == [ReasoningDelta("hm"), ReasoningDelta("m"), Delta("Hel"), Delta("lo")]
    assert decoder.is_done
    assert decoder.end() == (FinishReason.LENGTH, None, Usage(7, 4, 3, 2))


def test_completions_and_a_stop_string() -> None:
    parts, decoder = decode(
        {"choices": [{"text": "Hel"}]},
        {"choices": [{"text": "lo", "finish_reason": "stop", "stop_reason": "\n"}]},
    )
    assert parts == [Delta("Hel"), Delta("lo")]
    assert decoder.end() == (FinishReason.STOP, "\n", Usage(0, 0, 0))


def piece(index: int | None, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    name = fields.pop("name", None)
    body = {"function": {"name": name, "arguments": arguments}, **fields}
    return body if index is None else {"index": index, **body}


def test_tool_calls_in_pieces() -> None:
    parts, decoder = decode(
        chunk(tool_calls=[piece(3, "", id="c1", name="add")]),
        chunk(tool_calls=[piece(3, '{"a":'), piece(5, None, id="c2", name="now")]),
        chunk(tool_calls=[piece(3, " 2}")]),
        chunk("stop"),
    )
    assert parts == [
        ToolCallDelta(0, "", "c1", "add"),
        ToolCallDelta(0, '{"a":'),
        ToolCallDelta(1, "", "c2", "now"),
        ToolCallDelta(0, " 2}"),
        ToolCallDelta(1, "{}"),
    ]
    assert decoder.end().reason is FinishReason.TOOL_CALLS


def test_calls_without_index_or_id() -> None:
    parts, _ = decode(
        chunk(tool_calls=[piece(None, "{}", name="a")]),
        chunk(tool_calls=[piece(None, "{", name="b"), piece(None, "}")]),
        chunk("tool_calls"),
    )
    names = [(part.index, part.name) for part in parts if isinstance(part, ToolCallDelta)]
    assert names == [(0, "a"), (1, "b"), (1, None)]
    ids = {part.id for part in parts if isinstance(part, ToolCallDelta) and part.name}
    assert len(ids) == 2
    assert all(each and each.startswith("call_") for each in ids)


def test_log_probabilities_of_chats() -> None:
    top = [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "é", "logprob": -1}]
    content = [{"token": "?", "logprob": -0.5, "bytes": [195], "top_logprobs": top}]
    body = chunk(content="a")
    body["choices"][0]["logprobs"] = {"content": content}
    ((delta,), _) = decode(body, with_logprobs=True)
    assert isinstance(delta, Delta)
    (sampled_,) = delta.logprobs
    assert (sampled_.chosen.data, sampled_.chosen.logprob) == (b"\xc3", -0.5)
    assert [(each.data, each.logprob) for each in sampled_.top] == [
        (b"a", -0.5),
        ("é".encode(), -1),
    ]
    ((delta,), _) = decode(body)
    assert delta == Delta("a"), "nobody asked for them"


def test_log_probabilities_of_completions() -> None:
    logprobs = {
        "tokens": ["a", "bytes:\\xc3"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{"a": -0.5, "b": -2}, None],
        "text_offset": [0, 1],
    }
    ((delta,), _) = decode({"choices": [{"text": "a", "logprobs": logprobs}]}, with_logprobs=True)
    assert isinstance(delta, Delta)
    assert [each.chosen.data for each in delta.logprobs] == [b"a", b"\xc3"]
    assert [each.chosen.logprob for each in delta.logprobs] == [-0.5, -9999]
    assert [len(each.top) for each in delta.logprobs] == [2, 0]


def test_log_probabilities_that_do_not_come_are_a_refusal() -> None:
    with pytest.raises(InvalidRequestError, match="sends none") as caught:
        decode(chunk(content="a"), with_logprobs=True)
    assert caught.value.param == "logprobs"


@pytest.mark.parametrize(
    ("bodies", "words"),
    [
        ([b"{"], "cannot be read"),
        ([b"[1]"], "cannot be read"),
        ([chunk("stop"), chunk(content="x")], "more after the end"),
        ([{"choices": [{"index": 1, "delta": {}}]}], "choice 1"),
        ([chunk("content_filter")], "'content_filter'"),
        ([chunk(tool_calls=[piece(0, "{}")])], "without a name"),
        ([{"choices": [{"logprobs": {"content": [{"token": "a", "bytes": [300]}]}}]}], "be read"),
    ],
)
def test_a_broken_answer(bodies: list[Any], words: str) -> None:
    with pytest.raises(BrokenAnswerError, match=words):
        decode(*bodies)


def test_a_tool_that_must_be_called_and_is_not() -> None:
    use = ToolUse((Tool("now"),), "required")
    decoder = OpenAIProtocol(SERVER, "big").decoder(Request(tool_use=use), Mode.CHAT)
    data = json.dumps(chunk("stop", content="no")).encode()
    with pytest.raises(BrokenAnswerError, match="told to call a tool"):
        list(decoder.push(SseEvent("", data)))


def test_half_an_answer() -> None:
    with pytest.raises(BrokenAnswerError, match="cut its answer off"):
        decode(chunk(content="x"), b"[DONE]")[1].end()


@pytest.mark.parametrize("error", [{"message": "no"}, "no", 5])
def test_an_error_in_the_stream(error: Any) -> None:
    with pytest.raises(ErrorInStreamError):
        decode({"error": error})
