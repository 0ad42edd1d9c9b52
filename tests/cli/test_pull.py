"""`llmserve pull` as people run it: a process of its own, with the environment that it reads."""

import os
import pty
import re
import signal
import stat
import subprocess
import sys
import termios
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

from llmserve.cli import pull
from llmserve.cli.output import Lines
from llmserve.config.load import load_config
from tests.fake_hub import COMMIT, HubServer, serve_hub
from tests.tiny_models import write_llama

ROOT = Path(__file__).parents[2]
REPO = "owner/tiny-GGUF"
FILE = "Tiny-Q4_K_M.gguf"
CONFIG = """\
# My models.   Do not  reformat!

[server]
port = 9000                          # as the firewall has it

[models."local:1"]
path = 'weights/x.gguf'
  context_length   = 4_096           # odd, but mine

[models.qwen]
hf = "owner/tiny-GGUF:q4_k_m"
aliases = [
  "default",   # with a comment
]
# [models.later]
# path = "y.gguf"
"""


class Command:
    """Runs llmserve in `directory`, which has a models.toml and the hub's cache."""

    def __init__(self, directory: Path, hub: HubServer) -> None:
        self.directory = directory
        self.config = directory / "models.toml"
        self.config.write_text(CONFIG)
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "HOME": str(directory),
            "HF_HOME": str(directory / "hf"),
            "HF_ENDPOINT": hub.url,
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "llmserve", *arguments],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def succeed(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fail(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_llama(tmp_path_factory.mktemp("model") / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(model_bytes: bytes) -> Iterator[HubServer]:
    with serve_hub() as server:
        server.repos[REPO] = {FILE: model_bytes, "mmproj-F16.gguf": b"x", "README.md": b"x"}
        yield server


@pytest.fixture
def llmserve(tmp_path: Path, hub: HubServer) -> Command:
    return Command(tmp_path, hub)


class TestDownload:
    @pytest.mark.parametrize("ref", ["qwen", "default", REPO, f"{REPO}:Q4_K_M"])
    def test_by_catalog_name_alias_or_reference(
        self, llmserve: Command, model_bytes: bytes, ref: str
    ) -> None:
        path = Path(llmserve.succeed("pull", ref).strip())
        assert path.read_bytes() == model_bytes
        assert path.is_relative_to(llmserve.directory / "hf" / "hub")

    def test_plain_lines_where_there_is_no_terminal(self, llmserve: Command) -> None:
        err = llmserve.run("pull", "qwen").stderr
        assert f"{REPO}: Q4_K_M ({FILE})" in err
        assert f"{FILE}: 100 % of" in err
        assert "\r" not in err

    def test_a_bar_on_a_terminal(self, llmserve: Command) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 120))
        process = subprocess.Popen(
            [sys.executable, "-m", "llmserve", "pull", "qwen"],
            cwd=llmserve.directory,
            env=llmserve.environment,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        shown = _read_all(ours)
        assert process.wait(60) == 0
        assert re.search(rf"{FILE}: 100%\|.*\|.* \[.*B/s\]", shown)

    def test_a_model_from_elsewhere_is_not_downloaded(self, llmserve: Command) -> None:
        (llmserve.directory / "weights").mkdir()
        (llmserve.directory / "weights" / "x.gguf").touch()
        assert llmserve.succeed("pull", "local:1").startswith("nothing to download")

    def test_goes_on_after_the_process_was_interrupted(
        self, llmserve: Command, hub: HubServer, model_bytes: bytes
    ) -> None:
        most = len(model_bytes) * 6 // 10
        hub.hang_after[FILE] = most + 10
        process = llmserve.start("pull", "qwen")
        assert process.stderr
        assert any(" 60 %" in line for line in process.stderr)  # so much is on disk now
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "the same command goes on from here" in err

        path = Path(llmserve.succeed("pull", "qwen").strip())
        assert path.read_bytes() == model_bytes
        first, second = hub.gets(FILE)
        assert first.range is None
        assert second.range
        assert most <= int(second.range.removeprefix("bytes=").removesuffix("-")) <= most + 10

    def test_two_processes_download_the_same_file_once(
        self, llmserve: Command, hub: HubServer, model_bytes: bytes
    ) -> None:
        hub.hold_for_heads = 2  # the first download lasts until the second process is there
        both = [llmserve.start("pull", "qwen") for _ in range(2)]
        answers = [(*process.communicate(timeout=60), process.returncode) for process in both]
        assert [code for _, _, code in answers] == [0, 0], answers
        assert all(Path(out.strip()).read_bytes() == model_bytes for out, _, _ in answers)
        assert len(hub.gets(FILE)) == 1

    def test_a_wrong_sha256(self, llmserve: Command, hub: HubServer, model_bytes: bytes) -> None:
        hub.sends[FILE] = bytes(len(model_bytes))
        assert "is damaged (sha256" in llmserve.fail("pull", "qwen")
        assert not list(llmserve.directory.rglob("*.incomplete"))

    def test_the_token_of_the_environment(self, llmserve: Command, hub: HubServer) -> None:
        llmserve.succeed("pull", "qwen", HF_TOKEN="hf_secret")
        assert {one.authorization for one in hub.seen} == {"Bearer hf_secret"}


class TestRefusals:
    def test_a_gated_repository_says_what_to_set(self, llmserve: Command, hub: HubServer) -> None:
        hub.gated.add(REPO)
        err = llmserve.fail("pull", "qwen")
        assert "accept its licence at" in err
        assert "set HF_TOKEN" in err

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("owner/none",), "there is no repository owner/none"),
            (("nonsense",), "is not a model of"),
            (("../../etc/passwd",), "is not a valid repository"),
            (("/etc/passwd",), "is not a valid repository"),
            ((f"{REPO}:Q9_9",), "no quantization Q9_9; it has Q4_K_M"),
            ((REPO, "--file", "../../x.gguf"), "--file: '../../x.gguf' is not a valid path"),
            ((REPO, "--revision", "v9"), "no revision 'v9'; it has main, v1"),
            ((REPO, "--sha256", "12"), "--sha256: '12' is not 64"),
            (("qwen", "--revision", "v1"), "--revision: 'qwen' is an entry of"),
            ((REPO, "--add", "qwen"), "'qwen' is there already"),
            ((REPO, "--add", "default"), "'default' is an alias of 'qwen' already"),
        ],
    )
    def test_refusals_name_the_fix(
        self, llmserve: Command, hub: HubServer, arguments: tuple[str, ...], says: str
    ) -> None:
        assert says in llmserve.fail("pull", *arguments)
        assert not hub.gets(".gguf")

    def test_list_and_add_exclude_each_other(self, llmserve: Command) -> None:
        assert llmserve.run("pull", REPO, "--list", "--add", "x").returncode == 2


class TestOffline:
    def test_a_file_on_disk_still_works(self, llmserve: Command, hub: HubServer) -> None:
        path = llmserve.succeed("pull", "qwen")
        hub.seen.clear()
        assert llmserve.succeed("pull", "qwen", HF_HUB_OFFLINE="1") == path
        assert not hub.seen

    def test_a_missing_file_names_the_reason(self, llmserve: Command, hub: HubServer) -> None:
        assert "HF_HUB_OFFLINE is set" in llmserve.fail("pull", "qwen", HF_HUB_OFFLINE="1")
        assert not hub.seen

    def test_nobody_listens(self, llmserve: Command) -> None:
        assert "cannot reach http://127.0.0.1:9" in llmserve.fail(
            "pull", "qwen", HF_ENDPOINT="http://127.0.0.1:9"
        )

    def test_looking_for_models_touches_no_network_and_imports_no_client(
        self, llmserve: Command, hub: HubServer
    ) -> None:
        code = (
            "import sys; from pathlib import Path;"
            "from llmserve.config.load import load_config;"
            "from llmserve.hub.locate import locate;"
            "print(locate(load_config(Path('models.toml')).names['qwen']));"
            "print({'httpx2', 'huggingface_hub.hf_api'} & set(sys.modules))"
        )
        path = llmserve.succeed("pull", "qwen")
        hub.seen.clear()
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=llmserve.directory,
            env=llmserve.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"{path}set()\n"
        assert not hub.seen


class TestList:
    def test_what_a_repository_has(
        self, llmserve: Command, hub: HubServer, model_bytes: bytes
    ) -> None:
        hub.repos[REPO] |= {f"Q8_0/T-Q8_0-0000{i}-of-00002.gguf": model_bytes for i in (1, 2)}
        llmserve.succeed("pull", "qwen")
        lines = llmserve.succeed("pull", REPO, "--list").splitlines()
        assert lines[0] == f"{REPO} at main ({COMMIT[:12]})"
        assert [line.split() for line in lines[2:5]] == [
            ["QUANT", "SIZE", "PARTS", "FITS", "ON", "DISK", "FILE"],
            ["Q4_K_M", "*", "110", "kB", "1", "yes", "yes", FILE],
            ["Q8_0", "221", "kB", "2", "yes", "-", "Q8_0/T-Q8_0-00001-of-00002.gguf"],
        ]
        assert "20% for the context in 80% of this machine's" in lines[-1]
        assert len(hub.gets("T-Q8_0-00001-of-00002.gguf")) == 0

    def test_a_repository_where_a_download_would_ask(
        self, llmserve: Command, hub: HubServer
    ) -> None:
        hub.repos[REPO] = {"M-Q2_K.gguf": b"x", "M-Q3_K_M.gguf": b"xx"}
        out = llmserve.succeed("pull", REPO, "--list")
        assert " * " not in out.splitlines()[3]

    def test_models_shows_what_is_on_disk(self, llmserve: Command) -> None:
        def row() -> list[str]:
            lines = llmserve.succeed("models").splitlines()
            return next(line for line in lines if line.startswith("qwen")).split()

        assert row() == ["qwen", "default", "missing", "hf", f"{REPO}:q4_k_m"]
        llmserve.succeed("pull", "qwen")
        assert row() == ["qwen", "default", "110", "kB", "hf", f"{REPO}:q4_k_m"]


class TestAdd:
    def test_appends_an_entry_that_loads_and_leaves_the_rest_alone(self, llmserve: Command) -> None:
        llmserve.config.chmod(0o640)
        path = llmserve.succeed("pull", REPO, "--add", "tiny:q4").strip()
        text = llmserve.config.read_text()
        assert text.startswith(CONFIG)
        added = text.removeprefix(CONFIG)
        assert added.startswith('\n[models."tiny:q4"]\n')
        assert f'# revision = "{COMMIT}"' in added
        assert tomllib.loads(added)["models"]["tiny:q4"] == {"hf": f"{REPO}:Q4_K_M"}
        assert stat.S_IMODE(llmserve.config.stat().st_mode) == 0o640
        assert [spec.name for spec in load_config(llmserve.config).models][-1] == "tiny:q4"
        assert llmserve.succeed("pull", "tiny:q4").strip() == path
        assert not list(llmserve.directory.glob(".models.toml*"))

    def test_an_explicit_file_and_revision_are_written_down(self, llmserve: Command) -> None:
        llmserve.succeed("pull", REPO, "--file", FILE, "--revision", "v1", "--add", "tiny")
        entry = tomlkit.parse(llmserve.config.read_text())["models"]["tiny"]
        assert entry == {"hf": REPO, "file": FILE, "revision": "v1"}

    def test_a_file_with_windows_line_ends_and_none_at_its_end(self, llmserve: Command) -> None:
        old = CONFIG.rstrip().replace("\n", "\r\n").encode()
        llmserve.config.write_bytes(old)
        llmserve.succeed("pull", REPO, "--add", "tiny")
        new = llmserve.config.read_bytes()
        assert new.startswith(old + b"\r\n\r\n[models.tiny]\r\n")
        assert b"\n" not in new.replace(b"\r\n", b"")

    def test_a_file_where_an_entry_cannot_be_appended_stays_as_it_is(
        self, llmserve: Command
    ) -> None:
        old = 'models = { qwen = { hf = "owner/tiny-GGUF" } }\n'
        llmserve.config.write_text(old)
        assert "nothing was added" in llmserve.fail("pull", REPO, "--add", "tiny")
        assert llmserve.config.read_text() == old
        assert not list(llmserve.directory.glob(".models.toml*"))

    def test_nothing_is_added_when_the_download_fails(
        self, llmserve: Command, hub: HubServer
    ) -> None:
        hub.gated.add(REPO)
        llmserve.fail("pull", REPO, "--add", "tiny")
        assert llmserve.config.read_text() == CONFIG


class TestMemory:
    def test_fits_leaves_room_for_the_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pull, "total_bytes", lambda: 1200)
        assert pull.fits(800)
        assert not pull.fits(801)


def test_lines_say_each_tenth_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start("x.gguf", 1000, 500)
    for _ in range(50):
        lines.advance(10)
    lines.finish()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "x.gguf: 1.0 kB, going on at 500 B"
    assert [line.split()[1] for line in shown[1:]] == ["60", "70", "80", "90", "100"]


def _read_all(descriptor: int) -> str:
    """Everything a terminal was sent until its other side closed."""
    shown = b""
    try:
        while part := os.read(descriptor, 65536):
            shown += part
    except OSError:  # how Linux tells the end of a terminal
        pass
    finally:
        os.close(descriptor)
    return shown.decode()
