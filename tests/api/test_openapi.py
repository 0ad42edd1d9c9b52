"""GET /openapi.json: a valid document that has every route and what it takes and gives."""

from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate

from llmserve.api.app import ENDPOINTS
from llmserve.api.endpoint import Endpoint
from llmserve.api.http.auth import Level
from llmserve.api.openai.responses.schemas import ResponsesRequest
from llmserve.api.openapi import Document
from tests.serving import FakeService

DOCUMENT: dict[str, Any] = msgspec.json.decode(Document(ENDPOINTS.all).encoded)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


DOCUMENTED = [each for each in ENDPOINTS.all if each.is_documented]


def in_document(each: Endpoint) -> str:
    return each.path.replace(":path", "")


def content(path: str, status: str = "200") -> Any:
    (operation,) = DOCUMENT["paths"][path].values()
    return operation["responses"][status]["content"]


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_the_server_has_it(service: FakeService) -> None:
    response = service.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == DOCUMENT


def test_every_route_is_documented_and_nothing_else() -> None:
    found = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert found == {(each.method, in_document(each)) for each in DOCUMENTED}
    ids = [op["operationId"] for item in DOCUMENT["paths"].values() for op in item.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("each", DOCUMENTED, ids=lambda each: each.path)
def test_every_operation_has_its_errors(each: Endpoint) -> None:
    path = in_document(each)
    operation = DOCUMENT["paths"][path][each.method.lower()]
    # What reads a body can find it wrong or too large; what takes a name can find no model.
    assert ("requestBody" in operation) == ({"400", "413"} <= set(operation["responses"]))
    assert ("parameters" in operation) <= ("404" in operation["responses"])
    assert content(path, "500") == {
        "application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}
    }


@pytest.mark.parametrize("each", DOCUMENTED, ids=lambda each: each.path)
def test_what_asks_for_a_key_says_so(each: Endpoint) -> None:
    operation = DOCUMENT["paths"][in_document(each)][each.method.lower()]
    level = each.level
    schemes = DOCUMENT["components"]["securitySchemes"]
    # {}: a server without keys asks for none.
    expected: list[Any] = [{}, *({name: []} for name in schemes)]
    assert operation["security"] == ([] if level is Level.OPEN else expected)
    assert ("401" in operation["responses"]) == (level is not Level.OPEN)
    assert "403" in operation["responses"]  # as foreign hosts and pages get everywhere
    if level is Level.KEY and each.method == "POST":
        assert "429" in operation["responses"]


def test_streams_are_documented_with_their_events() -> None:
    for path in ("/inference", "/v1/chat/completions", "/v1/completions", "/v1/responses"):
        assert set(content(path)) == {"application/json", "text/event-stream"}
    schema = content("/v1/chat/completions")["text/event-stream"]["schema"]
    done, data = schema["properties"]["data"]["anyOf"]
    assert done == {"const": "[DONE]"}
    assert data["contentSchema"]["anyOf"] == [
        {"$ref": "#/components/schemas/Body_ChunkChoice_"},
        {"$ref": "#/components/schemas/ErrorEnvelope"},
    ]


def test_ranges_and_refusals_are_in_the_schemas() -> None:
    assert SCHEMAS["ChatRequest"]["additionalProperties"] is False
    temperature = SCHEMAS["ChatRequest"]["properties"]["temperature"]["anyOf"][0]
    assert temperature == {"type": "number", "minimum": 0, "maximum": 2}
    background = SCHEMAS["ResponsesRequest"]["properties"]["background"]
    assert background == {"enum": [None, False], "description": "Not supported.", "default": None}
    assert SCHEMAS["ErrorEnvelope"]["description"]


def test_what_is_decoded_item_by_item_is_documented_too() -> None:
    properties = SCHEMAS[ResponsesRequest.__name__]["properties"]
    (array,) = [option for option in properties["input"]["anyOf"] if option["type"] == "array"]
    assert {"$ref": "#/components/schemas/MessageItem"} in array["items"]["anyOf"]
    (array,) = [option for option in properties["tools"]["anyOf"] if option["type"] == "array"]
    assert array["items"] == {"anyOf": [{"$ref": "#/components/schemas/FunctionTool"}]}
    assert SCHEMAS["FunctionTool"]["properties"]["parameters"]["type"] == ["object", "null"]
