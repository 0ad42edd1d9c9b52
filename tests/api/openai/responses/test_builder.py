"""Scripted events of core -> the events of a response, which OpenAI's own models take."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llmserve.api.http.errors import ErrorBody
from llmserve.api.openai.responses.builder import ResponseBuilder
from llmserve.api.openai.responses.output_items import Part
from llmserve.api.openai.responses.request import to_core, to_echo
from llmserve.api.openai.responses.schemas import ResponsesRequest
from llmserve.core import (
    Delta,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    SampledLogprob,
    Started,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

STARTED = Started("m", 3, 7)
TOKEN = TokenLogprob(65, b"A", -0.5)
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def end(reason: FinishReason = FinishReason.STOP) -> Finished:
    return Finished(reason, None, Usage(3, 1, 5), Timings(0, 0, 0, 0, 0))


def builder(wants_summary: bool = False, **fields: Any) -> ResponseBuilder:
    body = msgspec.json.encode({"input": "x", **fields})
    wire = msgspec.json.decode(body, type=ResponsesRequest)
    return ResponseBuilder(to_echo(wire, to_core(wire)), wants_summary=wants_summary)


def told(building: ResponseBuilder, *events: Event) -> list[dict[str, Any]]:
    """The events on the wire, after checking that OpenAI's package knows all they have."""
    wire = [event for each in events for event in building.push(each)]
    return decoded(wire)


def decoded(wire: list[Any]) -> list[dict[str, Any]]:
    found = msgspec.json.decode(msgspec.json.encode(wire))
    for event in found:
        model = STREAM_EVENT.validate_python(event)
        assert model.type == event["type"]
        if "response" in event:
            Response.model_validate(event["response"])
    return found  # type: ignore[no-any-return]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# -- the order -----------------------------------------------------------------------------------


def test_a_message() -> None:
    events = told(builder(), STARTED, Delta("Hel"), Delta("lo"), end())
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert events[2]["item"]["content"] == []
    assert events[2]["item"]["status"] == "in_progress"
    assert [events[4]["delta"], events[5]["delta"]] == ["Hel", "lo"]
    assert events[6]["text"] == events[7]["part"]["text"] == "Hello"
    item_id = events[2]["item"]["id"]
    assert item_id.startswith("msg_")
    assert all(event["item_id"] == item_id for event in events[3:8])
    response = events[-1]["response"]
    assert response["output"] == [events[8]["item"]]
    assert response["status"] == "completed"
    assert response["completed_at"] >= response["created_at"]
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8,
    }


def test_what_was_told_first_does_not_change() -> None:
    building = builder()
    created = building.push(STARTED)[0]
    before = msgspec.json.encode(created)
    told(building, Delta("x"), end())
    assert msgspec.json.encode(created) == before
    assert b'"model":"m"' in before
    assert b'"status":"in_progress"' in before


def test_thoughts_words_and_calls_are_items_of_their_own() -> None:
    events = told(
        builder(),
        STARTED,
        ReasoningDelta("Hm"),
        ReasoningDelta("m."),
        Delta("I look."),
        ToolCallDelta(0, "", "call_a", "look"),
        ToolCallDelta(0, '{"a":'),
        ToolCallDelta(0, "1}"),
        ToolCallDelta(1, "{}", "call_b", "see"),
        end(FinishReason.TOOL_CALLS),
    )
    assert types(events)[2:-1] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    thought, message, first, second = events[-1]["response"]["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert thought["summary"] == []
    assert message["content"][0]["text"] == "I look."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "look", '{"a":1}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("call_b", "see", "{}")
    assert len({item["id"] for item in (thought, message, first, second)}) == 4
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2, 3]
    assert added[2]["item"]["arguments"] == ""
    assert events[-1]["response"]["status"] == "completed"


def test_thoughts_as_a_summary() -> None:
    events = told(builder(wants_summary=True), STARTED, ReasoningDelta("Hm"), Delta("x"), end())
    assert types(events)[3:7] == [
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]
    thought = events[-1]["response"]["output"][0]
    assert thought["summary"] == [{"type": "summary_text", "text": "Hm"}]
    assert thought["content"] == []


def test_logprobs_are_in_the_deltas_and_in_the_item() -> None:
    delta = Delta("A", (SampledLogprob(TOKEN, (TOKEN,)),))
    events = told(builder(top_logprobs=1), STARTED, delta, delta, end())
    token = {"token": "A", "logprob": -0.5, "bytes": [65]}
    expected = {**token, "top_logprobs": [token]}
    assert events[4]["logprobs"] == events[5]["logprobs"] == [expected]
    assert events[6]["logprobs"] == [expected, expected]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [expected, expected]


# -- ends ----------------------------------------------------------------------------------------


def test_an_answer_cut_by_its_length_is_incomplete() -> None:
    last = told(builder(), STARTED, ReasoningDelta("a"), Delta("b"), end(FinishReason.LENGTH))[-1]
    assert last["type"] == "response.incomplete"
    response = last["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["completed_at"] is None


def test_an_answer_cut_by_the_servers_end_has_failed() -> None:
    last = told(builder(), STARTED, Delta("b"), end(FinishReason.CANCELLED))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert last["response"]["output"][0]["content"][0]["text"] == "b"
    assert last["response"]["usage"]["output_tokens"] == 5


@pytest.mark.parametrize("thoughts", [[], [ReasoningDelta("a")]])
def test_there_is_always_a_message_or_a_call(thoughts: list[Part]) -> None:
    response = told(builder(), STARTED, *thoughts, end())[-1]["response"]
    assert response["output"][-1]["type"] == "message"
    assert response["output"][-1]["content"][0]["text"] == ""
    called = [ToolCallDelta(0, "{}", "id", "name")]
    response = told(builder(), STARTED, *thoughts, *called, end())[-1]["response"]
    assert response["output"][-1]["type"] == "function_call"
    assert len(response["output"]) == len(thoughts) + 1


def test_a_failure() -> None:
    building = builder()
    before = told(building, STARTED, Delta("x"))
    events = decoded(building.fail(ErrorBody("server_error", "engine_error", "broken", "p")))
    assert [event["sequence_number"] for event in events] == [
        len(before) + i for i in range(len(events))
    ]
    assert events[0] == {
        "type": "error",
        "sequence_number": len(before),
        "code": "engine_error",
        "message": "broken",
        "param": "p",
        "error": {
            "type": "server_error",
            "code": "engine_error",
            "message": "broken",
            "param": "p",
        },
    }
    last = events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "broken"}
    assert last["response"]["output"][0]["status"] == "incomplete"


# -- whatever a model does -----------------------------------------------------------------------


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    """Thoughts, words and calls in any order; each call's pieces together, as parsers give them."""
    found: list[Part] = []
    num_calls = 0
    for kind in draw(st.lists(st.sampled_from(["think", "talk", "call"]), max_size=8)):
        text = draw(st.text("aé\n", max_size=3))
        match kind:
            case "think":
                found.append(ReasoningDelta(text or "."))
            case "talk":
                found.append(Delta(text))
            case _:
                found.append(ToolCallDelta(num_calls, text, f"call_{num_calls}", "name"))
                found += [
                    ToolCallDelta(num_calls, piece)
                    for piece in draw(st.lists(st.text("aé\n", max_size=3), max_size=2))
                ]
                num_calls += 1
    return found


@given(parts(), st.booleans(), st.sampled_from(FinishReason))
def test_deltas_add_up_to_the_items_and_the_items_to_the_response(
    given_parts: list[Part], wants_summary: bool, reason: FinishReason
) -> None:
    events = told(builder(wants_summary), STARTED, *given_parts, end(reason))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    grown: dict[str, str] = {}
    done: list[Any] = []
    for event in events:
        match event["type"].removeprefix("response.").rpartition("."):
            case ("output_item", _, "added"):
                assert event["output_index"] == len(done)
                grown[event["item"]["id"]] = ""
            case ("output_item", _, "done"):
                done.append(event["item"])
            case (_, _, "delta"):
                assert event["item_id"] not in [item["id"] for item in done]
                grown[event["item_id"]] += event["delta"]
    response = events[-1]["response"]
    assert response["output"] == done
    assert [_text(item) for item in done] == list(grown.values())
    words = "".join(part.text for part in given_parts if isinstance(part, Delta))
    assert Response.model_validate(response).output_text == words


def _text(item: dict[str, Any]) -> str:
    if item["type"] == "function_call":
        return item["arguments"]  # type: ignore[no-any-return]
    parts = item["content"] or item["summary"]
    assert len(parts) == 1
    return parts[0]["text"]  # type: ignore[no-any-return]
