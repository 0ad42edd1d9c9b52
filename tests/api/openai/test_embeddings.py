"""POST /v1/embeddings over the fake."""

import base64
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.api.openai.embeddings import render
from llmserve.core import Embeddings
from llmserve.engine.runtime import EmbeddingLimits
from tests.api.openai.helpers import CHAT, USER, error_of, ok
from tests.api.openai.test_fuzz import check, prompts
from tests.api.test_fuzz import bounded, json_values, some_of, text
from tests.fakes import fake_vector
from tests.serving import FakeService, fake_service, raw_request, wait_until

EMBEDDINGS = "/v1/embeddings"
DIM = 6
LIMITS = EmbeddingLimits(DIM, max_len=64, max_batch=32, max_inputs=4, num_cells=64)


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    with fake_service(embedding=LIMITS) as running:
        yield running


def expected(given: str | Sequence[int], dimensions: int = DIM) -> list[float]:
    tokens = list(given.encode()) if isinstance(given, str) else given
    vector = fake_vector(tokens, DIM)[:dimensions].astype(np.float64)
    return [float(x) for x in vector / np.linalg.norm(vector)]


def vectors(body: dict[str, Any]) -> list[Any]:
    """What the answer has, after checking all that is around it."""
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["object"] == "list"
    assert body["model"] == "fake"
    assert [list(item) for item in body["data"]] == [["object", "index", "embedding"]] * len(
        body["data"]
    )
    assert {item["object"] for item in body["data"]} == {"embedding"}
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    return [item["embedding"] for item in body["data"]]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("hello", ["hello"]),
        (["hello"], ["hello"]),
        (["hello", "you", "hello"], ["hello", "you", "hello"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2, 3], [4]], [[1, 2, 3], [4]]),
        (["x" * (1 + i % 60) for i in range(300)], ["x" * (1 + i % 60) for i in range(300)]),
    ],
)
def test_every_kind_of_input(service: FakeService, given: Any, inputs: list[Any]) -> None:
    body = ok(service.post({"input": given, "model": "default"}, EMBEDDINGS))
    found = vectors(body)
    np.testing.assert_allclose(found, [expected(each) for each in inputs], atol=1e-6)
    num_tokens = sum(map(len, inputs))
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_base64_is_little_endian_float32(service: FakeService) -> None:
    fields = {"input": ["a", "b"], "encoding_format": "base64"}
    encoded = vectors(ok(service.post(fields, EMBEDDINGS)))
    plain = vectors(ok(service.post({**fields, "encoding_format": "float"}, EMBEDDINGS)))
    for data, numbers in zip(encoded, plain, strict=True):
        assert list(struct.unpack(f"<{DIM}f", base64.b64decode(data))) == numbers


def test_dimensions(service: FakeService) -> None:
    fields = {"input": "a", "dimensions": 2, "user": "me", "encoding_format": None}
    (found,) = vectors(ok(service.post(fields, EMBEDDINGS)))
    np.testing.assert_allclose(found, expected("a", 2), atol=1e-6)
    assert sum(x * x for x in found) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({}, "input", "missing_required_parameter", "input is missing"),
        ({"input": ""}, "input", "invalid_value", "input is empty"),
        ({"input": []}, "input", "invalid_value", "at least 1 item"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value", "input[1] is empty"),
        ({"input": [[]]}, "input[0]", "invalid_value", "at least 1 item"),
        ({"input": ["a", 1]}, "input", "invalid_value", "mixed"),
        ({"input": [-1]}, "input[0]", "invalid_value", ""),
        ({"input": [257]}, "input", "invalid_value", "vocabulary of 257"),
        ({"input": {"text": "a"}}, "input", "invalid_value", "a string"),
        ({"input": ["a"] * 2049}, "input", "invalid_value", "2049 items; give at most 2048"),
        ({"input": "x" * 65}, "input", "context_length_exceeded", "maximum context length"),
        ({"input": "a", "dimensions": 7}, "dimensions", "invalid_value", "7; this model has 6"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value", "from 1 to"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value", "base64"),
        ({"input": "a", "input_type": "query"}, "input_type", "unknown_parameter", "no field"),
    ],
)
def test_what_is_wrong_is_named(
    service: FakeService, fields: dict[str, Any], param: str, code: str, words: str
) -> None:
    error = error_of(service.post(fields, EMBEDDINGS), 400)
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code), error
    assert words in error["message"]


def test_an_unknown_model(service: FakeService) -> None:
    error = error_of(service.post({"input": "a", "model": "nope"}, EMBEDDINGS), 404)
    assert error["code"] == "model_not_found"


def test_models_that_do_one_thing_only() -> None:
    """Each says what to do instead, in the words of the dialect."""
    with fake_service() as generating:
        error = error_of(generating.post({"input": "a"}, EMBEDDINGS), 400)
        assert error["param"] == "model"
        assert 'pooling = "mean"' in error["message"]
    with fake_service(embedding=LIMITS, generates=False) as embedding:
        for path, body in (
            (CHAT, {"messages": USER}),
            (CHAT, {"messages": USER, "stream": True}),
            ("/v1/completions", {"prompt": "a"}),
        ):
            error = error_of(embedding.post(body, path), 400)
            assert "POST /v1/embeddings" in error["message"]
            assert error["param"] == "model"
        native = embedding.post({"prompt": "a"}, "/inference")
        assert native.status_code == 400
        assert "POST /v1/embeddings" in native.json()["error"]["message"]
        assert ok(embedding.post({"input": "a"}, EMBEDDINGS))


def test_the_metrics_count() -> None:
    with fake_service(embedding=LIMITS) as service:
        ok(service.post({"input": ["abc", "de"]}, EMBEDDINGS))
        error_of(service.post({"input": "x" * 65}, EMBEDDINGS), 400)
        outcomes = {"embedded": 1, "too_large": 1, "disconnected": 0}
        for outcome, count in outcomes.items():
            assert service.metric("llmserve_requests_total", outcome=outcome) == count
        assert service.metric("llmserve_embeddings_total", model="fake") == 2
        assert service.metric("llmserve_prompt_tokens_total", model="fake") == 5
        assert service.metric("llmserve_batch_tokens_sum", model="fake") == 5
        assert service.metric("llmserve_generated_tokens_total", model="fake") == 0


def test_the_metrics_show_what_is_going_on() -> None:
    with fake_service(embedding=LIMITS, gated=True) as service:
        body = msgspec.json.encode({"input": ["x" * 30] * 9})
        held = [service.connect(raw_request("POST", EMBEDDINGS, body)) for _ in range(6)]
        wait_until(lambda: service.metric("llmserve_queue_depth") > 0, "the first to be told")
        service.step(2)
        wait_until(lambda: service.metric("llmserve_running_requests") >= 1, "some to run")
        service.step(1000)
        service.wait_idle()
        wait_until(lambda: service.metric("llmserve_running_requests") == 0, "none to run")
        assert service.metric("llmserve_queue_depth") == 0
        for connection in held:
            connection.close()


def test_the_queue_is_bounded() -> None:
    with fake_service(models={"fake": {"max_queue": 0}}, embedding=LIMITS, gated=True) as service:
        body = msgspec.json.encode({"input": "hello"})
        held = [service.connect(raw_request("POST", EMBEDDINGS, body)) for _ in range(4)]
        wait_until(lambda: service.gateway.num_active == 4, "four to be active")
        response = service.post({"input": "a"}, EMBEDDINGS)
        assert error_of(response, 429)["code"] == "rate_limit_exceeded"
        assert int(response.headers["retry-after"]) >= 1
        service.step(100)
        service.wait_idle()
        for connection in held:
            connection.close()


def test_a_client_that_leaves_ends_the_work() -> None:
    with fake_service(embedding=LIMITS, gated=True) as service:
        body = msgspec.json.encode({"input": ["x" * 60] * 100})
        connection = service.connect(raw_request("POST", EMBEDDINGS, body))
        wait_until(lambda: bool(service.runtimes), "the model")
        wait_until(service.runtime.decoding.is_set, "the first batch")
        connection.close()
        service.wait_idle()
        wait_until(
            lambda: service.metric("llmserve_requests_total", outcome="disconnected") == 1,
            "the metric",
        )
        assert len(service.runtime.batch_sizes) == 1
        service.step(100)
        ok(service.post({"input": "next"}, EMBEDDINGS))


@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_numbers_survive_both_encodings(rows: list[list[float]]) -> None:
    found = Embeddings("m", np.array(rows, dtype=np.float32), 1)
    for is_base64 in (False, True):
        body = msgspec.json.decode(render(found, is_base64=is_base64))
        for item, row in zip(body["data"], rows, strict=True):
            given = item["embedding"]
            if is_base64:
                given = list(struct.unpack("<3f", base64.b64decode(given)))
            assert given == row


@pytest.fixture(scope="module")
def client(service: FakeService) -> Iterator[httpx2.Client]:
    with service.client() as running:
        yield running


@settings(bounded, max_examples=150)
@given(
    prompts,
    some_of(
        {
            "model": st.sampled_from(["fake", "nope", ""]),
            "encoding_format": st.sampled_from(["float", "base64", "", None]),
            "dimensions": st.integers(-1, 8),
            "user": text,
            "other": json_values,
        }
    ),
)
def test_anything(client: httpx2.Client, prompt: Any, fields: dict[str, Any]) -> None:
    check(client, EMBEDDINGS, msgspec.json.encode({"input": prompt, **fields}))
