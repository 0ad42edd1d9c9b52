"""POST /tokenize, /detokenize and /apply-template."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.openai.helpers import USER, error_of, ok
from tests.fakes import TEMPLATE, FakeRuntime
from tests.serving import TIMEOUT_S, FakeService, fake_service, raw_inference, wait_until

BOS = 1


class _WithBos(FakeRuntime):
    """Begins with a token of its own, as most models do."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        return [BOS] * add_special + super().tokenize(text, add_special=add_special)


@pytest.fixture
def bos_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.setattr("tests.serving.FakeRuntime", _WithBos)
    with fake_service() as running:
        yield running


@pytest.mark.parametrize(
    ("fields", "has_bos"),
    [
        ({"content": "hi"}, False),  # llama-server's
        ({"content": "hi", "add_special": True}, True),
        ({"prompt": "hi"}, True),  # vLLM's
        ({"prompt": "hi", "add_special_tokens": False}, False),
        ({"prompt": "hi", "add_special": False}, False),
        ({"content": "hi", "model": "default"}, False),
    ],
)
def test_tokenize(bos_service: FakeService, fields: dict[str, Any], has_bos: bool) -> None:
    tokens = [BOS] * has_bos + list(b"hi")
    body = ok(bos_service.post(fields, "/tokenize"))
    assert body == {"tokens": tokens, "count": len(tokens), "max_model_len": 4096}


def test_an_empty_text_has_no_tokens(service: FakeService) -> None:
    assert ok(service.post({"content": ""}, "/tokenize"))["tokens"] == []


@pytest.mark.parametrize("field", ["content", "prompt"])
def test_a_text_has_an_end(service: FakeService, field: str) -> None:
    """8 MB of one letter would keep a thread in native code for ten seconds and more."""
    error = error_of(service.post({field: "a" * ((1 << 20) + 1)}, "/tokenize"), 400)
    assert error["param"] == field
    assert "at most 1048576 characters" in error["message"]


def test_who_left_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizing, may_tokenize = threading.Event(), threading.Event()
    texts: list[str] = []

    class Slow(FakeRuntime):
        def tokenize(
            self, text: str, *, add_special: bool, parse_special: bool = True
        ) -> list[int]:
            if len(text) == 3:
                texts.append(text)
                tokenizing.set()
                assert may_tokenize.wait(TIMEOUT_S)
            return super().tokenize(text, add_special=add_special)

    monkeypatch.setattr("tests.serving.FakeRuntime", Slow)
    with fake_service() as service:
        asked = [service.connect(raw_inference({"content": "001"}, "/tokenize"))]
        assert tokenizing.wait(TIMEOUT_S)
        asked += [service.connect(raw_inference({"content": "002"}, "/tokenize"))]
        wait_until(lambda: service.gateway.num_active == 2)
        for connection in asked:
            connection.close()
        wait_until(lambda: service.gateway.num_active == 0)
        may_tokenize.set()
        assert ok(service.post({"content": "003"}, "/tokenize"))["tokens"] == list(b"003")
    assert texts == ["001", "003"]


def test_detokenize_is_the_inverse(service: FakeService) -> None:
    text = "żółć \U0001f600\n"
    tokens = ok(service.post({"content": text}, "/tokenize"))["tokens"]
    body = ok(service.post({"tokens": tokens}, "/detokenize"))
    assert body == {"content": text, "prompt": text}


def test_detokenize_shows_control_tokens_and_broken_characters(service: FakeService) -> None:
    tokens = [104, 256, 0xC3]
    assert ok(service.post({"tokens": tokens}, "/detokenize"))["content"] == "h<eos>\ufffd"
    assert ok(service.post({"tokens": []}, "/detokenize"))["content"] == ""


def test_apply_template(service: FakeService) -> None:
    messages = [{"role": "developer", "content": "s"}, *USER]
    body = ok(service.post({"messages": messages}, "/apply-template"))
    assert body == {"prompt": "<system>s\n<user>hi\n<assistant>"}


def test_the_tokenizer(service: FakeService) -> None:
    body = ok(service.get("/tokenizer_info"))
    assert body == ok(service.get("/tokenizer_info?model=default"))
    assert body == {
        "model": "fake",
        "tokenizer_class": "",
        "bos_token": None,
        "eos_token": None,
        "add_bos_token": False,
        "chat_template": TEMPLATE,
        "model_max_length": 4096,
        "vocab_size": 257,
    }
    assert error_of(service.get("/tokenizer_info?model=nope"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "content"),
        ("/tokenize", {"content": "a", "add_special": True, "add_special_tokens": True}, None),
        ("/tokenize", {"content": 1}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": True}, "with_pieces"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [257]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [2**31]}, "tokens[0]"),
        ("/apply-template", {"messages": []}, "messages"),
        (
            "/apply-template",
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].tool_call_id",
        ),
    ],
)
def test_refusals(service: FakeService, path: str, body: dict[str, Any], param: str | None) -> None:
    error = error_of(service.post(body, path), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == (param or "add_special")


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template"])
def test_an_unknown_model_is_a_404(service: FakeService, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/tokenize": {"content": "x"},
        "/detokenize": {"tokens": [1]},
        "/apply-template": {"messages": USER},
    }
    body = bodies[path]
    error = error_of(service.post({**body, "model": "nope"}, path), 404)
    assert error["code"] == "model_not_found"


def test_a_model_without_a_template() -> None:
    with fake_service(chat_template=None) as service:
        error = error_of(service.post({"messages": USER}, "/apply-template"), 400)
        assert "no chat template" in error["message"]


def test_a_model_is_loaded_for_it_and_not_while_draining() -> None:
    with fake_service(models={"fake": {}, "cold": {}}) as service:
        ok(service.post({"content": "x", "model": "cold"}, "/tokenize"))
        assert "cold" in service.runtimes
        service.run(service.gateway.drain(0))
        error = error_of(service.post({"content": "x"}, "/tokenize"), 503)
        assert error["code"] == "shutting_down"
