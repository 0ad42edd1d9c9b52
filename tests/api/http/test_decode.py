from typing import Any

import msgspec
import pytest

from llmserve.api.http.decode import decode_body
from llmserve.api.native.schemas import InferenceRequest
from llmserve.errors import InvalidRequestError


def refusal(body: bytes | dict[str, Any]) -> InvalidRequestError:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    with pytest.raises(InvalidRequestError) as caught:
        decode_body(data, InferenceRequest)
    return caught.value


def parameter(name: str, value: Any) -> dict[str, Any]:
    return {"prompt": "x", "parameters": {name: value}}


# -- wrong values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "a number from 0 to 2"),
        ("temperature", 2.1, "a number from 0 to 2"),
        ("temperature", "hot", "a number from 0 to 2"),
        ("temperature", True, "a number from 0 to 2"),
        ("max_tokens", 0, "an integer from 1 to 2147483647"),
        ("max_tokens", 1.5, "an integer from 1 to 2147483647"),
        ("max_tokens", 2**31, "an integer from 1 to 2147483647"),
        ("max_tokens", 2**64, "an integer from 1 to 2147483647"),
        ("max_tokens", 10**400, "an integer from 1 to 2147483647"),
        ("top_p", 0, "a number above 0 and at most 1"),
        ("top_p", 1.01, "a number above 0 and at most 1"),
        ("frequency_penalty", -2.1, "a number from -2 to 2"),
        ("frequency_penalty", 2.1, "a number from -2 to 2"),
        ("presence_penalty", -2.1, "a number from -2 to 2"),
        ("presence_penalty", 2.1, "a number from -2 to 2"),
        ("seed", -1, "an integer from 0 to 9223372036854775807"),
        ("seed", 2**63, "an integer from 0 to 9223372036854775807"),
        ("seed", "1", "an integer from 0 to 9223372036854775807"),
        ("top_k", -1, "an integer from 0 to 2147483647"),
        ("min_p", 1.5, "a number from 0 to 1"),
        ("ignore_eos", 1, "true or false"),
        ("logit_bias", [], "an object of at most 1024 entries"),
        ("stop", 7, "a string of 1 to 1024 characters or an array of at most 16 items"),
        ("stop", "", "a string of 1 to 1024 characters or an array of at most 16 items"),
        ("stop", ["x"] * 17, "a string of 1 to 1024 characters or an array of at most 16 items"),
    ],
)
def test_a_wrong_parameter_is_told_with_its_path_value_and_range(
    name: str, value: Any, allowed: str
) -> None:
    error = refusal(parameter(name, value) if value != 10**400 else _huge(name))
    path = f"parameters.{name}"
    assert error.param == path
    assert error.message.startswith(f"{path} is ")
    assert f"it must be {allowed}" in error.message
    if not isinstance(value, list) and value not in (2**64, 10**400):
        assert f"is {msgspec.json.encode(value).decode()};" in error.message
    assert len(error.message) < 400


def _huge(name: str) -> bytes:
    """An integer that Python itself refuses to print."""
    return b'{"prompt": "x", "parameters": {"%s": %s}}' % (name.encode(), b"1" * 5000)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": 7, "prompt": "x"}, "model is 7; it must be a string"),
        ({"prompt": ["x"]}, 'prompt is ["x"]; it must be a string'),
        ({"prompt": "x", "mode": "poem"}, 'mode is "poem"; it must be one of'),
        ({"prompt": "x", "stream": "yes"}, 'stream is "yes"; it must be true or false'),
        ({"prompt": "x", "parameters": []}, "parameters is []; it must be an object"),
        ({"messages": []}, "messages is []; it must be an array of 1 to 4096 items, each an"),
        ({"messages": [{"role": 1, "content": ""}]}, "messages[0].role is 1; it must be a string"),
        ({"messages": [{"role": "", "content": ""}]}, 'messages[0].role is ""; it must be'),
        (b"[]", "the body is []; it must be an object"),
        (b"null", "the body is null; it must be an object"),
        (b'"x"', 'the body is "x"; it must be an object'),
        (parameter("stop", ["x", ""]), 'parameters.stop[1] is ""; it must be a string of 1 to'),
        (parameter("logit_bias", {"5": 101}), "it must be a number from -100 to 100"),
        (parameter("logit_bias", {"x": 1}), "a key of parameters.logit_bias is wrong"),
        (parameter("logit_bias", {"-1": 1}), "a key of parameters.logit_bias is wrong"),
    ],
)
def test_a_wrong_field_is_told_with_its_path_and_what_it_must_be(
    body: bytes | dict[str, Any], message: str
) -> None:
    assert message in refusal(body).message


def test_a_mode_lists_all_modes() -> None:
    message = refusal({"prompt": "x", "mode": "poem"}).message
    assert all(mode in message for mode in ("completion", "instruct", "chat"))


def test_a_long_wrong_value_is_shortened() -> None:
    message = refusal({"prompt": ["x" * 10_000]}).message
    assert len(message) < 200
    assert "…" in message


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "hint"),
    [
        (parameter("max_token", 5), "parameters.max_token", "did you mean max_tokens?"),
        ({"promt": "x"}, "promt", "did you mean prompt?"),
        ({"prompt": "x", "zzz": 1}, "zzz", "the fields are: model, prompt, messages, mode"),
        (
            {"messages": [{"role": "u", "content": "", "contents": 1}]},
            "messages[0].contents",
            "did you mean content?",
        ),
    ],
)
def test_an_unknown_field_is_refused_with_a_suggestion(
    body: dict[str, Any], param: str, hint: str
) -> None:
    error = refusal(body)
    assert error.param == param
    assert f"there is no field {param}; {hint}" in error.message


def test_a_missing_field_is_named() -> None:
    error = refusal({"messages": [{"role": "user"}]})
    assert error.param == "messages[0].content"
    assert error.message == "messages[0].content is missing"


@pytest.mark.parametrize(
    "name", ["a`b", "a\nb", "", " - at `$.x`", "x` - at `key` in `$.parameters", "\x00", "$", "."]
)
def test_a_strange_field_name_is_only_an_unknown_field(name: str) -> None:
    assert "there is no field" in refusal({"prompt": "x", name: 1}).message


def test_a_huge_field_name_is_neither_echoed_nor_compared() -> None:
    error = refusal({"prompt": "x", "a" * 1_000_000: 1})
    assert "there is no field aaa" in error.message
    assert len(error.message) < 400
    assert len(error.param or "") < 200


# -- bytes that are not this JSON ----------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"prompt": "x"',
        b'{"prompt": "x"}}',
        b'{"prompt": "x"} {}',
        b"{'prompt': 'x'}",
        b'{"prompt": "\xff"}',
        b"\xff\xfe{}",
        b'\xef\xbb\xbf{"prompt": "x"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00\\ud800"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "x", "parameters": {"temperature": NaN}}',
        b'{"prompt": "x", "parameters": {"temperature": Infinity}}',
        b'{"prompt": "x", "parameters": {"temperature": 01}}',
        b'{"prompt": "x",}',
        b'{"prompt": "a\nb"}',
    ],
)
def test_what_is_not_json_is_refused_as_such(body: bytes) -> None:
    error = refusal(body)
    assert error.message.startswith("the body is not valid JSON: ")
    assert error.param is None


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"parameters":{"logit_bias":' + b'{"1":' * 100_000,
    ],
)
def test_deep_nesting_is_refused(body: bytes) -> None:
    refusal(body)


def test_a_number_beyond_a_float_is_refused() -> None:
    refusal(b'{"prompt": "x", "parameters": {"temperature": 1e999}}')


def test_faults_after_the_first_do_not_matter() -> None:
    assert "temperature is wrong" in refusal(b'{"parameters": {"temperature": 9}, oops').message


@pytest.mark.parametrize("spoiled", [b"5", b"[]", b"[5]", b'"x"', b"{}", b"null", b"true"])
def test_a_repeated_key_does_not_confuse_the_message(spoiled: bytes) -> None:
    for body in (
        b'{"parameters": {"temperature": 9}, "parameters": %s}' % spoiled,
        b'{"messages": [{"role": 5}], "messages": %s}' % spoiled,
        b'{"parameters": {"stop": ["x", 5]}, "parameters": {"stop": %s}}' % spoiled,
    ):
        assert " is " in refusal(body).message


def test_of_a_repeated_key_the_last_counts() -> None:
    assert decode_body(b'{"prompt": "a", "prompt": "b"}', InferenceRequest).prompt == "b"


def test_null_means_not_given() -> None:
    names = InferenceRequest.__struct_fields__
    assert decode_body(msgspec.json.encode(dict.fromkeys(names)), InferenceRequest) == (
        InferenceRequest()
    )
