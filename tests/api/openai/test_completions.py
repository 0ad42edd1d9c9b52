"""POST /v1/completions over a fake model."""

from typing import Any

import msgspec
import pytest

from llmserve.api.openai.completions import to_core, to_prompts
from llmserve.api.openai.schemas import CompletionRequest
from llmserve.core import (
    Delta,
    Finished,
    FinishReason,
    Mode,
    Request,
    Started,
    Timings,
    Usage,
)
from llmserve.engine.runtime import InfillTokens
from tests.api.openai.helpers import (
    COMPLETIONS,
    chunks,
    completion,
    error_of,
    expected,
    ok,
    script,
)
from tests.api.openai.test_logprobs import LEGACY, SAMPLED, sampled
from tests.engine.worker.test_worker import expected_logprobs
from tests.serving import FakeService, fake_service


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
        ({"prompt": ["a"] * 64, "best_of": 3}, "best_of", "invalid_value"),
        ({"suffix": "x"}, "suffix", "invalid_value"),
        ({"suffix": "x", "echo": True, "logprobs": 1}, "suffix", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"best_of": 17}, "best_of", "invalid_value"),
        ({"best_of": 0}, "best_of", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1, "echo": True}, "max_tokens", "invalid_value"),
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


# -- the prompt's log probabilities --------------------------------------------------------------


def check_scores(logprobs: dict[str, Any], text: str, num_tokens: int) -> None:
    """Of the fake, whose tokens are bytes: all is there, and says what its own logits say."""
    tokens = list(text.encode())
    assert logprobs["tokens"] == list(text), "choose a prompt whose answer is ASCII"
    assert logprobs["text_offset"] == list(range(num_tokens))
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert logprobs["token_logprobs"][1:] == pytest.approx(
        expected_logprobs(tokens[:1], tokens[1:]), abs=1e-5
    )
    for value, top in zip(
        logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
    ):
        assert value in top.values()
        assert 2 <= len(top) <= 3


ASCII_ONLY = dict.fromkeys(map(str, range(128, 257)), -100.0)


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
@pytest.mark.parametrize("prompt", ["hello", list(b"hello")])
def test_echo_with_logprobs(service: FakeService, prompt: Any, max_tokens: int) -> None:
    request = completion(
        prompt, echo=True, logprobs=2, max_tokens=max_tokens, logit_bias=ASCII_ONLY
    )
    body = ok(service.post(request, COMPLETIONS))
    (choice,) = body["choices"]
    assert choice["text"].startswith("hello")
    assert len(choice["text"]) == 5 + max_tokens
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == max_tokens
    check_scores(choice["logprobs"], choice["text"], 5 + max_tokens)
    parts = chunks(service.post({**request, "stream": True}, COMPLETIONS))
    assert "".join(part["choices"][0]["text"] for part in parts) == choice["text"]
    joined: dict[str, list[Any]] = {name: [] for name in choice["logprobs"]}
    for part in parts:
        for name, values in (part["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined == choice["logprobs"]


def test_the_request_of_lm_eval(service: FakeService) -> None:
    """A batch of token-id prompts; it takes the entries from the context's end to the last."""
    prompts = [list(b"hello"), list(b"again and again"), [256], list(b"xy")]
    request = {
        "model": "fake",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    body = ok(service.post(request, COMPLETIONS))
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        values = choice["logprobs"]["token_logprobs"]
        assert len(values) == len(prompt) + 1, "one more for the generated token, even for an end"
        assert values[1:-1] == pytest.approx(expected_logprobs(prompt[:1], prompt[1:]), abs=1e-5)


def test_nothing_but_an_echo(service: FakeService) -> None:
    body = ok(service.post(completion("hello", echo=True, max_tokens=0), COMPLETIONS))
    (choice,) = body["choices"]
    assert (choice["text"], choice["logprobs"]) == ("hello", None)
    assert body["usage"]["completion_tokens"] == 0


# -- best_of -------------------------------------------------------------------------------------


def test_the_best_have_the_highest_log_probability_per_token(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(text: str, *values: float) -> list[Any]:
        started, _, finished = events(text)
        return [started, Delta(text, tuple(sampled(b"x", v) for v in values)), finished]

    # The sum would prefer the short one, an empty answer has no mean.
    streams = [answer("short", -1.0), answer("longer", -0.75, -0.75), events(""), answer("c", -2.0)]
    requests = script(monkeypatch, service, *streams)
    body = ok(service.post(completion(best_of=4, n=2, seed=7), COMPLETIONS))
    assert [choice["text"] for choice in body["choices"]] == ["longer", "short"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [choice["logprobs"] for choice in body["choices"]] == [None, None]
    assert [request.seed for request in requests] == [7, 8, 9, 10]
    assert body["usage"]["completion_tokens"] == len("shortlongerc")
    assert body["usage"]["prompt_tokens"] == 2


def test_the_best_of_each_prompt(service: FakeService) -> None:
    request = completion(["hello", "again"], best_of=3, seed=1, temperature=1, logprobs=0)
    body = ok(service.post(request, COMPLETIONS))
    best = body["choices"]
    every = ok(service.post({**request, "n": 3}, COMPLETIONS))["choices"]

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values) / len(values))

    assert [choice["index"] for choice in best] == [0, 1]
    assert [mean(c) for c in best] == [max(map(mean, every[:3])), max(map(mean, every[3:]))]
    assert body["usage"]["completion_tokens"] == 6 * 4


# -- suffix --------------------------------------------------------------------------------------


def test_a_suffix_is_for_models_that_fill_in_the_middle() -> None:
    with fake_service(infill=InfillTokens(prefix=1, suffix=2, middle=3)) as service:
        body = ok(service.post(completion("ab", suffix="cd", echo=True), COMPLETIONS))
        plain = expected("\x01ab\x02cd\x03")
        assert body["choices"][0]["text"] == "ab" + plain
        assert body["usage"]["prompt_tokens"] == 7
