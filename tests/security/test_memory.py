"""Memory: what arrives is cut off, and what would not fit is not begun."""

import contextlib
import socket
from collections.abc import Iterator

import psutil
import pytest

from tests.serving import TIMEOUT_S, ServerProcess
from tests.smollm2 import MODEL

MB = 1_000_000
BUDGET_MB = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With a model that does not fit."""
    config = tmp_path_factory.mktemp("memory") / "models.toml"
    config.write_text(
        f'[server]\npreload = false\nmemory_budget = "{BUDGET_MB} MB"\n'
        f'[models.large]\npath = "{MODEL}"\n'
    )
    process = ServerProcess(config)
    try:
        yield process
    finally:
        process.stop()


def rss_bytes(server: ServerProcess) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)


HEADS = {
    "declared": f"Content-Length: {1 << 30}\r\n",
    "chunked": "Transfer-Encoding: chunked\r\n",
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("path", ["/inference", "/v1/chat/completions", "/v1/embeddings"])
def test_a_body_of_1_gb_is_cut_off_early(server: ServerProcess, kind: str, path: str) -> None:
    before = rss_bytes(server)
    part = b"1" * (1 << 20)
    if kind == "chunked":
        part = b"100000\r\n" + part + b"\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{HEADS[kind]}\r\n"
    num_sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        with contextlib.suppress(OSError):  # closed in the middle of it
            connection.sendall(head.encode())
            while num_sent < 1 << 30:
                connection.sendall(part)
                num_sent += len(part)
        with contextlib.suppress(OSError):  # a reset, because of what was sent after the end
            answer = connection.recv(4096)
    assert num_sent < 64 * MB
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")
    assert rss_bytes(server) < before + 40 * MB
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_a_load_that_would_exhaust_memory_is_refused_with_both_figures(
    server: ServerProcess,
) -> None:
    before = rss_bytes(server)
    answer = server.post("/inference", {"prompt": "a"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "insufficient_memory")
    needed = int(error["message"].partition(" needs ")[2].partition(" MB")[0].replace(",", ""))
    assert needed > 98  # the file alone
    assert f"budget is {BUDGET_MB} MB" in error["message"]
    assert rss_bytes(server) < before + 40 * MB, "nothing was loaded"
    assert server.model("large")["state"] != "ready"
