"""What the README, the manual and models.toml promise is what the code has."""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from llmserve.api.app import ENDPOINTS
from llmserve.api.endpoint import Endpoint
from llmserve.api.native.schemas import InferenceRequest, Parameters
from llmserve.api.openai.chat_schemas import ChatRequest
from llmserve.api.openai.responses.schemas import ResponsesRequest
from llmserve.api.openai.schemas import CompletionRequest, EmbeddingsRequest
from llmserve.auth.key_file import read_file
from llmserve.auth.keys import Key
from llmserve.cli.main import cli
from llmserve.config.load import load_config
from llmserve.config.provider import KEYS as PROVIDER_KEYS
from llmserve.config.schema import ModelSpec, ServerConfig
from llmserve.errors import LlmserveError, ModelFileError
from llmserve.library.config import SERVER_KEYS
from llmserve.library.parameters import StreamParameters
from llmserve.telemetry.metrics import Metrics
from tests.bench.__main__ import main as bench
from tests.e2e.test_server import CURL

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmserve"
DOCS = PACKAGE / "docs"
MODELS_TOML = (ROOT / "models.toml").read_text(encoding="utf-8")
MAX_README_LINES = 200
COMING: set[str] = set()  # rooms that are being written

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file())
COMMENTED = re.compile(r"^# (?=\[|\w+ = )", re.MULTILINE)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page:
    """One Markdown file; `prose` is what is not in fenced blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.text = path.read_text(encoding="utf-8")
        self.prose = _FENCED.sub("", self.text)
        self.blocks = [(language, block) for language, block in _FENCED.findall(self.text)]
        self.headings: list[str] = re.findall(r"^(#+ .+)$", self.prose, re.MULTILINE)

    @property
    def anchors(self) -> list[str]:
        """As GitHub makes them of headings."""
        anchors: list[str] = []
        for heading in self.headings:
            text = re.sub(r"\]\([^)]*\)", "]", heading.lstrip("#").strip().lower())
            slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            again = sum(
                re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one) is not None for one in anchors
            )
            anchors.append(f"{slug}-{again}" if again else slug)
        return anchors

    @property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", self.prose))

    def tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        """The title of the first column, and the rows."""
        for table in re.findall(r"(?:^\|.*\n)+", self.prose, re.MULTILINE):
            head, _, *rows = [_cells(line) for line in table.splitlines()]
            yield head[0], rows


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


README = Page(ROOT / "README.md")
MANUAL = {path.name: Page(path) for path in sorted(DOCS.glob("*.md"))}
PAGES = [README, *MANUAL.values()]
ALL_TEXT = "\n".join(page.text for page in PAGES)
page_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# -- pages and links -----------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.text.splitlines()) <= MAX_README_LINES


@page_of
def test_a_page_has_one_title_at_its_top(page: Page) -> None:
    assert page.text.startswith("# ")
    assert sum(heading.startswith("# ") for heading in page.headings) == 1


@page_of
def test_every_link_and_anchor_resolves(page: Page) -> None:
    for link in page.links:
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.path if not file else page.path.parent / file
        if target.name in COMING:
            continue
        assert target.is_file(), link
        if anchor:
            assert anchor in Page(target).anchors, link


@page_of
def test_the_manual_is_whole_without_the_repository(page: Page) -> None:
    """`GET /docs` has nothing but the folder; the README is beside it, and links into it."""
    for link in page.links:
        target = (page.path.parent / link.partition("#")[0]).resolve()
        assert re.match(r"https?://", link) or target.is_relative_to(DOCS), link


@pytest.mark.parametrize("page", [README, MANUAL["index.md"]], ids=lambda page: page.name)
def test_every_page_is_in_the_list_of_pages(page: Page) -> None:
    linked = {Path(link.partition("#")[0]).name for link in page.links}
    assert {*MANUAL} - {"index.md"} <= linked


# -- tables --------------------------------------------------------------------------------------


class Documented(NamedTuple):
    """The one table that has all of `names`, and no other; `title` is of its first column."""

    page: str
    title: str
    names: set[str]


def fields(*structs: type) -> set[str]:
    return {name for each in structs for name in each.__struct_fields__}  # type: ignore[attr-defined]


def options(command: str) -> set[str]:
    shown = [
        param.opts for param in cli.commands[command].params if param.param_type_name == "option"
    ]
    return {name for names in shown for name in names if name.startswith("--")}


DOCUMENTED = [
    Documented("models.md", "key of `[models.NAME]`", fields(ModelSpec) - {"name", "remote"}),
    Documented("models.md", "key of `[server]`", fields(ServerConfig)),
    Documented("remote.md", "key of a remote `[models.NAME]`", {*PROVIDER_KEYS}),
    Documented("keys.md", "key of `[keys.NAME]`", fields(Key)),
    Documented(
        "native.md",
        "field of `POST /inference`",
        fields(InferenceRequest) | {f"parameters.{name}" for name in fields(Parameters)},
    ),
    Documented(
        "openai.md", "field of chats and completions", fields(ChatRequest, CompletionRequest)
    ),
    Documented("openai.md", "field of `POST /v1/responses`", fields(ResponsesRequest)),
    Documented("openai.md", "field of `POST /v1/embeddings`", fields(EmbeddingsRequest)),
    Documented("library.md", "parameter", {*StreamParameters.__annotations__}),
    Documented("operations.md", "flag of `llmserve serve`", options("serve")),
    Documented("models.md", "flag of `llmserve pull`", options("pull")),
    Documented(
        "operations.md",
        "metric",
        {*re.findall(r"^# HELP (\w+) ", Metrics().render().decode(), re.MULTILINE)},
    ),
]


@pytest.mark.parametrize("each", DOCUMENTED, ids=lambda each: each.title)
def test_a_table_has_every_name_and_no_other(each: Documented) -> None:
    (rows,) = [rows for title, rows in MANUAL[each.page].tables() if title == each.title]
    found: list[str] = re.findall(r"`([\w.-]+)`", " ".join(row[0] for row in rows))
    assert len(set(found)) == len(found), "a row stands twice"
    assert {name if name in each.names else name.partition(".")[0] for name in found} == each.names


def test_a_key_a_field_a_flag_and_a_metric_stand_in_one_table_only() -> None:
    titles = [
        (page.name, title)
        for page in PAGES
        for title, _ in page.tables()
        if re.match(r"(key|field|flag) of|metric|parameter", title)
    ]
    assert sorted(titles) == sorted((each.page, each.title) for each in DOCUMENTED)


EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, block) in enumerate(page.blocks)
    if language == "toml" and "[models." in block
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_of_a_models_toml_loads(text: str, tmp_path: Path) -> None:
    if "[models.smollm2]" not in text:  # a fallback
        text += '[models.smollm2]\npath = "smollm2.gguf"\n'
    path = tmp_path / "models.toml"
    path.write_text(text, encoding="utf-8")
    assert {model.name for model in load_config(path).models} == {*tomllib.loads(text)["models"]}


def test_the_example_of_a_key_file_loads(tmp_path: Path) -> None:
    (text,) = [block for _, block in MANUAL["keys.md"].blocks if block.startswith("[keys.")]
    path = tmp_path / "keys.toml"
    path.write_text(text.replace("…", "0" * 64), encoding="utf-8")
    path.chmod(0o600)
    assert list(read_file(path)) == ["alice"]


def test_the_manual_has_every_key_of_the_server_that_a_library_takes() -> None:
    (sentence,) = re.findall(r"and of `\[server\]` (.*?)\.", MANUAL["library.md"].text, re.DOTALL)
    assert {*re.findall(r"`(\w+)`", sentence)} == {*SERVER_KEYS}


# -- routes, errors, commands --------------------------------------------------------------------


ROUTES = [  # not the files and pages of the manual
    each for each in ENDPOINTS.all if not (each.path.startswith("/docs/") and "{" in each.path)
]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_the_manual_has_every_route(route: Endpoint) -> None:
    path = route.path.replace("{name:path}", "NAME")
    spelled = {f"{route.method} {path}"}
    if path == "/models/NAME/unload":
        spelled.add("POST /models/NAME/load`, `/unload")
    manual = "\n".join(page.text for page in MANUAL.values())
    assert any(f"{one}`" in manual or f"## {one}\n" in manual for one in spelled)


@page_of
def test_a_page_names_no_route_that_does_not_exist(page: Page) -> None:
    for method, path in re.findall(r"`(GET|POST) (/[\w./-]*)", page.prose):
        assert method in {each.method for each in ENDPOINTS.at(path)}, path


def error_classes(base: type[LlmserveError] = LlmserveError) -> Iterator[type[LlmserveError]]:
    """Those that reach clients: a file's errors become a model's, others than 400 a parser's."""
    yield base
    for each in base.__subclasses__():
        if each is not ModelFileError and each.__module__.startswith("llmserve."):
            yield from error_classes(each)


def test_the_manual_has_every_error_with_its_status() -> None:
    (rows,) = [rows for title, rows in MANUAL["native.md"].tables() if title == "status"]
    found = {
        (int(status), code)
        for row in rows
        for status in row[0].split(", ")
        for code in re.findall(r"`(\w+)`", row[1])
    }
    raised = {(each.status, each.code) for each in error_classes()}
    assert raised <= found
    of_starlette = {(404, "route_not_found"), (405, "method_not_allowed")}
    assert {code for _, code in found} == {code for _, code in raised | of_starlette}


def test_the_help_of_the_manual_is_current() -> None:
    shown = CliRunner().invoke(cli, ["--help"], prog_name="llmserve", terminal_width=100).output
    assert ("", shown) in MANUAL["operations.md"].blocks, shown


def test_every_suite_of_the_benchmark_has_its_figures() -> None:
    named = set(re.findall(r"`scripts/bench(?: ([a-z]+))?", MANUAL["figures.md"].prose)) - {""}
    assert named == {*bench.commands}


def test_every_format_of_calls_is_in_the_manual() -> None:
    files = {path.name for path in (PACKAGE / "chat/tools/formats").glob("[!_]*.py")}
    (rows,) = [rows for title, rows in MANUAL["structured.md"].tables() if title == "format"]
    assert {row[2] for row in rows} == {f"`{name}`" for name in files - {"model.py", "detect.py"}}


def test_the_curl_of_the_readme_is_the_one_that_is_tested() -> None:
    assert CURL in README.text


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_executable_and_in_the_manual(name: str) -> None:
    assert os.access(ROOT / "scripts" / name, os.X_OK)
    assert f"scripts/{name}" in ALL_TEXT


@page_of
def test_a_page_names_no_script_that_does_not_exist(page: Page) -> None:
    assert set(re.findall(r"scripts/([a-z-]+)", page.text)) <= set(SCRIPTS) | {"deploy", "locks"}


# -- the map -------------------------------------------------------------------------------------


ROOMS = [path.parent for path in sorted(PACKAGE.rglob("__init__.py")) if path.parent != PACKAGE]


def mapped(block: str) -> Iterator[Path]:
    """A line is names and, after two spaces, what they are; its indentation says in which room."""
    parents: list[tuple[int, Path]] = []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        parents = [each for each in parents if each[0] < indent]
        inside = parents[-1][1] if parents else PACKAGE
        names = [inside / name for name in re.findall(r"\w+", line.lstrip().split("  ")[0])]
        parents.append((indent, names[-1]))
        yield from names


def test_the_map_is_the_package() -> None:
    (block,) = [block for _, block in MANUAL["architecture.md"].blocks]
    found = [*mapped(block)]
    assert {*ROOMS} <= {*found}
    modules = [path for path in found if path not in ROOMS and path.name not in COMING]
    assert all(path.with_suffix(".py").is_file() for path in modules), modules


def test_every_room_is_on_the_map_of_the_readme() -> None:
    (block,) = [block for _, block in README.blocks if "\nllmserve/\n" in block]
    inside = block.partition("\nllmserve/\n")[2]
    named = {name for line in inside.splitlines() for name in re.findall(r"\b(\w+)/", line)}
    assert {room.name for room in ROOMS if room.parent == PACKAGE} <= named
    assert named <= {room.name for room in ROOMS} | {DOCS.name, *COMING}


@page_of
def test_every_module_and_folder_that_is_named_exists(page: Page) -> None:
    tops = "|".join([*(each.name for each in ROOMS if each.parent == PACKAGE), "tests", "scripts"])
    for named in re.findall(rf"`((?:{tops})/[\w./-]+)`", page.prose):
        places = [base / named for base in (PACKAGE, ROOT)]
        assert any(place.exists() or place.with_suffix(".py").is_file() for place in places), named


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
