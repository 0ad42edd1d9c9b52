"""GET /models and the commands beside it, over fake models; reload over real files."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from llmserve.config.load import load_config
from llmserve.config.schema import Config, ConfigChange
from llmserve.errors import ModelFileError
from llmserve.gateway import Gateway
from tests.serving import TIMEOUT_S, FakeService, fake_service, wait_until

TWO: dict[str, dict[str, Any]] = {"one": {"aliases": ("default",)}, "org/two": {"pinned": True}}


def status(service: FakeService, name: str) -> dict[str, object]:
    models = service.get("/models").json()["models"]
    (found,) = [model for model in models if model["name"] == name]
    return dict(found)


def test_the_list_shows_every_model_and_the_budget() -> None:
    with fake_service(models=TWO) as service:
        answer = service.get("/models").json()
        assert [model["name"] for model in answer["models"]] == ["one", "org/two"]
        assert answer["memory_budget"] == 1 << 30
        assert answer["memory_used"] == 1000
        one = status(service, "one")
        assert one["state"] == "ready"
        assert one["aliases"] == ["default"]
        assert (one["bytes"], one["context_length"], one["slots"]) == (1000, 4096, 4)
        assert one["last_used"]
        two = status(service, "org/two")
        assert two["state"] == "cold"
        assert two["bytes"] is None
        assert two["pinned"] is True


def test_load_and_unload_by_name_or_alias_also_with_a_slash_in_it() -> None:
    with fake_service(models=TWO) as service, service.client() as client:
        loaded = client.post("/models/org/two/load")
        assert (loaded.status_code, loaded.json()["state"]) == (200, "ready")
        unloaded = client.post("/models/org/two/unload")
        assert (unloaded.status_code, unloaded.json()["state"]) == (200, "cold")
        assert client.post("/models/default/unload").json()["name"] == "one"
        assert service.runtimes["one"].closed
        assert service.post({"prompt": "a", "parameters": {"max_tokens": 1}}).status_code == 200


def test_an_unknown_name_is_a_404_and_never_a_path() -> None:
    with fake_service(models=TWO) as service, service.client() as client:
        for name in ("nobody", "../../etc/passwd", "%2e%2e%2fetc%2fpasswd", "/etc/passwd"):
            for command in ("load", "unload"):
                answer = client.post(f"/models/{name}/{command}")
                assert answer.status_code == 404, (name, answer.text)
                assert "code" in answer.json()["error"]


def test_a_busy_model_is_not_unloaded() -> None:
    with fake_service(gated=True) as service:
        connection = service.connect()
        connection.close()
        with (
            service.client() as client,
            client.stream("POST", "/inference", json={"prompt": "abc", "stream": True}),
        ):
            answer = client.post("/models/fake/unload")
            assert answer.status_code == 409
            assert answer.json()["error"]["code"] == "model_busy"
            assert status(service, "fake")["active"] == 1
        service.wait_idle()


def test_a_load_under_way_is_shown_and_a_failed_one_says_why() -> None:
    with fake_service(loaded=False, load_error=ModelFileError("the file is broken")) as service:
        assert status(service, "fake")["state"] == "loading"
        wait_until(lambda: status(service, "fake")["doing"] == "loading")
        assert status(service, "fake")["progress"] == 0
        service.load_gate.set()
        wait_until(lambda: status(service, "fake")["state"] == "failed")
        assert status(service, "fake")["error"] == "the file is broken"
        assert service.get("/ready").status_code == 503
        service.num_expected_errors = 1  # the log says it too


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.gguf").touch()
    path = tmp_path / "models.toml"
    path.write_text('[models.one]\npath = "one.gguf"\n\n[models.two]\npath = "two.gguf"\n')
    return path


def test_reload_adds_changes_and_removes(config_file: Path) -> None:
    with fake_service(config_path=config_file) as service, service.client() as client:
        assert client.post("/models/two/load").status_code == 200
        config_file.write_text(
            '[models.one]\npath = "one.gguf"\n\n[models.three]\npath = "three.gguf"\n'
        )
        change = client.post("/models/reload").json()
        assert change == {
            "models": ["one", "three"],
            "added": ["three"],
            "removed": ["two"],
            "changed": [],
        }
        assert client.post("/models/two/load").status_code == 404
        wait_until(lambda: service.runtimes["two"].closed, "the removed model to be unloaded")
        assert client.post("/models/three/load").status_code == 200
        config_file.write_text('[models.one]\npath = "one.gguf"\ncontext_length = 512\n')
        assert client.post("/models/reload").json()["changed"] == ["one"]


def test_a_removed_model_finishes_its_requests_first(config_file: Path) -> None:
    with fake_service(config_path=config_file, gated=True) as service, service.client() as client:
        body = {"model": "one", "prompt": "ab", "stream": True, "parameters": {"max_tokens": 3}}
        with client.stream("POST", "/inference", json=body) as answer:
            config_file.write_text('[models.two]\npath = "two.gguf"\n')
            assert client.post("/models/reload").json()["removed"] == ["one"]
            assert not service.runtimes["one"].closed
            service.step(10)
            assert "generated_text" in answer.read().decode()
        wait_until(lambda: service.runtimes["one"].closed, "the removed model to be unloaded")


def test_reloads_at_once_end_with_the_newest_file(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one has read the old file, and is slow to say so."""
    has_read, may_go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> Config:
        config = load_config(path)
        if not has_read.is_set():
            has_read.set()
            assert may_go_on.wait(TIMEOUT_S)
        return config

    async def reload_twice(gateway: Gateway) -> list[ConfigChange]:
        first = asyncio.create_task(gateway.reload())
        await asyncio.to_thread(has_read.wait, TIMEOUT_S)
        config_file.write_text('[models.one]\npath = "one.gguf"\n')  # noqa: ASYNC240
        second = asyncio.create_task(gateway.reload())
        await asyncio.wait([second], timeout=0.2)  # to overtake, if it can
        may_go_on.set()
        return [await first, await second]

    with fake_service(config_path=config_file) as service:
        monkeypatch.setattr("llmserve.gateway.load_config", slow)
        changes = service.run(reload_twice(service.gateway))
        assert [change.removed for change in changes] == [[], ["two"]]
        assert [spec.name for spec in service.gateway.config.models] == ["one"]


def test_a_file_with_a_mistake_changes_nothing(config_file: Path) -> None:
    with fake_service(config_path=config_file) as service, service.client() as client:
        config_file.write_text('[models.one]\npaht = "one.gguf"\n')
        answer = client.post("/models/reload")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "config_error"
        assert "did you mean path?" in answer.json()["error"]["message"]
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["one", "two"]


def test_a_new_model_without_its_file_changes_nothing(config_file: Path) -> None:
    with fake_service(config_path=config_file) as service, service.client() as client:
        (config_file.parent / "two.gguf").unlink()  # of a model that stays: not the file's mistake
        text = config_file.read_text()
        config_file.write_text(text + '[models.four]\npath = "four.gguf"\n')
        answer = client.post("/models/reload")
        assert answer.status_code == 400
        assert "'four': there is no file" in answer.json()["error"]["message"]
        assert len(client.get("/models").json()["models"]) == 2
        config_file.write_text(text)
        assert client.post("/models/reload").status_code == 200
