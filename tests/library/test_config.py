"""Which model an `LLM` is, and how it is run."""

from pathlib import Path
from typing import Any

import pytest

from llmserve.config.schema import Config, ModelSpec
from llmserve.config.units import Duration
from llmserve.core import Mode
from llmserve.errors import ConfigError, LlmserveError, ModelNotFoundError
from llmserve.library.config import MODEL_KEYS, SERVER_KEYS, choose_model

TOML = """
[server]
port = 9000
memory_budget = "2GiB"

[models.small]
path = "weights/small.gguf"
aliases = ["default", "s"]
context_length = 512
max_queue = 7

[models."owner/there:Q8_0"]
hf = "owner/there:Q8_0"
fallback = ["small"]

[models.big]
remote = "https://provider.example/v1"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.toml").write_text(TOML)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path


def choose(place: Path, model: str | Path | None = None, **given: Any) -> tuple[Config, ModelSpec]:
    return choose_model(model, place / "models.toml", given)


def refusal(place: Path, model: str | Path | None = None, **given: Any) -> LlmserveError:
    with pytest.raises(LlmserveError) as caught:
        choose(place, model, **given)
    return caught.value


# -- which model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, "small", "s", "default"])
def test_a_model_of_the_file(place: Path, model: str | None) -> None:
    config, spec = choose(place, model)
    assert spec.name == "small"
    assert spec.path == place / "weights/small.gguf"
    assert [each.name for each in config.models] == ["small", "owner/there:Q8_0", "big"]
    assert config.server.memory_budget == 2 << 30
    assert not config.server.auto_download


def test_a_name_of_the_file_counts_more_than_what_it_looks_like(place: Path) -> None:
    config, spec = choose(place, "owner/there:Q8_0")
    assert spec.fallback == ("small",)
    assert not config.server.auto_download


def test_a_remote_model_of_the_file(place: Path) -> None:
    _, spec = choose(place, "big", max_concurrency=3)
    assert spec.remote
    assert spec.max_concurrency == 3


@pytest.mark.parametrize(
    ("model", "name", "path"),
    [
        ("x.gguf", "x", "x.gguf"),
        ("a folder/My Model (1).GGUF", "My-Model-1-", "a folder/My Model (1).GGUF"),
        (Path("any.name"), "any", "any.name"),
        (Path("small"), "small", "small"),
        (Path("…"), "model", "…"),
    ],
)
def test_a_file_is_in_the_working_directory(
    place: Path, model: str | Path, name: str, path: str
) -> None:
    _, spec = choose(place, model)
    assert (spec.name, spec.path) == (name, place / "elsewhere" / path)


@pytest.mark.parametrize(
    ("model", "hf", "file"),
    [
        ("owner/repo", "owner/repo", None),
        ("owner/repo:Q4_K_M", "owner/repo:Q4_K_M", None),
        ("https://huggingface.co/owner/repo/blob/main/x.gguf", "owner/repo", "x.gguf"),
    ],
)
def test_a_repository_is_downloaded_if_need_be(
    place: Path, model: str, hf: str, file: str | None
) -> None:
    config, spec = choose(place, model)
    assert (spec.name, spec.hf, spec.file) == (hf, hf, file)
    assert config.server.auto_download
    assert not choose(place, model, auto_download=False)[0].server.auto_download


def test_the_config_alone_can_be_a_model(place: Path) -> None:
    _, spec = choose(place, "mine", path="mine.gguf")
    assert (spec.name, spec.path) == ("mine", place / "elsewhere/mine.gguf")
    _, spec = choose(place, remote="http://localhost:9/v1", remote_model="x")
    assert spec.name == "default"
    assert spec.remote
    assert spec.remote.remote_model == "x"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smal", ["no model 'smal'", "default, owner/there:Q8_0, s, small"]),
        ("", ["no model ''"]),
        ("owner/re po", ["no model 'owner/re po'", "and on the hub", "write owner/repo"]),
        ("owner/repo:a b", ["'a b' is not a valid quantization"]),
    ],
)
def test_what_is_no_model(place: Path, model: str, words: list[str]) -> None:
    error = refusal(place, model)
    assert isinstance(error, ModelNotFoundError)
    assert error.param == "model"
    assert all(word in error.message for word in words), error.message


# -- how it is run -------------------------------------------------------------------------------


def test_what_is_given_counts_more_than_the_file(place: Path) -> None:
    config, spec = choose(
        place,
        context_length=1024,
        default_mode="completion",
        keep_alive="10m",
        pinned_prompts=["Be kind."],
        memory_budget="1GB",
        isolation="thread",
        prefix_cache_dir="cache",
    )
    assert (spec.context_length, spec.default_mode) == (1024, Mode.COMPLETION)
    assert spec.keep_alive == Duration(600)
    assert spec.pinned_prompts == ("Be kind.",)
    assert (config.server.memory_budget, config.server.isolation) == (10**9, "thread")
    assert config.server.prefix_cache_dir == place / "elsewhere/cache"


def test_auto_is_the_default_again(place: Path) -> None:
    assert choose(place, memory_budget="auto")[0].server.memory_budget is None


def test_a_program_waits_where_a_server_refuses(place: Path) -> None:
    config, spec = choose(place)
    assert config.server.load_wait_s == 86_400
    assert spec.max_queue_tokens == 1_000_000_000
    assert spec.max_queue == 7, "the file says so"
    assert choose(place, max_queue=8)[1].max_queue == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"context_lenght": 512},
            "LLM(context_lenght=512): unknown key 'context_lenght'; did you mean context_length?",
        ),
        ({"port": 80}, "LLM(port=80): only goes with a server, which this is not; leave it out"),
        ({"context_length": 0}, "LLM(context_length=0): context_length: Expected `int` >= 1"),
        ({"threads": "two"}, "LLM(threads='two'): threads: Expected `int | null`, got `str`"),
        (
            {"keep_alive": 10},
            "LLM(keep_alive=10): keep_alive: 10 is not a valid duration; write a number and a unit,"
            " such as '10m'",
        ),
        (
            {"isolation": "vm"},
            "LLM(isolation='vm'): isolation: Invalid enum value 'vm'; give one of process, thread",
        ),
    ],
)
def test_a_wrong_key_is_told_with_its_value_and_the_fix(
    place: Path, given: dict[str, Any], message: str
) -> None:
    error = refusal(place, **given)
    assert isinstance(error, ConfigError)
    assert error.message == message


def test_keys_that_do_not_go_together(place: Path) -> None:
    assert "has path and hf" in refusal(place, "small", hf="owner/repo").message
    assert "only goes with remote" in refusal(place, retry={"attempts": 2}).message


def test_an_unknown_key_that_is_like_none_gets_all_of_them(place: Path) -> None:
    message = refusal(place, zzz=1).message
    assert all(key in message for key in (*MODEL_KEYS, *SERVER_KEYS))


def test_a_broken_file_is_told(place: Path) -> None:
    (place / "models.toml").write_text("[server")
    assert str(place / "models.toml") in refusal(place).message
