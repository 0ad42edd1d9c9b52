"""The real model's process dies or hangs under load; the server ends under load."""

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.bench import faults
from tests.bench.soak.faults import SIGNALS
from tests.bench.soak.watch import Watch, runs
from tests.serving import ServerProcess, server_process, sse_events, wait_until
from tests.smollm2 import MODEL

STALL_S = 6.0  # a step takes a second at most, also beside other work


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "models.toml"
    path.write_text(faults.config_text(Path(MODEL), stall_s=STALL_S))
    return path


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[ServerProcess]:
    with server_process(config) as running:
        yield running


@pytest.fixture(scope="module")
def watch(server: ServerProcess) -> Watch:
    return Watch(server.pid)


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_who_runs_is_told_and_who_waits_is_answered(
    server: ServerProcess, watch: Watch, signum: signal.Signals
) -> None:
    """Twenty rounds are `scripts/bench faults`."""
    told = asyncio.run(faults.strike_once(server.base_url, watch, signum))
    assert told.troubles == []
    assert len(told.streams) == faults.NUM_STREAMS
    assert len(told.waiting) == faults.NUM_WAITING
    assert any(reply.choices for reply in told.streams), "text came before the fault"
    assert told.after.descriptors <= told.before.descriptors
    assert told.after.parent_bytes < told.before.parent_bytes + 20e6


# -- the end of the server -----------------------------------------------------------------------


def stream(server: ServerProcess, max_tokens: int) -> httpx2.Response:
    parameters = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}
    body = {"prompt": "Once", "mode": "completion", "stream": True, "parameters": parameters}
    return server.post("/inference", body)


def start_streams(
    server: ServerProcess, threads: ThreadPoolExecutor, count: int, max_tokens: int
) -> list[Future[httpx2.Response]]:
    """More of them than have a slot."""
    futures = [threads.submit(stream, server, max_tokens) for _ in range(count)]
    num_running = min(count, faults.NUM_STREAMS + 1)
    wait_until(lambda: server.metric("llmserve_running_requests") == num_running)
    wait_until(lambda: server.metric("llmserve_queue_depth") == count - num_running)
    return futures


def children(server: ServerProcess) -> list[psutil.Process]:
    """The processes of its models; there are some."""
    found = psutil.Process(server.pid).children(recursive=True)
    assert server.model(faults.MODEL)["pid"] in [process.pid for process in found]
    return found


def wait_gone(processes: list[psutil.Process]) -> None:
    wait_until(lambda: not any(map(runs, processes)), "the models' processes to be gone")


def test_sigterm_under_load(config: Path) -> None:
    """Who has a slot and who waits for one are answered, who comes later is not."""
    with server_process(config) as server, ThreadPoolExecutor(24) as threads:
        models = children(server)
        accepted = start_streams(server, threads, 24, 24)
        server.signal(signal.SIGTERM)
        server.wait_log("shutting down")
        refused = [stream(server, 1) for _ in range(3)]
        assert {response.status_code for response in refused} == {503}
        assert all(int(response.headers["retry-after"]) > 0 for response in refused)
        ends = [sse_events(future.result().text)[-1] for future in accepted]
        assert [end["details"]["generated_tokens"] for end in ends] == [24] * 24
        assert server.wait() == 0
        wait_gone(models)
    assert "Traceback" not in "".join(server.log)


def test_sigterm_while_the_model_hangs(config: Path) -> None:
    """Its streams are ended after `stall_timeout`, not after the grace period of a minute."""
    with server_process(config) as server, ThreadPoolExecutor(4) as threads:
        models = children(server)
        streams = start_streams(server, threads, 4, 400)
        models[0].suspend()
        server.signal(signal.SIGTERM)
        ends = [sse_events(future.result().text)[-1] for future in streams]
        assert [end["error"]["code"] for end in ends] == ["engine_crashed"] * 4
        assert server.wait() == 0
        wait_gone(models)


def test_a_killed_server_leaves_no_orphan(config: Path) -> None:
    with server_process(config) as server, ThreadPoolExecutor(20) as threads:
        models = children(server)
        streams = start_streams(server, threads, 20, 400)
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        wait_gone(models)
        assert all(isinstance(f.exception(), httpx2.TransportError) for f in streams)
