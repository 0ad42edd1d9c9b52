"""`LLM` over the real model, in processes as programs have them."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

import llmserve
from llmserve import LLM
from llmserve.errors import EngineCrashedError, ShuttingDownError, TooLargeError
from tests.fake_hub import HubServer, serve_hub
from tests.serving import TIMEOUT_S, command_environment, metric, wait_until
from tests.smollm2 import MODEL
from tests.tiny_models import write_llama

EXAMPLES = sorted((Path(llmserve.__file__).parent / "docs" / "examples").glob("*.py"))
PLACES = ["Paris", "Tokyo", "Cairo", "Lima", "Oslo", "Rome", "Delhi", "Quito"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": PLACES}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, context_length=1024, threads=1) as made:
        yield made


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


# -- answers -------------------------------------------------------------------------------------


def test_threads_at_once_are_computed_in_one_batch(llm: LLM) -> None:
    def ask(place: str) -> str:
        return llm.generate(place, max_tokens=24, ignore_eos=True, seed=1).text

    def steps(rows: str) -> float:
        """Those of at most so many rows."""
        text = llm._background.gateway.render_metrics().decode()
        return metric(text, "llmserve_batch_tokens_bucket", le=rows)

    before, before_small = steps("+Inf"), steps("4.0")
    with ThreadPoolExecutor(len(PLACES)) as threads:
        texts = list(threads.map(ask, PLACES))
    assert len(set(texts)) == len(PLACES)
    assert steps("4.0") - before_small < (steps("+Inf") - before) / 2


def test_a_list_and_tasks_are_batched_too(llm: LLM) -> None:
    answers = llm.generate(PLACES, max_tokens=8, ignore_eos=True)
    assert all(answer.generated_tokens == 8 for answer in answers)

    async def main() -> list[str]:
        calls = [llm.agenerate(place, max_tokens=8) for place in PLACES]
        return [answer.text for answer in await asyncio.gather(*calls)]

    assert len(asyncio.run(main())) == len(PLACES)


def test_a_schema_holds(llm: LLM) -> None:
    answer = llm.chat(
        [{"role": "user", "content": "A city, as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        max_tokens=80,
    )
    assert json.loads(answer.text)["city"] in PLACES


def test_a_tool_is_called_and_its_result_read(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Find a city."}]
    answer = llm.chat(messages, tools=[TOOL], tool_choice="find", max_tokens=120)
    (call,) = answer.tool_calls
    assert json.loads(call.arguments)["city"] in PLACES
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"found": true}'}
    assert llm.chat([*messages, answer.message, result], tools=[TOOL], max_tokens=8).text


def test_a_stream_that_is_left_makes_room(llm: LLM) -> None:
    for _ in range(3):
        for _ in llm.stream("Once upon a time", ignore_eos=True).texts():
            break
    begin = llm.generate("Once upon a time", max_tokens=4)
    assert begin.timings.queue_position == 0


def test_a_prompt_that_is_too_long(llm: LLM) -> None:
    with pytest.raises(TooLargeError, match="1024"):
        llm.generate("word " * 3000)


def test_a_known_prefix_is_not_computed_again(llm: LLM) -> None:
    system = "You know all cities of the world and their histories. " * 8
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Which?"}]
    llm.chat(messages, max_tokens=2)
    assert llm.chat(messages, max_tokens=2).cached_tokens > 50


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_embeddings(isolation: str) -> None:
    with LLM(MODEL, pooling="mean", context_length=256, isolation=isolation) as llm:
        found = llm.embed(["a llama", "a llama", "a tax law"])
        assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1)
        same, other = found.vectors[0] @ found.vectors[1], found.vectors[0] @ found.vectors[2]
        assert same > other
        assert llm.generate("Hi", max_tokens=2).text


# -- the end -------------------------------------------------------------------------------------


def test_closing_ends_calls_and_processes() -> None:
    before = set(children())
    llm = LLM(MODEL, context_length=4096)
    with ThreadPoolExecutor(3) as threads:
        calls = [
            threads.submit(llm.generate, f"{n}", ignore_eos=True, max_tokens=900) for n in range(3)
        ]
        next(llm.stream("x", max_tokens=9))  # the model is loaded
        llm.close()
        for call in calls:
            with pytest.raises(ShuttingDownError, match="was closed"):
                call.result(TIMEOUT_S)
    assert set(children()) == before


def test_a_crash_is_told_and_the_next_call_is_answered() -> None:
    before = set(children())
    with LLM(MODEL, context_length=512) as llm:
        stream = llm.stream("x", ignore_eos=True)
        next(stream)
        (child,) = set(children()) - before
        child.kill()
        with pytest.raises(EngineCrashedError, match="killed by signal 9"):
            stream.result()
        assert llm.generate("Hi", max_tokens=2).text


def run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize("isolation", ["process", "thread"])
@pytest.mark.parametrize(
    "left",
    [
        "",
        "llm.generate('Hi', max_tokens=2)",
        "stream = llm.stream('Hi')",
        "stream = llm.stream('Hi', ignore_eos=True); next(stream)",
    ],
    ids=["made", "answered", "loading", "streaming"],
)
def test_a_program_that_closes_nothing_ends_at_once(isolation: str, left: str) -> None:
    code = f"""
import os, psutil, time
from llmserve import LLM
llm = LLM({str(MODEL)!r}, context_length=512, isolation={isolation!r})
{left}
print(time.time(), [child.pid for child in psutil.Process().children()])
"""
    done = run(code, "-X", "dev", "-W", "error")
    end_s = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    printed_s, _, pids = done.stdout.partition(" ")
    assert end_s - float(printed_s) < 5
    wait_until(lambda: not any(map(psutil.pid_exists, json.loads(pids))), "the model's end")


@pytest.mark.parametrize("call", ["llm.generate({})", "llm.stream({}).result()"])
def test_ctrl_c_ends_a_call(call: str) -> None:
    code = f"""
import threading
from llmserve import LLM

def say_ready():
    next(llm.stream("y"))
    print("ready", flush=True)

with LLM({str(MODEL)!r}, context_length=2048) as llm:
    llm.load()
    threading.Thread(target=say_ready).start()
    {call.format("'x', ignore_eos=True, max_tokens=1500")}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGINT, err
    assert err.endswith("KeyboardInterrupt\n"), err


# -- from the hub, and the examples --------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with serve_hub() as server:
        weights = write_llama(tmp_path / "tiny.gguf").read_bytes()
        server.repos["owner/tiny-GGUF"] = {"Tiny-Q4_K_M.gguf": weights}
        yield server


def test_a_model_of_the_hub_is_downloaded_once(hub: HubServer, tmp_path: Path) -> None:
    code = """
import sys
from llmserve import LLM
from llmserve.errors import LlmserveError
with LLM("owner/tiny-GGUF:Q4_K_M", context_length=256, **eval(sys.argv[1])) as llm:
    try:
        print(llm.generate("w1", max_tokens=2).generated_tokens, llm)
    except LlmserveError as error:
        print(error)
"""

    def ask(config: str = "{}", **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, config],
            env={
                **command_environment(),
                "HF_HOME": str(tmp_path / "hf"),
                "HF_ENDPOINT": hub.url,
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "HF_HUB_OFFLINE" in ask(HF_HUB_OFFLINE="1")
    assert "not on disk" in ask("{'auto_download': False}")
    assert not hub.seen
    expected = "2 LLM('owner/tiny-GGUF:Q4_K_M', 'hf owner/tiny-GGUF:Q4_K_M')\n"
    assert ask() == expected
    assert len(hub.gets("Tiny-Q4_K_M.gguf")) == 1
    hub.seen.clear()
    assert ask(HF_HUB_OFFLINE="1") == ask() == expected
    assert not hub.seen


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", path],
        env=command_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 40


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES)
