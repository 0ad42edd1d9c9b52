"""`LLM` over a fake model: threads, loops, streams, and every way to end."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmserve
from llmserve import LLM
from llmserve.config.schema import Config
from llmserve.core import Delta, FinishReason, ReasoningDelta, ToolCallDelta
from llmserve.engine.runtime import EmbeddingLimits
from llmserve.errors import (
    InvalidRequestError,
    LlmserveError,
    ModelFileError,
    ModelUnavailableError,
    ShuttingDownError,
)
from llmserve.gateway import Gateway
from llmserve.library.results import Generation
from tests.chat.templates import QWEN3
from tests.fakes import TEMPLATE
from tests.serving import TIMEOUT_S, FakeService, command_environment, wait_until

TOML = '[models.fake]\npath = "none.gguf"\n'
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
}
USER = [{"role": "user", "content": "Hi"}]
EMBEDDING = EmbeddingLimits(8, max_len=64, max_batch=32, max_inputs=4, num_cells=64)


class Fake:
    """An `LLM`, and the fake service that its gateway is of."""

    llm: LLM
    service: FakeService

    def wait_running(self, num_running: int) -> None:
        wait_until(
            lambda: self.service.runtimes and self.service.num_running == num_running,
            f"{num_running} requests to run",
        )


Make = Callable[..., AbstractContextManager[Fake]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    (tmp_path / "models.toml").write_text(TOML)
    (tmp_path / "none.gguf").touch()

    @contextmanager
    def make(
        *, gated: bool = False, load_error: Exception | None = None, **options: Any
    ) -> Iterator[Fake]:
        found = Fake()

        def build(config: Config, environment: Mapping[str, str]) -> Gateway:
            found.service = FakeService(
                config,
                {"num_cells": 4096, "num_slots": 4, "max_batch": 64, **options},
                gate=threading.Semaphore(0) if gated else None,
                load_gate=threading.Event(),
                load_error=load_error,
                environment=environment,
                keyring=None,
                bounds=None,
                tracing=None,
            )
            found.service.load_gate.set()
            return found.service.gateway

        monkeypatch.setattr("llmserve.assembly.build_gateway", build)
        found.llm = LLM("fake", config_file=tmp_path / "models.toml")
        try:
            yield found
        finally:
            if hasattr(found, "llm"):
                found.llm.close()
            wait_until(lambda: all(one.closed for one in found.service.runtimes.values()))
            assert found.service.gateway.num_active == 0

    return make


# -- calls ---------------------------------------------------------------------------------------


def test_a_prompt(fake: Make) -> None:
    with fake(answer="Blue.") as made:
        answer = made.llm.generate("Name a colour.", mode="completion", seed=5)
    assert str(answer) == answer.text == "Blue."
    assert (answer.finish_reason, answer.model, answer.seed) == (FinishReason.STOP, "fake", 5)
    assert (answer.prompt_tokens, answer.generated_tokens) == (14, 6)
    assert answer.timings.ttft_s > 0


def test_a_list_is_answered_in_its_order_and_in_one_batch(fake: Make) -> None:
    prompts = [f"{number} and" for number in range(9)]
    with fake() as made:
        alone = [made.llm.generate(p, temperature=0, max_tokens=8).text for p in prompts]
        together = made.llm.generate(prompts, temperature=0, max_tokens=8)
        assert made.llm.generate([]) == []
        assert max(made.service.runtime.batch_sizes[-9:]) >= 4
    assert [answer.text for answer in together] == alone


def test_a_list_is_refused_as_a_whole(fake: Make) -> None:
    with fake(context_length=64) as made:
        with pytest.raises(LlmserveError, match="64"):
            made.llm.generate(["short", "x" * 100], mode="completion", ignore_eos=True)
        assert made.service.gateway.num_active == 0, "the other one was cancelled"


def test_many_threads_are_answered_in_one_batch(fake: Make) -> None:
    with fake(gated=True) as made, ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(made.llm.generate, f"{n}", max_tokens=4, temperature=0) for n in range(4)
        ]
        wait_until(lambda: made.service.runtimes and made.service.runtime.decoding.is_set())
        wait_until(lambda: made.service.gateway.num_active == 4, "all to be there")
        made.service.step(1000)
        texts = [each.result(TIMEOUT_S).text for each in asked]
        assert max(made.service.runtime.batch_sizes) >= 4
    assert len(set(texts)) > 1


def test_a_conversation_with_a_tool(fake: Make) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    with fake(answer=call, chat_template=TEMPLATE) as made:
        answer = made.llm.chat(USER, tools=[TOOL], tool_choice="add")
        (found,) = answer.tool_calls
        assert (found.name, found.arguments) == ("add", '{"a": 1}')
        assert answer.finish_reason is FinishReason.TOOL_CALLS
        assert answer.message.tool_calls == (found,)
        result = {"role": "tool", "tool_call_id": found.id, "content": "2"}
        again = made.llm.chat([*USER, answer.message, result])
        assert again.prompt_tokens > answer.generated_tokens
        parts = [*made.llm.stream(USER, tools=[TOOL], tool_choice="required")]
    assert "".join(p.arguments for p in parts if isinstance(p, ToolCallDelta)) == '{"a": 1}'


def test_an_answer_in_a_format(fake: Make) -> None:
    with fake(answer="no") as made:
        text = made.llm.generate("?", response_format={"type": "regex", "regex": "yes|nope"}).text
    assert text == "nope"


def test_embeddings(fake: Make) -> None:
    with fake(embedding=EMBEDDING) as made:
        found = made.llm.embed(["a", "b", "a"], dimensions=4)
        assert found.vectors.shape == (3, 4)
        assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1)
        assert (found.vectors[0] == found.vectors[2]).all()
        assert (asyncio.run(made.llm.aembed("a", dimensions=4)).vectors == found.vectors[:1]).all()


def test_a_wrong_call_is_told_before_anything_is_loaded(fake: Make) -> None:
    with fake() as made:
        with pytest.raises(InvalidRequestError, match="temperature is 3; it must be a number"):
            made.llm.generate("x", temperature=3)
        with pytest.raises(InvalidRequestError, match="token 99999 is not in the vocabulary"):
            made.llm.generate("x", logit_bias={99_999: 1})
        assert made.llm.generate("x", max_tokens=1), "it still works"


# -- streams -------------------------------------------------------------------------------------


def test_a_stream_has_parts_texts_and_the_whole(fake: Make) -> None:
    with fake(answer="Red, blue.") as made:
        stream = made.llm.stream("Colours?")
        parts = [*stream]
        assert all(isinstance(part, Delta) for part in parts)
        assert "".join(part.text for part in parts if isinstance(part, Delta)) == "Red, blue."
        assert stream.result().text == "Red, blue."
        assert "".join(made.llm.stream("Colours?").texts()) == "Red, blue."
        assert made.llm.stream("Colours?").result().generated_tokens == 11


def test_thoughts_are_parts_of_their_own(fake: Make) -> None:
    with fake(answer="<think>\nHm.\n</think>\n\nBlue.", chat_template=QWEN3) as made:
        stream = made.llm.stream("Colour?")
        thoughts = [part.text for part in stream if isinstance(part, ReasoningDelta)]
        whole = stream.result()
    assert ("".join(thoughts), whole.reasoning, whole.text) == ("Hm.", "Hm.", "Blue.")
    assert whole.message.reasoning == "Hm."


@pytest.mark.parametrize("way", ["close", "with", "texts", "forget"])
def test_leaving_a_stream_cancels_it(fake: Make, way: str) -> None:
    with fake() as made:
        stream = made.llm.stream("x", ignore_eos=True, temperature=0)
        match way:
            case "close":
                next(stream)
                stream.close()
            case "with":
                with stream:
                    next(stream)
            case "texts":
                for _ in stream.texts():
                    break
            case _:
                next(stream)
                del stream
        wait_until(lambda: made.service.gateway.num_active == 0, "it to be cancelled")
        made.wait_running(0)
        if way != "forget":
            assert [*stream] == []
            with pytest.raises(InvalidRequestError, match="left before its end"):
                stream.result()


def test_an_error_in_a_stream_is_raised_once(fake: Make) -> None:
    with fake(context_length=32) as made:
        stream = made.llm.stream("x" * 40, mode="completion")
        with pytest.raises(LlmserveError, match="32"):
            next(stream)
        assert [*stream] == []


def test_a_stream_keeps_its_model(fake: Make) -> None:
    with fake(answer="Blue.") as made:
        stream = made.llm.stream("Colour?")
        del made.llm
        gc.collect()
        assert stream.result().text == "Blue."
        assert not made.service.runtime.closed
        del stream  # and with it the last that needs the model, which the fixture sees


# -- event loops ---------------------------------------------------------------------------------


def test_the_twins_for_event_loops(fake: Make) -> None:
    async def main(llm: LLM) -> None:
        await llm.aload()
        answers = await asyncio.gather(
            llm.agenerate("a"), llm.achat(USER), llm.astream("b").result()
        )
        assert [answer.text for answer in answers] == ["Blue."] * 3
        assert [each.text for each in await llm.agenerate(["a", "b"])] == ["Blue."] * 2
        assert "".join([text async for text in llm.astream("a").texts()]) == "Blue."
        parts = [part async for part in llm.astream(USER)]
        assert all(isinstance(part, Delta) for part in parts)

    with fake(answer="Blue.") as made:
        asyncio.run(main(made.llm))
        asyncio.run(main(made.llm))  # another loop, the same model


def test_cancelling_a_task_cancels_its_work(fake: Make) -> None:
    async def main(made: Fake) -> None:
        task = asyncio.create_task(made.llm.agenerate("x", ignore_eos=True))
        await asyncio.to_thread(made.wait_running, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(made.wait_running, 0)

    with fake() as made:
        asyncio.run(main(made))


def test_leaving_an_async_stream_cancels_it(fake: Make) -> None:
    async def main(made: Fake) -> None:
        async with made.llm.astream("x", ignore_eos=True) as stream:
            assert await anext(stream)
        async for _ in made.llm.astream("x", ignore_eos=True).texts():
            break
        forgotten = made.llm.astream("x", ignore_eos=True)
        assert await anext(forgotten)
        del forgotten
        await asyncio.to_thread(made.wait_running, 0)

    with fake() as made:
        asyncio.run(main(made))


def test_a_loop_that_ends_leaves_no_work_behind(fake: Make) -> None:
    streams = []

    async def main(llm: LLM) -> None:
        streams.append(llm.astream("x", ignore_eos=True))
        await anext(streams[0])

    with fake() as made:
        asyncio.run(main(made.llm))
        streams.clear()
        made.wait_running(0)


def test_an_llm_closes_with_its_block(fake: Make) -> None:
    async def main(llm: LLM) -> None:
        async with llm:
            assert await llm.agenerate("x", max_tokens=1)
        with pytest.raises(ShuttingDownError):
            await llm.agenerate("x")

    with fake() as made:
        asyncio.run(main(made.llm))
    with fake() as made:
        with made.llm as llm:
            assert llm.generate("x", max_tokens=1)
        with pytest.raises(ShuttingDownError):
            llm.generate("x")


# -- loading -------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_it_is_wanted(fake: Make) -> None:
    with fake() as made:
        assert not made.service.runtimes
        made.llm.load()
        assert made.service.runtimes


def test_why_it_cannot_be_loaded(fake: Make) -> None:
    with fake(load_error=ModelUnavailableError("broken weights")) as made:
        for call in (
            made.llm.load,
            lambda: made.llm.generate("x"),
            lambda: [*made.llm.stream("x")],
        ):
            with pytest.raises(ModelUnavailableError, match="broken weights"):
                call()


def test_a_file_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(TOML)
    with pytest.raises(ModelFileError, match=r"none\.gguf"):
        LLM(config_file=tmp_path / "models.toml")


def test_the_config_is_found_as_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    for folder, name in ((tmp_path / "here", "here"), (tmp_path, "there")):
        (folder / "models.toml").write_text(f'[models.{name}]\npath = "none.gguf"\n')
        (folder / "none.gguf").touch()
    monkeypatch.chdir(tmp_path / "here")
    with LLM() as llm:
        assert repr(llm) == f"LLM('here', 'path {tmp_path / 'here' / 'none.gguf'}')"
    monkeypatch.setenv("LLMSERVE_CONFIG", str(tmp_path / "models.toml"))
    with LLM() as llm:
        assert "'there'" in repr(llm)
    with LLM(config_file="models.toml") as llm:
        assert "'here'" in repr(llm)


# -- the end -------------------------------------------------------------------------------------


def test_closing_ends_what_runs_with_an_error(fake: Make) -> None:
    def iterate(llm: LLM) -> Any:
        for _ in llm.stream("y", ignore_eos=True):
            pass

    with fake(gated=True) as made, ThreadPoolExecutor(7) as threads:
        llm = made.llm
        calls = [threads.submit(llm.generate, f"{n}", ignore_eos=True) for n in range(5)]
        calls.append(threads.submit(iterate, llm))
        calls.append(threads.submit(lambda: asyncio.run(llm.agenerate("z", ignore_eos=True))))
        wait_until(lambda: made.service.gateway.num_active == 7, "all to be there")
        llm.close()
        for call in calls:
            with pytest.raises(ShuttingDownError, match="was closed"):
                call.result(TIMEOUT_S)
        llm.close()  # again


def test_whoever_calls_while_it_closes_gets_an_answer_or_an_error(fake: Make) -> None:
    def call(llm: LLM, start: threading.Barrier) -> list[object]:
        start.wait()
        outcomes: list[object] = []
        while not outcomes or not isinstance(outcomes[-1], ShuttingDownError):
            try:
                outcomes.append(llm.generate("x", max_tokens=1))
            except ShuttingDownError as error:
                outcomes.append(error)
        return outcomes

    for _ in range(5):
        with fake() as made, ThreadPoolExecutor(4) as threads:
            start = threading.Barrier(5)
            calls = [threads.submit(call, made.llm, start) for _ in range(4)]
            start.wait()
            made.llm.close()
            assert all(each.result(TIMEOUT_S) for each in calls)


def test_closing_while_it_loads(fake: Make) -> None:
    with fake() as made, ThreadPoolExecutor(1) as threads:
        made.service.load_gate.clear()
        call = threads.submit(made.llm.generate, "x")
        wait_until(lambda: made.service.gateway.num_active == 1, "the call")
        closing = threading.Thread(target=made.llm.close)
        closing.start()
        with pytest.raises(ShuttingDownError):
            call.result(TIMEOUT_S)
        made.service.load_gate.set()  # a load cannot be interrupted, here
        closing.join(TIMEOUT_S)
        assert not closing.is_alive()


def test_one_that_is_forgotten_gives_its_model_back(fake: Make) -> None:
    with fake() as made:
        made.llm.load()
        thread = weakref.ref(made.llm._background._thread)
        del made.llm
        gc.collect()
        wait_until(lambda: made.service.runtime.closed, "the model to be closed")
        wait_until(lambda: not ((one := thread()) and one.is_alive()), "the thread to end")


def test_a_config_that_cannot_be_built_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: Config, environment: Mapping[str, str]) -> Gateway:
        raise ModelUnavailableError("no")

    (tmp_path / "none.gguf").touch()
    monkeypatch.setattr("llmserve.assembly.build_gateway", build)
    with pytest.raises(ModelUnavailableError, match="no"):
        LLM(tmp_path / "none.gguf")
    wait_until(lambda: "llmserve" not in [each.name for each in threading.enumerate()])


# -- as a package --------------------------------------------------------------------------------


def python(code: str, *flags: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**command_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_the_package_imports_nothing_of_the_engine() -> None:
    assert python(
        "import sys, llmserve; print([m for m in sys.modules if m.startswith('llmserve')])"
    ) == ("['llmserve']\n")
    assert "LLM" in llmserve.__all__
    with pytest.raises(AttributeError, match="no attribute 'LM'"):
        llmserve.LM  # type: ignore[attr-defined]  # noqa: B018


def test_the_library_imports_no_web_server_and_no_native_code() -> None:
    heavy = {"starlette", "uvicorn", "llama_cpp", "llguidance", "huggingface_hub", "click"}
    code = f"import sys; from llmserve import LLM; print({heavy} & set(sys.modules))"
    assert python(code) == "set()\n"


def test_a_fork_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").touch()
    code = f"""
import gc, os
from llmserve import LLM
llm = LLM({str(tmp_path / "none.gguf")!r})
if pid := os.fork():
    assert os.waitpid(pid, 0)[1] == 0
    llm.close()
else:
    try:
        llm.generate("x")
    except Exception as error:
        print(error, flush=True)
    llm.close()
    del llm
    gc.collect()
    os._exit(0)
"""
    said = python(code, "-W", "ignore")
    assert "make one in each process" in said


def test_a_result_reads_well(fake: Make) -> None:
    with fake(answer="Blue. " * 20) as made:
        answer = made.llm.generate("Colour?", mode="completion")
    assert isinstance(answer, Generation)
    assert repr(answer) == (
        f"Generation({('Blue. ' * 10)!r}…, finish_reason='stop', model='fake', prompt_tokens=7,"
        " generated_tokens=121)"
    ).replace("'…,", "…',")
