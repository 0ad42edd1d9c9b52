"""What is on disk is found without asking anybody; a download only where it is allowed."""

from functools import partial
from pathlib import Path

import pytest

from llmserve.config.hub_ref import HubRef
from llmserve.config.load import load_config
from llmserve.config.schema import ModelSpec
from llmserve.errors import ModelFileError
from llmserve.hub.client import Hub
from llmserve.hub.locate import locate, obtain
from tests.fake_hub import HubServer
from tests.hub.conftest import REPO, Fetch

REPOSITORY = Path(__file__).parents[2]
REF = HubRef(REPO)


def test_the_embedded_model_is_installed() -> None:
    path = locate(load_config(REPOSITORY / "models.toml").default)
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    spec = ModelSpec(name="a", path=path)
    with pytest.raises(ModelFileError, match=r"model 'a': there is no file .*x\.gguf"):
        locate(spec)
    path.touch()
    assert locate(spec) == path


def test_a_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no file"):
        locate(ModelSpec(name="a", path=tmp_path))


def test_a_package_that_is_not_installed() -> None:
    spec = ModelSpec(name="a", package="no-such-distribution", file="x.gguf")
    with pytest.raises(ModelFileError, match="is not installed: run scripts/setup, or: pip"):
        locate(spec)


def test_a_file_that_the_package_does_not_have() -> None:
    with pytest.raises(ModelFileError, match="model 'a': there is no file"):
        locate(ModelSpec(name="a", package="pytest", file="x.gguf"))


class TestLocateOnTheHub:
    spec = ModelSpec(name="tiny", hf=REPO)

    def test_not_on_disk_is_answered_with_the_command(self, cache_dir: Path) -> None:
        with pytest.raises(ModelFileError) as caught:
            locate(self.spec)
        assert caught.value.message.endswith("is not on disk; run: scripts/download-model tiny")

    def test_finds_what_was_fetched(self, fetch_it: Fetch) -> None:
        path = fetch_it(REF).path
        assert locate(self.spec) == path

    def test_asks_nobody(self, fetch_it: Fetch, server: HubServer) -> None:
        fetch_it(REF)
        server.seen.clear()
        locate(self.spec)
        assert not server.seen

    def test_each_quantization_by_its_own_name(
        self, fetch_it: Fetch, server: HubServer, model_bytes: bytes
    ) -> None:
        server.repos[REPO]["tiny.q8_0.gguf"] = model_bytes + b"8"
        for quant in ("Q8_0", "q4_k_m"):
            path = fetch_it(HubRef(REPO, quant=quant)).path
            assert locate(ModelSpec(name="x", hf=f"{REPO}:{quant}")) == path

    def test_a_model_whose_parts_are_not_all_there(
        self, fetch_it: Fetch, server: HubServer, model_bytes: bytes
    ) -> None:
        names = [f"T-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
        server.repos[REPO] = {name: model_bytes + name.encode() for name in names}
        _, second = fetch_it(REF).files
        second.unlink()
        with pytest.raises(ModelFileError, match="not on disk"):
            locate(self.spec)

    def test_a_file_of_an_older_commit_stays_findable(
        self, fetch_it: Fetch, cache_dir: Path
    ) -> None:
        path = fetch_it(REF).path
        repo_dir = cache_dir / "models--owner--tiny-GGUF"
        newer = repo_dir / "snapshots" / ("f" * 40)
        newer.mkdir()
        (newer / "Tiny-Q8_0.gguf").write_bytes(b"x")
        (repo_dir / "refs" / "main").write_text("f" * 40)
        assert locate(ModelSpec(name="x", hf=f"{REPO}:Q4_K_M")) == path
        pinned = ModelSpec(name="x", hf=f"{REPO}:Q4_K_M", revision="main")
        with pytest.raises(ModelFileError, match="not on disk"):
            locate(pinned)

    def test_a_blob_that_was_deleted(self, fetch_it: Fetch) -> None:
        fetch_it(REF).path.resolve().unlink()
        with pytest.raises(ModelFileError, match="not on disk"):
            locate(self.spec)


class TestObtain:
    spec = ModelSpec(name="tiny", hf=REPO)

    def test_never_downloads_unless_allowed(self, cache_dir: Path) -> None:
        with pytest.raises(ModelFileError, match="run: scripts/download-model tiny"):
            obtain(self.spec, auto_download=False)

    def test_downloads_when_allowed(
        self, server: HubServer, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llmserve.hub.client.Hub", partial(Hub, endpoint=server.url))
        assert obtain(self.spec, auto_download=True).is_file()
        server.seen.clear()
        obtain(self.spec, auto_download=True)
        assert not server.seen
