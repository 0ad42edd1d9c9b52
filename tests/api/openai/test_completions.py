"""POST /v1/completions over a fake model."""

from typing import Any

import msgspec
import pytest

from llmserve.api.openai.completions import LogprobsEncoder, to_core, to_prompts
from llmserve.api.schemas.openai_completions import CompletionRequest
from llmserve.core import (
    Delta,
    Finished,
    FinishReason,
    Mode,
    Request,
    SampledLogprob,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from tests.api.openai.helpers import (
    COMPLETIONS,
    chunks,
    completion,
    error_of,
    expected,
    ok,
    script,
)
from tests.serving import FakeService


def converted(**fields: Any) -> list[Request]:
    wire = msgspec.json.decode(msgspec.json.encode(fields), type=CompletionRequest)
    return to_core(wire, to_prompts(wire))


def events(text: str, num_prompt: int = 2) -> list[Any]:
    usage = Usage(num_prompt, 0, len(text))
    finished = Finished(FinishReason.STOP, None, usage, Timings(0, 0, 0, 0, 0))
    return [Started("fake", num_prompt, 1), Delta(text), finished]


def test_an_answer_has_exactly_these_fields(service: FakeService) -> None:
    body = ok(service.post(completion(), COMPLETIONS))
    assert body.pop("id").startswith("cmpl-")
    assert body.pop("system_fingerprint").startswith("fp_")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": "fake",
        "choices": [
            {
                "text": expected("hello"),
                "index": 0,
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 4,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_sixteen_tokens_unless_told_otherwise(service: FakeService) -> None:
    request = {"prompt": "hello", "ignore_eos": True}
    assert ok(service.post(request, COMPLETIONS))["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        ("ab", [{"prompt": "ab"}]),
        (["ab"], [{"prompt": "ab"}]),
        (["ab", "c"], [{"prompt": "ab"}, {"prompt": "c"}]),
        ([1, 2], [{"prompt_tokens": (1, 2)}]),
        ([[1, 2]], [{"prompt_tokens": (1, 2)}]),
        ([[1, 2], [3]], [{"prompt_tokens": (1, 2)}, {"prompt_tokens": (3,)}]),
    ],
)
def test_the_forms_of_a_prompt(prompt: Any, fields: list[dict[str, Any]]) -> None:
    requests = converted(prompt=prompt)
    assert all(request.mode is Mode.COMPLETION for request in requests)
    assert all(request.max_tokens == 16 for request in requests)
    assert [(r.prompt, r.prompt_tokens) for r in requests] == [
        (f.get("prompt"), f.get("prompt_tokens")) for f in fields
    ]


def test_choices_are_prompt_major(service: FakeService) -> None:
    prompts = ["hello", "again"]
    request = completion(prompts, n=2, seed=5, temperature=1)
    body = ok(service.post(request, COMPLETIONS))
    alone = [
        ok(service.post(completion(prompt, seed=seed, temperature=1), COMPLETIONS))
        for prompt in prompts
        for seed in (5, 6)
    ]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == [
        each["choices"][0]["text"] for each in alone
    ]
    assert body["usage"]["prompt_tokens"] == 10
    assert body["usage"]["completion_tokens"] == 16
    received = chunks(service.post({**request, "stream": True}, COMPLETIONS))
    texts = [""] * 4
    for event in received:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in body["choices"]]


def test_echo(service: FakeService) -> None:
    prompts = ["hello", "again"]
    wanted = [prompt + expected(prompt) for prompt in prompts for _ in range(2)]
    request = completion(prompts, echo=True, n=2)
    choices = ok(service.post(request, COMPLETIONS))["choices"]
    assert [choice["text"] for choice in choices] == wanted
    texts = [""] * 4
    for event in chunks(service.post({**request, "stream": True}, COMPLETIONS)):
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == wanted


def test_echo_of_tokens(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = script(monkeypatch, service, events("!"), events("?"))
    request = completion([list(b"ab"), [0xC3, 0xA9]], echo=True)
    choices = ok(service.post(request, COMPLETIONS))["choices"]
    assert [choice["text"] for choice in choices] == ["ab!", "é?"]
    assert [request.prompt_tokens for request in requests] == [(97, 98), (0xC3, 0xA9)]
    error = error_of(service.post(completion([257], echo=True), COMPLETIONS), 400)
    assert error["param"] == "prompt"


def test_the_order_of_a_stream(service: FakeService) -> None:
    request = completion(stream=True, stream_options={"include_usage": True})
    *received, last = chunks(service.post(request, COMPLETIONS))
    assert all(event["object"] == "text_completion" for event in received)
    assert all(event["usage"] is None for event in received)
    assert "".join(event["choices"][0]["text"] for event in received) == expected("hello")
    reasons = [event["choices"][0]["finish_reason"] for event in received]
    assert reasons == [None] * (len(received) - 1) + ["length"]
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 9


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_value"),
        ({"prompt": [[1], 1]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
        ({"prompt": ["a"] * 65}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 64, "n": 3}, "n", "invalid_value"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"best_of": 1, "n": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"n": 17}, "n", "invalid_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
    ],
)
def test_a_refusal_names_the_field(
    service: FakeService, fields: dict[str, Any], param: str, code: str
) -> None:
    error = error_of(service.post({**completion(), **fields}, COMPLETIONS), 400)
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code), error["message"]


def test_many_tokens_are_one_prompt() -> None:
    (request,) = converted(prompt=[1] * 1000)
    assert request.prompt_tokens == (1,) * 1000


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 3, "n": 3}, {"suffix": ""}])
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    requests = converted(prompt="x", **fields)
    assert all(request == converted(prompt="x")[0] for request in requests)


ALL_FIELDS = [name for name in CompletionRequest.__struct_fields__ if name != "prompt"]


@pytest.mark.parametrize("name", ALL_FIELDS)
def test_null_is_as_good_as_nothing(name: str) -> None:
    assert converted(prompt="x", **{name: None}) == converted(prompt="x")


# -- log probabilities ---------------------------------------------------------------------------


def sampled(text: bytes, value: float, *top: tuple[bytes, float]) -> SampledLogprob:
    return SampledLogprob(
        TokenLogprob(1, text, value), tuple(TokenLogprob(1, *each) for each in top)
    )


SAMPLED = [
    sampled(b"ab", -0.5, (b"x", -0.25), (b"ab", -0.5)),
    sampled(b"\xc3", -1.0, (b"x", -0.25)),
    sampled(b"\xa9", -2.0),
    sampled(b"c", -3.0),
]
LEGACY = {
    "tokens": ["ab", "bytes:\\xc3", "bytes:\\xa9", "c"],
    "token_logprobs": [-0.5, -1.0, -2.0, -3.0],
    "top_logprobs": [
        {"x": -0.25, "ab": -0.5},
        {"x": -0.25, "bytes:\\xc3": -1.0},
        {"bytes:\\xa9": -2.0},
        {"c": -3.0},
    ],
    "text_offset": [0, 2, 3, 3],
}


def test_the_legacy_lists() -> None:
    assert msgspec.to_builtins(LogprobsEncoder().encode(SAMPLED)) == LEGACY


def test_logprobs_of_an_answer_and_of_a_stream(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, _, finished = events("ab")
    answer = [started, Delta("ab", tuple(SAMPLED[:2])), Delta("éc", tuple(SAMPLED[2:])), finished]
    requests = script(monkeypatch, service, answer, answer)
    body = ok(service.post(completion(logprobs=2), COMPLETIONS))
    assert requests[0].num_logprobs == 2
    assert body["choices"][0]["logprobs"] == LEGACY
    parts = [
        logprobs
        for event in chunks(service.post(completion(logprobs=2, stream=True), COMPLETIONS))
        if (logprobs := event["choices"][0]["logprobs"])
    ]
    assert len(parts) == 2
    joined = {name: parts[0][name] + parts[1][name] for name in LEGACY}
    assert joined == LEGACY
