"""Keyword arguments -> core.Request."""

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from llmserve.api.native.inference import to_core
from llmserve.api.native.schemas import InferenceRequest, Parameters
from llmserve.core import Constraint, Message, Mode, Request, Tool, ToolCall
from llmserve.errors import InvalidRequestError
from llmserve.library.parameters import (
    ChatParameters,
    PromptParameters,
    chat_request,
    embedding_request,
    prompt_request,
    prompt_requests,
    stream_request,
)
from llmserve.wire.validation import MissingFieldError, UnknownFieldError

USER = [{"role": "user", "content": "Hi"}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SUB = {"type": "function", "function": {"name": "sub", "description": "Subtracts."}}

FORMATS: list[dict[str, Any]] = [
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    {"type": "regex", "regex": "a+"},
    {"type": "grammar", "grammar": 'root ::= "a"'},
    {"type": "grammar", "grammar": 'start: "a"', "syntax": "lark"},
]


def prompt(**given: Any) -> Request:
    return prompt_request("m", "Hi", given)


def chat(messages: Any = USER, **given: Any) -> Request:
    return chat_request("m", messages, given)


def wrong(make: Any, *args: Any, **given: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        make(*args, **given)
    return caught.value


# -- as POST /inference --------------------------------------------------------------------------


def test_a_prompt_has_all_parameters_of_the_native_endpoint() -> None:
    native = {*Parameters.__struct_fields__, *InferenceRequest.__struct_fields__}
    elsewhere = {"model", "prompt", "messages", "stream", "details", "parameters"}
    assert {*PromptParameters.__annotations__} == native - elsewhere


GIVEN: list[dict[str, Any]] = [
    {},
    {"temperature": None, "stop": None, "priority": None, "mode": None},
    {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "frequency_penalty": 1},
    {"presence_penalty": -1, "logit_bias": {5: 2}, "ignore_eos": True, "max_tokens": 7, "seed": 9},
    {"stop": "x"},
    {"stop": ["x", "y"], "mode": "instruct", "system": "Be kind."},
    {"priority": "batch", "deterministic": True, "timeout": 2.5, "mode": "completion"},
    *({"response_format": each} for each in FORMATS),
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_a_prompt_is_the_request_that_post_inference_makes(given: dict[str, Any]) -> None:
    own = Parameters.__struct_fields__
    body = {
        "model": "m",
        "prompt": "Hi",
        "parameters": {key: value for key, value in given.items() if key in own},
        **{key: value for key, value in given.items() if key not in own},
    }
    wire = msgspec.json.decode(msgspec.json.encode(body), type=InferenceRequest)
    assert prompt(**given) == to_core(wire)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 3}, "temperature is 3; it must be a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number from 0 to 2"),
        ({"temperature": math.nan}, "temperature is nan; it must be a number"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be an integer from 1 to 2147483647"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; it must be an integer from 1 to 2147483647"),
        ({"stop": ["a", ""]}, "stop[1] is ''; it must be a string of 1 to 1024 characters"),
        (
            {"logit_bias": {5: 101}},
            "logit_bias[...] is wrong; it must be a number from -100 to 100",
        ),
        ({"mode": "chat"}, "mode is 'chat'; it must be one of completion, instruct"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema is missing",
        ),
        (
            {"response_format": {"type": "regex", "regex": 5}},
            "response_format.regex is 5; it must be a string of 1 to 65536 characters",
        ),
        (
            {"response_format": {"type": "regex", "regex": {1j}}},
            "response_format cannot be written as JSON: Encoding objects of type complex is"
            " unsupported",
        ),
        ({"temprature": 1}, "there is no field temprature; did you mean temperature?"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_told_with_its_value_and_range(
    given: dict[str, Any], message: str
) -> None:
    assert wrong(prompt, **given).message == message


def test_what_goes_with_the_other_input_only() -> None:
    assert isinstance(wrong(prompt, tools=[ADD]), UnknownFieldError)
    assert isinstance(wrong(chat, mode="instruct"), UnknownFieldError)


def test_a_prompt_is_a_string() -> None:
    error = wrong(prompt_request, "m", 5, {})
    assert (error.param, error.message) == ("prompt", "prompt is 5; it must be a string")
    assert wrong(prompt_requests, "m", ["a", b"b"], {}).param == "prompt[1]"


def test_each_prompt_of_a_list_has_the_same_parameters() -> None:
    assert prompt_requests("m", ["a", "b"], {"seed": 1}) == [
        prompt_request("m", text, {"seed": 1}) for text in "ab"
    ]


def test_a_stream_takes_either() -> None:
    assert stream_request("m", "Hi", {"mode": "completion"}).mode is Mode.COMPLETION
    assert stream_request("m", USER, {"tools": [ADD]}).mode is Mode.CHAT


# -- chats ---------------------------------------------------------------------------------------


def test_a_conversation() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    request = chat(
        [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "Add.", "name": "ada"},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Hm."},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            Message("assistant", "It is 2."),
        ],
        reasoning_effort="low",
        template_variables={"enable_thinking": False},
    )
    assert request.messages == (
        Message("system", "Be kind."),
        Message("user", "Add.", name="ada"),
        Message("assistant", "", reasoning="Hm.", tool_calls=(ToolCall("1", "add", '{"a": 1}'),)),
        Message("tool", "2", tool_call_id="1"),
        Message("assistant", "It is 2."),
    )
    assert (request.reasoning_effort, request.mode) == ("low", Mode.CHAT)
    assert request.template_variables == {"enable_thinking": False}
    assert request.tool_use is None


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([], "messages", "give a list"),
        ("Hi", "messages", "'Hi'; give a list"),
        (["Hi"], "messages[0]", "'Hi'; it must be an object"),
        ([{"role": "user"}], "messages[0].content", "is missing"),
        ([{"content": "x"}], "messages[0].role", "is missing"),
        ([*USER, {"role": "bot", "content": "x"}], "messages[1].role", "'bot'; it must be one of"),
        ([{"role": "user", "content": 5}], "messages[0].content", "5; it must be a string"),
        ([{"role": "user", "content": "x", "text": "y"}], "messages[0].text", "there is no field"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id", "which call"),
    ],
)
def test_a_wrong_message_is_named(messages: Any, param: str, words: str) -> None:
    error = wrong(chat, messages)
    assert error.param == param
    assert words in error.message


@pytest.mark.parametrize("arguments", ["", "5", "{", '"x"', "[" * 100_000])
def test_arguments_of_an_earlier_call_are_an_object(arguments: str) -> None:
    call = {"id": "1", "function": {"name": "add", "arguments": arguments}}
    error = wrong(chat, [{"role": "assistant", "tool_calls": [call]}])
    assert error.param == "messages[0].tool_calls[0].function.arguments"
    assert "must be the text of a JSON object" in error.message


def test_tools() -> None:
    use = chat(tools=[ADD, SUB], parallel_tool_calls=False).tool_use
    assert use
    assert use.tools == (Tool("add", None, '{"type":"object"}'), Tool("sub", "Subtracts."))
    assert (use.choice, use.name, use.parallel) == ("auto", None, False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("none", ("none", None)),
        ("auto", ("auto", None)),
        ("required", ("required", None)),
        ("sub", ("required", "sub")),
    ],
)
def test_a_choice_is_a_word_or_a_name(given: str, expected: tuple[str, str | None]) -> None:
    use = chat(tools=[ADD, SUB], tool_choice=given).tool_use
    assert use
    assert (use.choice, use.name) == expected


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"tools": [ADD], "tool_choice": "mul"}, "tool_choice", "'mul'; it must be none, auto"),
        ({"tool_choice": "required"}, "tool_choice", "no tools are given"),
        ({"tools": [ADD, ADD]}, "tools[1].function.name", "rename one"),
        ({"tools": [{"name": "add"}]}, "tools[0].name", "the fields are: function, type"),
        ({"tools": [{"function": {}}]}, "tools[0].function.name", "is missing"),
        ({"tools": "add"}, "tools", "'add'; it must be an array"),
    ],
)
def test_a_wrong_tool_is_named(given: dict[str, Any], param: str, words: str) -> None:
    error = wrong(chat, **given)
    assert error.param == param
    assert words in error.message


def test_a_schema_keeps_its_order() -> None:
    schema = {"properties": {"z": {}, "a": {}}, "type": "object"}
    request = prompt(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert request.constraint == Constraint(
        "json_schema", json.dumps(schema, separators=(",", ":"))
    )


def test_chats_have_what_is_not_about_prompts() -> None:
    both = {*ChatParameters.__annotations__} & {*PromptParameters.__annotations__}
    assert {*PromptParameters.__annotations__} - both == {"mode", "system"}


# -- embeddings ----------------------------------------------------------------------------------


def test_embeddings() -> None:
    request = embedding_request("m", "a", {"dimensions": 3, "timeout": 1})
    assert (request.inputs, request.dimensions, request.timeout_s) == (("a",), 3, 1)
    assert embedding_request("m", ["a", "b"], {}).inputs == ("a", "b")


@pytest.mark.parametrize(
    ("texts", "given", "param"),
    [
        ([], {}, "texts"),
        (["a", 5], {}, "texts[1]"),
        ("a", {"dimensions": 0}, "dimensions"),
        ("a", {"dimension": 1}, "dimension"),
        ("a", {"dimensions": np.array([1])}, "dimensions"),
    ],
)
def test_wrong_embeddings(texts: Any, given: dict[str, Any], param: str) -> None:
    assert wrong(embedding_request, "m", texts, given).param == param


def test_a_missing_field_is_an_error_of_its_own() -> None:
    assert isinstance(wrong(chat, [{"role": "user"}]), MissingFieldError)
