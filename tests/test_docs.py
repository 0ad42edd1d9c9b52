"""What the README and models.toml promise is what the code has."""

import os
import re
from pathlib import Path

import pytest

from llmserve.api.app import ENDPOINTS
from llmserve.api.endpoint import Endpoint
from llmserve.api.openai.responses.schemas import ResponsesRequest
from llmserve.config.load import load_config
from llmserve.config.provider import KEYS as PROVIDER_KEYS
from llmserve.config.schema import ModelSpec, ServerConfig
from tests.e2e.test_server import CURL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS_TOML = (ROOT / "models.toml").read_text(encoding="utf-8")

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file())
MODEL_KEYS = {*ModelSpec.__struct_fields__, *PROVIDER_KEYS} - {"name"}
COMMENTED = re.compile(r"^# (?=\[|\w+ = )", re.MULTILINE)


def table_of(title: str) -> str:
    """The README's table whose first column is called `title`."""
    found = re.search(rf"^\| {re.escape(title)} \|.*\n(?:\|.*\n)+", README, re.MULTILINE)
    assert found, title
    return found[0]


@pytest.mark.parametrize(
    ("title", "keys"),
    [
        ("key of `[models.NAME]`", MODEL_KEYS),
        ("key of `[server]`", set(ServerConfig.__struct_fields__)),
    ],
)
def test_the_readme_has_every_key_and_no_other(title: str, keys: set[str]) -> None:
    first_column = re.findall(r"^\| (`.*?) \|", table_of(title), re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(first_column))
    assert sorted(named) == sorted(keys)


def test_the_readme_has_every_field_of_a_response() -> None:
    first_column = re.findall(
        r"^\| (`.*?) \|", table_of("field of `POST /v1/responses`"), re.MULTILINE
    )
    named = set(re.findall(r"`(\w+)", " ".join(first_column)))
    assert set(ResponsesRequest.__struct_fields__) <= named


PAGES = [
    route for route in ENDPOINTS.all if route.path != "/docs/{file}"
]  # which is part of a page


@pytest.mark.parametrize("route", PAGES, ids=lambda route: route.path)
def test_the_readme_has_every_route(route: Endpoint) -> None:
    path = route.path.replace("{name:path}", "NAME")
    spelled = {f"{route.method} {path}"}
    if path == "/models/NAME/unload":
        spelled.add("POST /models/NAME/load`, `/unload")
    assert any(f"{one}`" in README or f"## {one}\n" in README for one in spelled)


def test_the_curl_of_the_readme_is_the_one_that_is_tested() -> None:
    assert CURL in README


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_executable_and_in_the_readme(name: str) -> None:
    assert os.access(ROOT / "scripts" / name, os.X_OK)
    assert f"scripts/{name}" in README


def test_the_readme_names_no_script_that_does_not_exist() -> None:
    assert set(re.findall(r"scripts/([a-z-]+)", README)) <= set(SCRIPTS) | {"deploy", "locks"}


# -- models.toml ---------------------------------------------------------------------------------


def suggestions() -> list[str]:
    """Every commented entry or setting of models.toml, with its lines uncommented."""
    blocks: list[list[str]] = []
    for line in MODELS_TOML.splitlines():
        if not COMMENTED.match(line):
            continue
        is_new = line.startswith("# [") or "auto_download" in line
        if is_new:
            blocks.append([])
        blocks[-1].append(line.removeprefix("# "))
    return ["\n".join(block) for block in blocks]


def test_models_toml_loads(tmp_path: Path) -> None:
    config = load_config(ROOT / "models.toml")
    assert "fine-tuned-llm-model" in config.default.aliases


@pytest.mark.parametrize("text", suggestions(), ids=lambda text: text.splitlines()[0])
def test_every_suggestion_of_models_toml_loads(text: str, tmp_path: Path) -> None:
    commented = "\n".join(f"# {line}" for line in text.splitlines())
    assert MODELS_TOML.count(commented) == 1
    path = tmp_path / "models.toml"
    path.write_text(MODELS_TOML.replace(commented, text), encoding="utf-8")
    before = load_config(ROOT / "models.toml")
    after = load_config(path)
    assert len(after.models) == len(before.models) + text.startswith("[models.")
    assert after.server.auto_download is text.startswith("auto_download")


def test_there_is_a_suggestion_for_every_size_of_memory() -> None:
    sizes = re.findall(r"^# (\d+) GB$", MODELS_TOML, re.MULTILINE)
    assert sizes == ["2", "4", "8", "16"]
    for size, part in zip(sizes, re.split(r"^# \d+ GB$", MODELS_TOML, flags=re.M)[1:], strict=True):
        assert "\n# [models." in part, size
