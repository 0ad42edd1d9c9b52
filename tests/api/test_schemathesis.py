"""Whatever the document allows or forbids: no 5xx, and every answer is as documented."""

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

from llmserve.api.app import ENDPOINTS
from llmserve.api.openapi import Document
from llmserve.engine.runtime import EmbeddingLimits
from tests.budget import examples
from tests.serving import FakeService, fake_service

pytestmark = pytest.mark.fuzz

DOCUMENT: dict[str, Any] = msgspec.json.decode(Document(ENDPOINTS.all).encoded)
# What a schema cannot say (a field that needs another, the size of a vocabulary) is refused too.
EMBEDDING = EmbeddingLimits(6, max_len=64, max_batch=32, max_inputs=4, num_cells=64)
EXCLUDED: list[Any] = [positive_data_acceptance]
EMBEDDING = EmbeddingLimits(8, max_len=64, max_batch=64, max_inputs=4, num_cells=64)

schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    """Answers soon end, because the context is full."""
    with fake_service(context_length=64, embedding=EMBEDDING) as running:
        yield running
        running.wait_idle()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as running:
        yield running


@schema.parametrize()
@settings(
    max_examples=examples(10),
    derandomize=examples(1) == 1,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_operation(
    case: schemathesis.Case[Any], service: FakeService, session: requests.Session
) -> None:
    body = case.body if isinstance(case.body, dict) else {}
    if isinstance(limit_s := body.get("timeout"), float | int) and 0 < limit_s < 60:
        body["timeout"] = 60  # a shorter one is a 504, as it should
    case.call_and_validate(base_url=service.base_url, session=session, excluded_checks=EXCLUDED)


STREAMS: dict[str, dict[str, Any]] = {
    "/inference": {"prompt": "x", "parameters": {"max_tokens": 3}},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    "/v1/completions": {"prompt": "x", "logprobs": 1, "max_tokens": 3},
    "/v1/responses": {"input": "x", "top_logprobs": 1, "max_output_tokens": 3},
}


@pytest.mark.parametrize("path", STREAMS)
def test_every_event_of_a_stream(service: FakeService, path: str) -> None:
    case = schema[path]["POST"].Case(
        body={**STREAMS[path], "stream": True}, media_type="application/json"
    )
    response = case.call(base_url=service.base_url)
    assert response.text.count("data: ") > 2
    case.validate_response(response)


def test_a_status_that_is_not_documented_is_found(service: FakeService) -> None:
    other = copy.deepcopy(DOCUMENT)
    del other["paths"]["/v1/models/{name}"]["get"]["responses"]["404"]
    operation = schemathesis.openapi.from_dict(other)["/v1/models/{name}"]["GET"]
    case = operation.Case(path_parameters={"name": "nobody"})
    with pytest.raises(FailureGroup):
        case.call_and_validate(base_url=service.base_url)


def test_an_event_that_is_not_documented_is_found(service: FakeService) -> None:
    other = copy.deepcopy(DOCUMENT)
    other["components"]["schemas"]["TextDelta"]["properties"]["delta"]["maxLength"] = 0
    operation = schemathesis.openapi.from_dict(other)["/v1/responses"]["POST"]
    case = operation.Case(
        body={**STREAMS["/v1/responses"], "stream": True}, media_type="application/json"
    )
    with pytest.raises(FailureGroup):
        case.validate_response(case.call(base_url=service.base_url))
