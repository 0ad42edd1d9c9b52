"""POST /v1/chat/completions over a fake model: every field, every refusal, the order of streams."""

import socket
from typing import Any

import msgspec
import pytest

from llmserve.api.openai.chat import to_core
from llmserve.api.openai.chat_schemas import ChatRequest
from llmserve.api.openai.stream import total_usage
from llmserve.core import (
    Constraint,
    Delta,
    Finished,
    FinishReason,
    Request,
    SampledLogprob,
    SamplingParams,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from llmserve.errors import EngineError
from tests.api.openai.helpers import (
    CHAT,
    DONE,
    USER,
    allowed,
    call,
    chat,
    chunks,
    error_of,
    expected,
    named,
    ok,
    script,
    tool,
)
from tests.serving import FakeService, fake_service, raw_inference, sse_events, wait_until

PROMPT = "<user>hi\n<assistant>"
TIMINGS = Timings(0, 0, 0, 0, 0)


def converted(**fields: Any) -> Request:
    """The core request of the first choice."""
    body = msgspec.json.encode({"messages": USER, **fields})
    return to_core(msgspec.json.decode(body, type=ChatRequest))[0]


# -- answers -------------------------------------------------------------------------------------


def test_an_answer_has_exactly_these_fields(service: FakeService) -> None:
    body = ok(service.post(chat(), CHAT))
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("system_fingerprint").startswith("fp_")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": expected(PROMPT),
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": len(PROMPT),
            "completion_tokens": 4,
            "total_tokens": len(PROMPT) + 4,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_the_fingerprint_is_the_models_and_ids_are_unique(service: FakeService) -> None:
    first, second = (ok(service.post(chat(), CHAT)) for _ in range(2))
    assert first["system_fingerprint"] == second["system_fingerprint"]
    assert first["id"] != second["id"]
    with fake_service(models={"other": {}}) as other:
        assert ok(other.post(chat(), CHAT))["system_fingerprint"] != first["system_fingerprint"]


@pytest.mark.parametrize("model", [None, "fake", "default"])
def test_the_answer_has_the_models_own_name(service: FakeService, model: str | None) -> None:
    assert ok(service.post(chat(model=model), CHAT))["model"] == "fake"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (USER, PROMPT),
        ([{"role": "system", "content": "s"}, *USER], "<system>s\n" + PROMPT),
        ([{"role": "developer", "content": "s"}, *USER], "<system>s\n" + PROMPT),
        (
            [{"role": "user", "content": [{"type": "text", "text": "h"}]}],
            "<user>h\n<assistant>",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}],
            "<user>a\nb\n<assistant>",
        ),
        ([{"role": "user", "content": []}], "<user>\n<assistant>"),
        (
            [  # an answer, sent back as a client got it
                *USER,
                {
                    "role": "assistant",
                    "content": "yes",
                    "refusal": None,
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [],
                    "reasoning_content": None,
                    "name": None,
                },
            ],
            "<user>hi\n<assistant>yes\n<assistant>",
        ),
    ],
)
def test_messages_build_the_text(service: FakeService, messages: Any, text: str) -> None:
    assert service.post({"messages": messages}, "/apply-template").json() == {"prompt": text}
    body = ok(service.post(chat(messages=messages), CHAT))
    assert body["usage"]["prompt_tokens"] == len(text)


def test_a_name_reaches_templates_that_show_it() -> None:
    template = "{% for m in messages %}{{ m.name if m.name is defined else '-' }};{% endfor %}"
    with fake_service(chat_template=template) as service:
        messages = [{**USER[0], "name": "ann"}, *USER]
        prompt = service.post({"messages": messages}, "/apply-template").json()["prompt"]
    assert prompt == "ann;-;"


def test_a_stop_string(service: FakeService) -> None:
    whole = expected(PROMPT, 8)
    stop = whole[3:5]
    for stops in (stop, ["never", stop]):
        (choice,) = ok(service.post(chat(stop=stops, max_tokens=8), CHAT))["choices"]
        assert choice["message"]["content"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_the_end_token_stops(service: FakeService) -> None:
    (choice,) = ok(service.post(chat(logit_bias={"256": 100}, ignore_eos=False), CHAT))["choices"]
    assert choice["message"]["content"] == ""
    assert choice["finish_reason"] == "stop"


def test_seeds_repeat_and_choices_have_consecutive_ones(service: FakeService) -> None:
    def texts(**fields: Any) -> list[str]:
        request = chat(temperature=1.5, max_tokens=12, **fields)
        choices = ok(service.post(request, CHAT))["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        return [choice["message"]["content"] for choice in choices]

    three = texts(n=3, seed=7)
    assert three == texts(n=3, seed=7)
    assert three == [*texts(seed=7), *texts(seed=8), *texts(seed=9)]
    assert len(set(three)) == 3
    assert len(set(texts(n=3))) == 3
    assert texts(seed=-1) == texts(seed=-1)


def test_usage_counts_the_prompt_once(service: FakeService) -> None:
    usage = ok(service.post(chat(n=3), CHAT))["usage"]
    assert usage["prompt_tokens"] == len(PROMPT)
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == len(PROMPT) + 12


# -- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, SamplingParams(temperature=1)),
        ({"temperature": 0.5}, SamplingParams(temperature=0.5)),
        ({"top_p": 0.5}, SamplingParams(temperature=1, top_p=0.5)),
        ({"top_p": 0}, SamplingParams(temperature=1, top_k=1)),
        ({"top_k": 5}, SamplingParams(temperature=1, top_k=5)),
        ({"top_k": -1}, SamplingParams(temperature=1)),
        ({"min_p": 0.1}, SamplingParams(temperature=1, min_p=0.1)),
        (
            {"frequency_penalty": 1, "presence_penalty": -1},
            SamplingParams(temperature=1, frequency_penalty=1, presence_penalty=-1),
        ),
        ({"logit_bias": {"5": -100}}, SamplingParams(temperature=1, logit_bias={5: -100})),
        ({"ignore_eos": True}, SamplingParams(temperature=1, ignore_eos=True)),
    ],
)
def test_sampling_fields_reach_core(fields: dict[str, Any], sampling: SamplingParams) -> None:
    assert converted(**fields).sampling == sampling


@pytest.mark.parametrize(
    ("fields", "priority", "deterministic"),
    [
        ({}, "interactive", False),
        ({"priority": None, "deterministic": None}, "interactive", False),
        ({"priority": "interactive", "deterministic": False}, "interactive", False),
        ({"priority": "batch", "deterministic": True}, "batch", True),
    ],
)
def test_scheduling_fields_reach_core(
    fields: dict[str, Any], priority: str, deterministic: bool
) -> None:
    asked = converted(**fields)
    assert (asked.priority, asked.deterministic) == (priority, deterministic)


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
    ],
)
def test_both_names_of_max_tokens(fields: dict[str, Any], max_tokens: int | None) -> None:
    assert converted(**fields).max_tokens == max_tokens


@pytest.mark.parametrize(
    ("fields", "num_logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"top_logprobs": 0}, None),
    ],
)
def test_logprobs_reach_core(fields: dict[str, Any], num_logprobs: int | None) -> None:
    assert converted(**fields).num_logprobs == num_logprobs


@pytest.mark.parametrize(
    ("response_format", "constraint"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json")),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, Constraint("json")),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": None, "strict": True}},
            Constraint("json"),
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            Constraint("json_schema", '{"type":"object"}'),
        ),
    ],
)
def test_response_format_reaches_core(response_format: Any, constraint: Constraint | None) -> None:
    assert converted(response_format=response_format).constraint == constraint


def test_a_schema_is_passed_on_as_it_was_written() -> None:
    schema = '{ "b": 1180591620717411303424, "a": "\\u00e9" }'
    body = '{"messages": [{"role": "user", "content": "x"}], "response_format": '
    body += f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {schema}}}}}}}'
    (request,) = to_core(msgspec.json.decode(body, type=ChatRequest))
    assert request.constraint == Constraint("json_schema", schema)


ALL_FIELDS = [name for name in ChatRequest.__struct_fields__ if name != "messages"]


@pytest.mark.parametrize("name", ALL_FIELDS)
def test_null_is_as_good_as_nothing(name: str) -> None:
    assert converted(**{name: None}) == converted()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "u1"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("service_tier", "auto"),
        ("safety_identifier", "s"),
        ("prompt_cache_key", "k"),
        ("prompt_cache_retention", "24h"),
        ("prompt_cache_options", {"ttl": "30m"}),
        ("parallel_tool_calls", True),
        ("tools", []),
        ("tool_choice", "auto"),
        ("reasoning_effort", None),
        ("chat_template_kwargs", {}),
        ("tool_choice", "none"),
        ("functions", []),
        ("function_call", "none"),
        ("modalities", ["text"]),
        ("verbosity", "medium"),
        ("logprobs", False),
        ("stream", False),
        ("n", 1),
    ],
)
def test_fields_that_change_nothing_are_accepted(name: str, value: Any) -> None:
    assert converted(**{name: value}) == converted()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [tool(strikt=True)]}, "tools[0].function.strikt", "unknown_parameter"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "invalid_value"),
        (
            {"tools": [tool()], "tool_choice": named("g")},
            "tool_choice.function.name",
            "invalid_value",
        ),
        (
            {"tools": [tool()], "tool_choice": allowed("auto", "g")},
            "tool_choice.allowed_tools.tools",
            "invalid_value",
        ),
        ({"tools": [tool()], "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "invalid_value"),
        ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools", "invalid_value"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "invalid_value"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"function_call": {"name": "f"}}, "function_call", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"moderation": {}}, "moderation", "unsupported_parameter"),
        ({"prediction": {"type": "content"}}, "prediction", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "invalid_value"),
        ({"verbosity": "low"}, "verbosity", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"repeat_penalty": 1.1}, "repeat_penalty", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{**USER[0], "role": "bot"}]}, "messages[0].role", "invalid_value"),
        (
            {"messages": [*USER, {"role": "tool", "content": "x"}]},
            "messages[1].tool_call_id",
            "missing_required_parameter",
        ),
        (
            {"messages": [*USER, {"role": "function", "content": "x", "name": "f"}]},
            "messages[1].role",
            "unsupported_parameter",
        ),
        (
            {"messages": [{**USER[0], "tool_calls": [call()]}]},
            "messages[0].tool_calls",
            "invalid_value",
        ),
        (
            {"messages": [{**USER[0], "tool_call_id": "1"}]},
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [call(arguments="[1]")]}]},
            "messages[0].tool_calls[0].function.arguments",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].function",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"frequency_penalty": 3}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -3}, "presence_penalty", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"logprobs": 5}, "logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"257": 1}}, "logit_bias.257", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 1}}},
            "response_format.json_schema.schema",
            "invalid_value",
        ),
    ],
)
def test_a_refusal_names_the_field(
    service: FakeService, fields: dict[str, Any], param: str, code: str
) -> None:
    error = error_of(service.post(chat(**fields), CHAT), 400)
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code), error["message"]


# -- streams -------------------------------------------------------------------------------------


def test_the_order_of_a_stream(service: FakeService) -> None:
    events = chunks(service.post(chat(stream=True), CHAT))
    first, *middle, last = events
    for event in events:
        assert list(event) == ["id", "object", "created", "model", "system_fingerprint", "choices"]
        assert event["object"] == "chat.completion.chunk"
        assert event["id"] == first["id"]
        assert event["model"] == "fake"
        (choice,) = event["choices"]
        assert choice["index"] == 0
        assert choice["logprobs"] is None
        assert (choice["finish_reason"] is None) == (event is not last)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(list(event["choices"][0]["delta"]) == ["content"] for event in middle)
    assert "".join(e["choices"][0]["delta"]["content"] for e in middle) == expected(PROMPT)
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "length"


def test_what_one_choice_had_to_compute_is_not_cached() -> None:
    """Whichever came first: the others have it from that one."""
    usages = [Usage(20, cached, 3) for cached in (19, 0, 19, 8, 19, 19)]
    total = total_usage(usages, 3)
    assert (total.prompt_tokens, total.completion_tokens) == (40, 18)
    assert total.prompt_tokens_details.cached_tokens == 0 + 8


def test_the_usage_comes_last_and_only_if_asked_for(service: FakeService) -> None:
    request = chat(stream=True, stream_options={"include_usage": True}, n=2)
    *events, last = chunks(service.post(request, CHAT))
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert last["usage"] == ok(service.post(chat(n=2), CHAT))["usage"]
    assert events[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("n", [2, 16])
def test_the_choices_of_a_stream(service: FakeService, n: int) -> None:
    fields = {"n": n, "seed": 3, "temperature": 1, "max_tokens": 6}
    events = chunks(service.post(chat(stream=True, **fields), CHAT))
    starts = [event["choices"][0] for event in events[:n]]
    assert [choice["index"] for choice in starts] == list(range(n))
    assert all(choice["delta"]["role"] == "assistant" for choice in starts)
    texts, ends = [""] * n, [0] * n
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        assert ends[choice["index"]] == 0, "nothing follows a choice's end"
        ends[choice["index"]] += choice["finish_reason"] == "length"
    assert ends == [1] * n
    folded = ok(service.post(chat(**fields), CHAT))["choices"]
    assert [choice["message"]["content"] for choice in folded] == texts


def test_comments_keep_a_silent_stream_alive() -> None:
    with (
        fake_service(gated=True, server={"keep_alive_s": 0.01}) as service,
        service.client() as client,
        client.stream("POST", CHAT, json=chat(stream=True, n=2)) as response,
    ):
        lines = response.iter_lines()
        while next(lines) != ": keep-alive":
            pass
        service.step(100)
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_what_the_shutdown_cuts_short_is_length() -> None:
    with fake_service(gated=True) as service, service.client() as client:
        with client.stream("POST", CHAT, json=chat(stream=True, max_tokens=50)) as response:
            service.step(2)
            wait_until(lambda: service.num_running == 1)
            service.run(service.gateway.close())
            text = response.read().decode()
        assert text.endswith(DONE)
        last = sse_events(text.removesuffix(DONE))[-1]
        assert last["choices"][0]["finish_reason"] == "length"


def test_an_error_in_mid_stream_is_an_event_and_then_the_end(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, service, [Started("fake", 3, 1), Delta("a"), EngineError("broken")])
    response = service.post(chat(stream=True), CHAT)
    assert response.status_code == 200
    assert sse_events(response.text)[-1] == {
        "error": {
            "type": "server_error",
            "code": "engine_error",
            "message": "broken",
            "param": None,
        }
    }
    assert "[DONE]" not in response.text


# -- log probabilities ---------------------------------------------------------------------------


def logprob(text: bytes, value: float) -> TokenLogprob:
    return TokenLogprob(7, text, value)


SAMPLED = (
    SampledLogprob(logprob(b"a", -0.5), (logprob(b"a", -0.5), logprob(b"\xc3", -1.5))),
    SampledLogprob(logprob(b"\xa9", -0.25), ()),
)
FINISHED = Finished(FinishReason.STOP, None, Usage(3, 2, 2), TIMINGS)
CONTENT = [
    {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\ufffd", "logprob": -1.5, "bytes": [195]},
        ],
    },
    {"token": "\ufffd", "logprob": -0.25, "bytes": [169], "top_logprobs": []},
]


def test_logprobs_of_an_answer(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [Started("fake", 3, 1), Delta("", SAMPLED[:1]), Delta("x", SAMPLED[1:]), FINISHED]
    requests = script(monkeypatch, service, events)
    body = ok(service.post(chat(logprobs=True, top_logprobs=2), CHAT))
    assert requests[0].num_logprobs == 2
    assert body["choices"][0]["logprobs"] == {"content": CONTENT, "refusal": None}
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_logprobs_of_a_stream(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [Started("fake", 3, 1), Delta("", SAMPLED[:1]), Delta("x", SAMPLED[1:]), FINISHED]
    script(monkeypatch, service, events)
    received = chunks(service.post(chat(logprobs=True, stream=True), CHAT))
    choices = [event["choices"][0] for event in received[1:-1]]
    assert [choice["delta"] for choice in choices] == [{"content": ""}, {"content": "x"}]
    assert [choice["logprobs"]["content"] for choice in choices] == [[CONTENT[0]], [CONTENT[1]]]


# -- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3, 6])  # 6: more than there are slots
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_frees_every_choice(stream: bool, n: int, reset: bool) -> None:
    with fake_service(gated=True) as service:
        request = raw_inference(chat(stream=stream, n=n, max_tokens=1000), CHAT)
        with service.connect(request) as connection:
            wait_until(lambda: service.gateway.num_active == n)

            def is_running() -> bool:
                service.step()  # one for each look: choices may come after the first have begun
                return service.num_running == min(n, 4)

            wait_until(is_running)
            if stream:
                assert connection.recv(65536)
            if reset:
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
        wait_until(lambda: service.gateway.num_active == 0)
        service.step(2)
        wait_until(lambda: service.num_running == 0)
        assert service.metric("llmserve_requests_total", outcome="disconnected") == n
        service.step(100)
        ok(service.post(chat(), CHAT))


def test_one_refused_choice_refuses_all() -> None:
    with fake_service(models={"fake": {"max_queue": 1}}, num_slots=1) as service:
        for stream in (False, True):
            response = service.post(chat(n=4, stream=stream), CHAT)
            error = error_of(response, 429)
            assert error["type"] == "rate_limit_error"
            assert error["code"] == "rate_limit_exceeded"
            assert int(response.headers["retry-after"]) >= 1
            service.wait_idle()
        ok(service.post(chat(n=2), CHAT))


def test_cache_prompt() -> None:
    for given, wanted in ((None, True), (True, True), (False, False)):
        wire = msgspec.convert(chat(cache_prompt=given), ChatRequest)
        assert to_core(wire)[0].cache_prompt is wanted
