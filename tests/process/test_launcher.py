"""Loads that end well, badly, early or never."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from llmserve.errors import EngineCrashedError, LlmserveError, ModelFileError
from llmserve.pool.progress import Progress
from llmserve.process.child_process import describe_exit, spawn
from llmserve.process.launcher import ProcessLauncher
from tests.process import backend
from tests.process.backend import Script
from tests.process.children import Seen, is_there, launcher, load_spec, open_child, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def children() -> list[int]:
    import psutil

    return [each.pid for each in psutil.Process().children()]


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    yield
    assert children() == []


async def test_a_refusal_is_the_same_error(tmp_path: Path) -> None:
    path = Script(refuses="tensor 3 is a lie").write(tmp_path / "model")
    with pytest.raises(ModelFileError, match="tensor 3 is a lie"):
        await open_child(path)


async def test_a_bug_is_an_error_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "model"
    path.write_text("not JSON")
    with pytest.raises(LlmserveError, match=r"^internal error; see the server's log$"):
        await open_child(path)
    (record,) = [each for each in caplog.records if "a bug ended a load" in each.message]
    assert "DecodeError" in record.__dict__["fields"]["exception"]


async def test_a_file_that_kills_its_loader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    says = [f"line {i} {'x' * 1000}" for i in range(50)] + ["GGML_ASSERT(true) failed"]
    path = Script(dies=signal.SIGABRT, says=says).write(tmp_path / "model")
    with pytest.raises(
        EngineCrashedError, match=r"killed by signal 6 .* while it was loading"
    ) as e:
        await open_child(path)
    lines = e.value.log_lines
    assert len(lines) == 20
    assert "GGML_ASSERT(true) failed" in lines[-1] or "GGML_ASSERT(true) failed" in lines
    assert max(map(len, lines)) <= 400
    assert "fake: GGML_ASSERT(true) failed" in caplog.text


async def test_a_load_without_progress_is_ended(tmp_path: Path) -> None:
    path = Script(hangs=True).write(tmp_path / "model")
    with pytest.raises(EngineCrashedError, match=r"no progress for 0.5 s \(stall_timeout\)"):
        await open_child(path, stall_timeout_s=0.5)


@pytest.mark.parametrize("how", ["progress", "task"])
async def test_a_load_can_be_given_up_at_once(how: str, tmp_path: Path) -> None:
    path = Script(hangs=True).write(tmp_path / "model")
    progress = Progress()
    loading = asyncio.create_task(launcher().launch(load_spec(path), progress, Seen()))
    await until(lambda: progress.fraction == 0.5)
    if how == "task":
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
    else:
        progress.cancel()
        with pytest.raises(EngineCrashedError, match="was told to give up"):
            await loading


async def test_the_first_child_is_asked_about_the_machine_and_then_used(tmp_path: Path) -> None:
    started = launcher()
    started.start("fake")
    (pid,) = children()
    assert await started.machine("fake") == backend.machine()
    engine = await started.launch(load_spec(Script().write(tmp_path / "model")), Progress(), Seen())
    assert engine.pid == pid
    assert await started.machine("another") == backend.machine(), "known by now"
    assert children() == [pid]
    await engine.close()


async def test_a_child_that_is_not_needed_ends() -> None:
    started = launcher()
    await started.machine("fake")
    (pid,) = children()
    started.drop("fake")
    started.drop("fake")
    await until(lambda: not is_there(pid))


async def test_a_child_that_was_started_and_is_not_needed_ends_too() -> None:
    started = launcher()
    started.start("fake")
    (pid,) = children()
    started.drop("fake")
    assert not is_there(pid)


async def test_a_child_that_does_not_greet_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmserve.process.child_process._HELLO_S", 0.2)
    started = launcher()
    started.start("fake")
    (pid,) = children()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineCrashedError, match="did not start within"):
        await started.machine("fake")
    started.drop("fake")


async def test_a_child_gets_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *("PROVIDER_KEY", "HF_TOKEN", "LLMSERVE_API_KEYS", "db_password", "PGPASS"),
        *("AWS_CREDENTIALS", "BASIC_AUTH", "HTTPS_PROXY", "OTEL_EXPORTER_OTLP_HEADERS"),
    ):
        monkeypatch.setenv(name, "hush")
    engine = await open_child(Script().write(tmp_path / "model"))
    environment = Path(f"/proc/{engine.pid}/environ").read_bytes()  # noqa: ASYNC240
    assert b"hush" not in environment
    assert b"PATH=" in environment
    await engine.close()


async def test_a_child_that_cannot_even_start() -> None:
    started = ProcessLauncher(lambda: 20, "no.such.backend")
    with pytest.raises(EngineCrashedError, match="ended with exit code 1 while it was starting"):
        await started.machine("fake")
    started.drop("fake")


async def test_a_child_ends_with_its_socket() -> None:
    process, socket = spawn("fake", backend.NAME)
    socket.close()
    assert await asyncio.to_thread(process.wait, 60) == 1
    assert process.stdout
    process.stdout.close()


async def test_no_core_is_dumped_and_memory_is_taken_from_the_child_first(tmp_path: Path) -> None:
    engine = await open_child(Script().write(tmp_path / "model"))
    folder = Path(f"/proc/{engine.pid}")
    assert "Max core file size        0                    0" in (folder / "limits").read_text()
    ours = int((Path("/proc/self") / "oom_score_adj").read_text())
    assert int((folder / "oom_score_adj").read_text()) == min(1000, ours + 300)
    assert len(os.listdir(folder / "fd")) < 12, "nothing of ours but the socket and stderr"
    await engine.close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (-9, "was killed by signal 9 (out of memory?)"),
        (-31, "was killed by signal 31"),
    ],
)
async def test_an_exit_code_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "/x/src/llama-vocab.cpp:2544: GGML_ASSERT(a == b) failed",
            "llama-vocab.cpp:2544: GGML_ASSERT(a == b) failed",
        ),
        ("  what():  unordered_map::at", "what():  unordered_map::at"),
        ("Fatal Python error: Aborted", "it gave up by itself"),
    ],
)
async def test_who_gives_up_says_why(line: str, words: str) -> None:
    assert describe_exit(-6, ["before", line, "after"]) == f"was killed by signal 6 ({words})"
