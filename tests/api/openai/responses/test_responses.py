"""POST /v1/responses over a fake model: every field, every refusal, whole and streamed."""

from typing import Any, get_type_hints

import httpx2
import msgspec
import openai
import pytest
from openai.types import responses as types
from openai.types.responses import Response, response_input_item_param
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from openai.types.shared_params import Reasoning as ReasoningParam

from llmserve.api.openai.responses import schemas as wire
from llmserve.api.openai.responses.request import to_core
from llmserve.api.openai.responses.schemas import ResponsesRequest
from llmserve.core import (
    Constraint,
    Delta,
    Finished,
    FinishReason,
    Request,
    SamplingParams,
    Started,
    Timings,
    Tool,
    ToolCallDelta,
    ToolUse,
    Usage,
)
from llmserve.errors import EngineError
from tests.api.openai.helpers import error_of, expected, ok, script
from tests.serving import FakeService, fake_service, raw_inference, wait_until

PATH = "/v1/responses"
PROMPT = "<user>hi\n<assistant>"
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}


def body(**fields: Any) -> dict[str, Any]:
    """A greedy request of 4 tokens."""
    return {
        "input": "hi",
        "temperature": 0,
        "max_output_tokens": 4,
        "ignore_eos": True,
        **fields,
    }


def converted(**fields: Any) -> Request:
    encoded = msgspec.json.encode({"input": "hi", **fields})
    return to_core(msgspec.json.decode(encoded, type=ResponsesRequest))


def events(text: str) -> list[dict[str, Any]]:
    """Every event of a whole stream, after checking the names and that nothing follows."""
    found = []
    assert text.endswith("\n\n")
    for frame in text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        found.append(msgspec.json.decode(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


# -- answers -------------------------------------------------------------------------------------


def test_an_answer_has_exactly_these_fields(service: FakeService) -> None:
    answer = ok(service.post(body(model="default", metadata={"a": "b"}, user="me"), PATH))
    Response.model_validate(answer, strict=True)
    assert answer.pop("id").startswith("resp_")
    assert isinstance(answer.pop("created_at"), int)
    (item,) = answer.pop("output")
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "status": "incomplete",
        "role": "assistant",
        "content": [
            {
                "type": "output_text",
                "text": expected(PROMPT),
                "annotations": [],
                "logprobs": [],
            }
        ],
    }
    assert answer == {
        "object": "response",
        "completed_at": None,
        "status": "incomplete",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "instructions": None,
        "max_output_tokens": 4,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "model": "fake",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 0.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": len(PROMPT),
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(PROMPT) + 4,
        },
        "user": "me",
    }


def test_what_was_asked_for_comes_back(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Finished(FinishReason.STOP, None, Usage(1, 0, 1), Timings(0, 0, 0, 0, 0))
    script(monkeypatch, service, [Started("fake", 1, 1), usage])
    schema = {"type": "object", "properties": {"a": {"const": 1e400}}}
    asked: dict[str, Any] = {
        "instructions": "be brief",
        "temperature": 0.5,
        "top_p": 0.25,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": False,
        "top_logprobs": 2,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
    }
    schema["properties"] = {"a": {"const": 1}}
    answer = ok(service.post(body(**asked), PATH))
    parsed = Response.model_validate(answer)
    assert parsed.tools[0].type == "function"
    asked["text"]["verbosity"] = "medium"
    assert {name: answer[name] for name in asked} == asked


def test_a_stream_says_the_same_as_the_whole_answer(service: FakeService) -> None:
    whole = ok(service.post(body(top_logprobs=1), PATH))
    response = service.post(body(top_logprobs=1, stream=True), PATH)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    told = events(response.text)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert told[-1]["type"] == "response.incomplete"
    streamed = told[-1]["response"]
    for each in (whole, streamed):
        for name in ("id", "created_at"):
            del each[name]
        del each["output"][0]["id"]
    assert streamed == whole
    assert "[DONE]" not in response.text


def test_an_error_in_mid_stream_is_an_event_and_then_the_end(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, service, [Started("fake", 3, 1), Delta("a"), EngineError("broken")])
    told = events(service.post(body(stream=True), PATH).text)
    assert [event["type"] for event in told[-5:]] == [
        "error",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.failed",
    ]
    assert told[-5]["error"]["message"] == "broken"
    assert told[-1]["response"]["status"] == "failed"


def test_openais_package_raises_an_error_in_mid_stream(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, service, [Started("fake", 3, 1), Delta("a"), EngineError("broken")])
    transport = httpx2.Client(verify=False, trust_env=False)
    with openai.OpenAI(
        base_url=f"{service.base_url}/v1", api_key="none", max_retries=0, http_client=transport
    ) as client:
        stream = client.responses.create(model="fake", input="hi", stream=True)
        with pytest.raises(openai.APIError, match="broken"):
            list(stream)


def test_an_error_in_a_whole_answer_is_a_status(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, service, [Started("fake", 3, 1), Delta("a"), EngineError("broken")])
    assert error_of(service.post(body(), PATH), 500)["code"] == "engine_error"


def test_an_answer_can_be_sent_back(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    end = Finished(FinishReason.TOOL_CALLS, None, Usage(1, 0, 1), Timings(0, 0, 0, 0, 0))
    call = ToolCallDelta(0, "{}", "call_1", "look")
    requests = script(
        monkeypatch,
        service,
        [Started("fake", 1, 1), Delta("I look."), call, end],
        [Started("fake", 1, 1), end],
    )
    first = ok(service.post(body(tools=[TOOL]), PATH))
    result = {"type": "function_call_output", "call_id": "call_1", "output": "seen"}
    history = [{"role": "user", "content": "hi"}, *first["output"], result]
    ok(service.post(body(input=history, tools=[TOOL]), PATH))
    messages = requests[1].messages
    assert messages
    assert [message.role for message in messages] == ["user", "assistant", "tool"]
    assert messages[1].content == "I look."
    assert messages[1].tool_calls[0].id == messages[2].tool_call_id == "call_1"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_slot(stream: bool) -> None:
    with fake_service(gated=True) as service:
        asked = raw_inference(body(stream=stream, max_output_tokens=1000), PATH)
        with service.connect(asked) as connection:
            wait_until(lambda: service.gateway.num_active == 1)
            service.step()
            wait_until(lambda: service.num_running == 1)
            if stream:
                assert connection.recv(65536)
        wait_until(lambda: service.gateway.num_active == 0)
        service.step(2)
        wait_until(lambda: service.num_running == 0)
        assert service.metric("llmserve_requests_total", outcome="disconnected") == 1


# -- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ResponsesRequest, [ResponseCreateParamsBase]),
        (wire.Reasoning, [ReasoningParam]),
        (wire.TextConfig, [types.ResponseTextConfigParam]),
        (wire.TextFormat, [types.ResponseFormatTextJSONSchemaConfigParam]),
        (wire.FunctionTool, [types.FunctionToolParam]),
        (wire.NamedChoice, [types.ToolChoiceFunctionParam]),
        (wire.AllowedChoice, [types.ToolChoiceAllowedParam]),
        (wire.MessageItem, [types.EasyInputMessageParam, types.ResponseOutputMessageParam]),
        (wire.FunctionCallItem, [types.ResponseFunctionToolCallParam]),
        (wire.FunctionCallOutputItem, [response_input_item_param.FunctionCallOutput]),
        (wire.ReasoningItem, [types.ResponseReasoningItemParam]),
        (
            wire.ContentPart,
            [
                types.ResponseInputTextParam,
                types.ResponseInputImageParam,
                types.ResponseInputFileParam,
                types.ResponseOutputTextParam,
                types.ResponseOutputRefusalParam,
            ],
        ),
    ],
)
def test_every_field_of_the_package_is_known(ours: Any, theirs: list[Any]) -> None:
    """Each is honoured, inert, or refused by its name: none is merely unknown."""
    known = {*ours.__struct_encode_fields__, ours.__struct_config__.tag_field}
    assert {name for each in theirs for name in get_type_hints(each)} <= known


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, SamplingParams(temperature=1.0)),
        ({"temperature": 0.5, "top_p": 0.5}, SamplingParams(temperature=0.5, top_p=0.5)),
        ({"top_k": 3, "min_p": 0.5}, SamplingParams(temperature=1.0, top_k=3, min_p=0.5)),
    ],
)
def test_sampling_fields_reach_core(fields: dict[str, Any], sampling: SamplingParams) -> None:
    assert converted(**fields).sampling == sampling


def test_other_fields_reach_core() -> None:
    asked = converted(
        model="m", max_output_tokens=7, stop="x", seed=-1, reasoning={"effort": "high"}
    )
    assert asked.model == "m"
    assert asked.max_tokens == 7
    assert asked.stop == ("x",)
    assert asked.seed == 2**64 - 1
    assert asked.reasoning_effort == "high"


@pytest.mark.parametrize(
    ("fields", "num_logprobs"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
        ({"include": ["reasoning.encrypted_content"]}, None),
    ],
)
def test_logprobs_reach_core(fields: dict[str, Any], num_logprobs: int | None) -> None:
    assert converted(**fields).num_logprobs == num_logprobs


@pytest.mark.parametrize(
    ("format_", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json")),
        (
            {"type": "json_schema", "name": "n", "schema": {"a": [1.0]}, "strict": False},
            Constraint("json_schema", '{"a":[1.0]}'),
        ),
    ],
)
def test_text_format_reaches_core(format_: Any, constraint: Constraint | None) -> None:
    assert converted(text={"format": format_}).constraint == constraint


LOOK = Tool("look", None, '{"type":"object"}')
SEE = Tool("see")
SEE_WIRE = {"type": "function", "name": "see", "parameters": None}


@pytest.mark.parametrize(
    ("fields", "tool_use"),
    [
        ({}, None),
        ({"tools": [], "tool_choice": "auto"}, None),
        ({"tools": [TOOL]}, ToolUse((LOOK,))),
        ({"tools": [TOOL], "tool_choice": "none"}, ToolUse((LOOK,), "none")),
        (
            {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
            ToolUse((LOOK,), "required", None, False),
        ),
        (
            {"tools": [TOOL, SEE_WIRE], "tool_choice": {"type": "function", "name": "see"}},
            ToolUse((LOOK, SEE), "required", "see"),
        ),
        (
            {
                "tools": [TOOL, SEE_WIRE],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "see"}],
                },
            },
            ToolUse((SEE,), "required"),
        ),
    ],
)
def test_tools_reach_core(fields: dict[str, Any], tool_use: ToolUse | None) -> None:
    assert converted(**fields).tool_use == tool_use


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("service_tier", "auto"),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
        ("prompt_cache_retention", "24h"),
        ("prompt_cache_options", {"mode": "implicit"}),
        ("max_tool_calls", 3),
        ("stream_options", {"include_obfuscation": False}),
        ("background", False),
        ("truncation", "disabled"),
        ("include", ["reasoning.encrypted_content", "file_search_call.results"]),
        ("text", {"verbosity": "medium"}),
    ],
)
def test_fields_that_change_nothing_are_accepted(name: str, value: Any) -> None:
    assert converted(**{name: value}) == converted()


@pytest.mark.parametrize(
    "name", [name for name in ResponsesRequest.__struct_fields__ if name != "input"]
)
def test_null_is_as_good_as_nothing(name: str) -> None:
    assert converted(**{name: None}) == converted()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"background": 0}, "background", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", None),
        ({"access_programs": {"cyber": "standard"}}, "access_programs", None),
        ({"image": {"context_compression": "auto"}}, "image", "unsupported_parameter"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"reasoning": {"summary": "concise"}}, "reasoning.summary", "unsupported_parameter"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "unsupported_parameter"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"max_tokens": 2}, "max_tokens", "unknown_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata[...]", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": None}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", None),
        ({"tools": [{"action": 1, "type": "web_search"}]}, "tools[0].type", None),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"name": "x"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [{**TOOL, "colour": 1}]}, "tools[0].colour", "unknown_parameter"),
        ({"tools": [{**TOOL, "parameters": []}]}, "tools[0].parameters", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "a"}}, "tool_choice", "invalid_value"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "a"}},
            "tool_choice.name",
            "invalid_value",
        ),
        ({"tools": [TOOL, TOOL]}, "tools[1].name", "invalid_value"),
        ({"tools": [{**TOOL, "async": True}]}, "tools[0].async", "unsupported_parameter"),
        (
            {"ignore_eos": False, "tools": [{**TOOL, "parameters": {"$ref": "#/x"}}]},
            "tools[0].parameters",
            "invalid_value",
        ),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "invalid_value"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": 1}}},
            "text.format.schema",
            "invalid_value",
        ),
        (
            {
                "ignore_eos": False,
                "text": {"format": {"type": "json_schema", "schema": {"$ref": "#/x"}}},
            },
            "text.format.schema",
            "invalid_value",
        ),
        (
            {"stop": "x", "ignore_eos": False, "text": {"format": {"type": "json_object"}}},
            "stop",
            "invalid_value",
        ),
        ({"input": "x" * 5000}, "input", "context_length_exceeded"),
    ],
)
def test_a_refusal_names_the_field(
    service: FakeService, fields: dict[str, Any], param: str, code: str | None
) -> None:
    error = error_of(service.post(body(**fields), PATH), 400)
    assert error["param"] == param
    assert error["code"] == (code or "unsupported_parameter")
    assert error["type"] == "invalid_request_error"


def test_an_unknown_model(service: FakeService) -> None:
    assert error_of(service.post(body(model="gpt-9"), PATH), 404)["code"] == "model_not_found"


def test_bytes_that_are_no_text_do_not_come_back(service: FakeService) -> None:
    for part in (b'"text":{"format":{"type":"text","schema":{"a":"\xff"}}}', b'"tools":["\xff"]'):
        with service.client() as client:
            response = client.post(PATH, content=b'{"input":"hi","max_output_tokens":1,%b}' % part)
        assert response.status_code == 400
