"""Embeddings of a provider, through the wire and through POST /v1/embeddings."""

import base64
from typing import Any

import msgspec
import numpy as np
import pytest

from llmserve.core import EmbeddingRequest
from llmserve.remote.errors import BrokenAnswerError
from llmserve.remote.openai.embeddings import decode
from tests.remote import hostile as h
from tests.remote.serving import provider, remote_service

PATH = "/v1/embeddings"
ASK: dict[str, Any] = {"model": "cloud", "input": ["a", "b"], "encoding_format": "float"}


def item(index: int, *numbers: float, is_base64: bool = False) -> dict[str, Any]:
    data = np.array(numbers, dtype="<f4").tobytes()
    return {"index": index, "embedding": base64.b64encode(data).decode() if is_base64 else numbers}


def whole(*items: dict[str, Any]) -> dict[str, Any]:
    return {"data": items, "usage": {"prompt_tokens": 5}}


@pytest.mark.parametrize("is_base64", [False, True])
def test_vectors_are_in_the_order_of_the_inputs_and_of_length_1(is_base64: bool) -> None:
    with h.hostile() as upstream:
        items = item(1, 3, 4, is_base64=is_base64), item(0, 1, 0, is_base64=is_base64)
        upstream.play(h.answers(200, whole(*items)))
        with remote_service(provider(upstream.url, remote_model="big")) as service:
            response = service.post({**ASK, "dimensions": 2}, PATH)
            body = response.json()
            vectors = np.array([each["embedding"] for each in body["data"]])
            assert np.allclose(vectors, np.array([[1, 0], [0.6, 0.8]]))
            assert body["model"] == response.headers["x-llmserve-model"] == "cloud"
            assert body["usage"]["prompt_tokens"] == 5
            assert service.metric("llmserve_prompt_tokens_total", model="cloud") == 5
            (request,) = upstream.requests
            assert request.line == "POST /v1/embeddings HTTP/1.1"
            assert request.body == {
                "model": "big",
                "input": ["a", "b"],
                "encoding_format": "base64",
                "dimensions": 2,
            }


def test_failures_are_those_of_a_generation_and_nobody_stands_in() -> None:
    with (
        h.hostile() as upstream,
        remote_service(provider(upstream.url), fallback=("fake",)) as service,
    ):
        for script, status, num_attempts in [
            (h.error(500, "oh"), 502, 3),
            (h.error(401, "who"), 502, 1),
            (h.error(400, "no"), 400, 1),
            (h.streams(h.WHOLE), 502, 3),
            (h.answers(200, {"data": []}), 502, 3),
            (h.answers(200, b"{"), 502, 3),
        ]:
            upstream.play(script)
            response = service.post(ASK, PATH)
            assert response.status_code == status, response.text
            assert len(upstream.requests) == num_attempts
            model = service.gateway.remotes.model(service.config.names["cloud"])
            model.addresses.all[0].breaker.succeed()
        upstream.play(h.error(500, "oh"), h.answers(200, whole(item(0, 1), item(1, 1))))
        assert service.post(ASK, PATH).status_code == 200
        assert service.metric("llmserve_fallbacks_total") == 0


def test_anthropics_protocol_has_none() -> None:
    with remote_service(provider("http://127.0.0.1:1", protocol="anthropic")) as service:
        error = service.post(ASK, PATH).json()["error"]
        assert error["param"] == "model"
        assert "no embeddings" in error["message"]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([item(0, 1)], "no embedding of input 1"),
        ([item(0, 1), item(1, 1, 2)], "cannot be read"),
        ([item(0, 1), {"index": 1, "embedding": "%%"}], "cannot be read"),
        ([item(0, 1), {"index": 1, "embedding": "AAA="}], "cannot be read"),
        ([item(0, 1), {"index": 1, "embedding": ["x"]}], "cannot be read"),
        ([item(0, 1), item(1, 0)], "without a direction"),
    ],
)
def test_broken_answers(items: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(BrokenAnswerError, match=words):
        decode(msgspec.json.encode(whole(*items)), EmbeddingRequest(("a", "b")))


def test_other_dimensions_than_were_asked_for() -> None:
    with pytest.raises(BrokenAnswerError, match="sent 1 dimensions where 2 were asked for"):
        decode(msgspec.json.encode(whole(item(0, 1))), EmbeddingRequest(("a",), dimensions=2))
