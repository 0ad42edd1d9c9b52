"""What is sent is what arrives."""

import inspect
from typing import Any

import msgspec
import numpy as np
import pytest

from llmserve import errors
from llmserve.core import (
    Constraint,
    Delta,
    EmbeddingRequest,
    Embeddings,
    Finished,
    FinishReason,
    Message,
    Mode,
    PromptLogprobs,
    Queued,
    ReasoningDelta,
    Request,
    SampledLogprob,
    SamplingParams,
    Started,
    Timings,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolUse,
    Usage,
)
from llmserve.engine.engine import LocalEngine
from llmserve.engine.interface import Engine
from llmserve.process.client import ProcessEngine
from llmserve.process.messages import (
    METHODS,
    Call,
    Fault,
    FromChild,
    Generate,
    Reply,
    Result,
    ToChild,
)

LOGPROB = SampledLogprob(TokenLogprob(1, b"\xff", -0.5), (TokenLogprob(2, b"x", -9.25),))
EVENTS = [
    Started("m", 3, 2**53 - 1),
    Started("m", None, None),
    Queued(2, 0.5),
    PromptLogprobs(b"\x80", (LOGPROB,)),
    Delta("ä", (LOGPROB,)),
    ReasoningDelta("hm"),
    ToolCallDelta(0, "{", "id", "name"),
    Finished(FinishReason.STOP, "x", Usage(1, 0, 2, 1), Timings(0.1, 0.2, 0.3, 0.4, 5.0, 1, 0.5)),
]
REQUESTS = [
    Request(),
    Request(
        model="m",
        messages=(
            Message("user", "hi", name="n"),
            Message("assistant", "", reasoning="r", tool_calls=(ToolCall("i", "f", "{}"),)),
            Message("tool", "42", tool_call_id="i"),
        ),
        mode=Mode.CHAT,
        system="s",
        sampling=SamplingParams(logit_bias={5: -100.0}, top_k=3),
        max_tokens=0,
        stop=("a", "b"),
        seed=7,
        num_logprobs=2,
        constraint=Constraint("json_schema", "{}", "response_format"),
        tool_use=ToolUse((Tool("f", "d", "{}"),), "required", "f", parallel=False),
        template_variables={"a": [1, 2.5, None, {"b": True}]},
    ),
    Request(prompt_tokens=(1, 2), suffix="x", deterministic=True, cache_prompt=False),
]


def through(kind: Any, message: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events(event: Any) -> None:
    assert through(FromChild, Reply(1, event)) == Reply(1, event)


@pytest.mark.parametrize("request_", REQUESTS, ids=["empty", "full", "tokens"])
def test_requests(request_: Request) -> None:
    assert through(ToChild, Generate(1, request_)) == Generate(1, request_)


def called(method: str, **args: Any) -> dict[str, Any]:
    """What comes out of a `Call` over there."""
    call = through(ToChild, Call(1, method, args))
    return METHODS[call.method].arguments(call.args)


def returned(method: str, result: Any) -> Any:
    answer = through(FromChild, Result(1, METHODS[method].pack(result)))
    return METHODS[method].returned(answer.value)


@pytest.mark.parametrize("name", METHODS)
def test_what_can_be_called_is_the_engines(name: str) -> None:
    """By the names of its parameters."""
    for kind in (Engine, LocalEngine, ProcessEngine):
        assert list(inspect.signature(getattr(kind, name)).parameters)[1:] == [*METHODS[name].args]


@pytest.mark.parametrize("request_", REQUESTS, ids=["empty", "full", "tokens"])
def test_calls(request_: Request) -> None:
    assert called("render", request=request_) == {"request": request_}
    words = {"text": "ä", "add_special": True}
    assert called("tokenize", **words) == words
    assert returned("tokenize", [1, 2]) == [1, 2]
    assert returned("detokenize", "ä") == "ä"


def test_embeddings() -> None:
    request = EmbeddingRequest(("a", (1, 2)), dimensions=3)
    assert called("embed", request=request) == {"request": request}
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = returned("embed", Embeddings("m", rows, 4))
    assert (back.model, back.vectors.dtype, back.prompt_tokens) == ("m", np.float32, 4)
    assert np.array_equal(back.vectors, rows)


@pytest.mark.parametrize(
    "kind",
    [each for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "code")],
)
def test_errors_come_back_as_they_were(kind: type[errors.LlmserveError]) -> None:
    error = through(Fault, Fault.of(kind("m", param="p", retry_after_s=3))).error()
    assert type(error) is kind
    assert (error.message, error.param, error.retry_after_s) == ("m", "p", 3)
    assert str(error) == "m"


def test_an_error_from_elsewhere_is_the_nearest_of_ours() -> None:
    class SpecialError(errors.TooLargeError):
        pass

    assert type(Fault.of(SpecialError("m")).error()) is errors.TooLargeError


def test_an_unknown_error_is_one_of_ours_at_least() -> None:
    assert type(Fault("SystemExit", "m").error()) is errors.LlmserveError
