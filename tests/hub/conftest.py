"""A hub with one small, real model in it, and an empty cache."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmserve.config.hub_ref import HubRef
from llmserve.hub.client import Hub
from llmserve.hub.locate import Fetched, fetch
from tests.fake_hub import HubServer, serve_hub
from tests.tiny_models import write_llama

REPO = "owner/tiny-GGUF"
FILE = "Tiny-Q4_K_M.gguf"

Fetch = Callable[[HubRef], Fetched]


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf").read_bytes()


@pytest.fixture
def server(model_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with serve_hub() as hub:
        hub.repos[REPO] = {FILE: model_bytes, "README.md": b"# Tiny"}
        yield hub


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hub"
    monkeypatch.setattr("llmserve.hub.cache.default_cache_dir", lambda: path)
    monkeypatch.setattr("llmserve.hub.client.default_cache_dir", lambda: path)
    return path


@pytest.fixture
def fetch_it(server: HubServer, cache_dir: Path) -> Fetch:
    return lambda ref: fetch(ref, hub=Hub(endpoint=server.url))
