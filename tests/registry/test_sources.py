"""Where the weights of a spec are on disk."""

from pathlib import Path

import pytest

from llmserve.errors import ModelFileError
from llmserve.registry.config import ModelSpec, load_config
from llmserve.registry.sources import locate

REPOSITORY = Path(__file__).parents[2]


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
