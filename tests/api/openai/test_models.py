"""GET /v1/models and /v1/models/NAME."""

from typing import Any

import pytest

from tests.api.openai.helpers import CHAT, chat, error_of, ok
from tests.serving import fake_service

TWO: dict[str, dict[str, Any]] = {
    "one": {"aliases": ("default", "nick/name")},
    "org/two": {"context_length": 512},
}


def test_the_list_has_every_name_after_its_model() -> None:
    with fake_service(models=TWO) as service:
        body = ok(service.get("/v1/models"))
        assert list(body) == ["object", "data"]
        assert body["object"] == "list"
        assert [card["id"] for card in body["data"]] == ["one", "default", "nick/name", "org/two"]
        assert [card["root"] for card in body["data"]] == ["one", "one", "one", "org/two"]
        assert all(card["object"] == "model" for card in body["data"])
        assert all(isinstance(card["created"], int) for card in body["data"])
        assert all(card["owned_by"] == "llmserve" for card in body["data"])
        assert [card["context_length"] for card in body["data"]] == [4096, 4096, 4096, 512]
        assert [card["state"] for card in body["data"]] == ["ready"] * 3 + ["cold"]
        assert ok(service.get("/v1/models")) == body


@pytest.mark.parametrize("name", ["one", "default", "nick/name", "org/two"])
def test_one_model_is_as_in_the_list(name: str) -> None:
    with fake_service(models=TWO) as service:
        card = ok(service.get(f"/v1/models/{name}"))
        assert card in ok(service.get("/v1/models"))["data"]
        assert card["id"] == name
        ok(service.post(chat(model=card["id"]), CHAT))


@pytest.mark.parametrize("name", ["nobody", "", "../one", "%2e%2e/one", "one/", "%ff"])
def test_an_unknown_model_is_a_404(name: str) -> None:
    with fake_service(models=TWO) as service:
        error = error_of(service.get(f"/v1/models/{name}"), 404)
        assert error["type"] == "invalid_request_error"
        assert error["code"] in ("model_not_found", "route_not_found")
