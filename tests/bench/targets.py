"""The things that are measured, each behind `run(prompts, max_tokens, …) -> Sample`."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx2
import msgspec
import psutil
from msgspec import Struct

from tests.bench.bare import Order, Result
from tests.bench.family import family_bytes


class Sample(Struct):
    """One round of one workload."""

    num_tokens: int
    elapsed_s: float
    ttft_s: list[float] = []
    gaps_s: list[float] = []  # between two pieces of text of one stream

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s


class BareLoop:
    """`bench.bare` in a subprocess."""

    def __init__(self, model: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bare", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._line() == b"ready\n"
        self.rss_bytes = 0

    def run(self, prompts: list[str], max_tokens: int) -> Sample:
        assert self._process.stdin
        self._process.stdin.write(msgspec.json.encode(Order(prompts, max_tokens)) + b"\n")
        self._process.stdin.flush()
        result = msgspec.json.decode(self._line(), type=Result)
        self.rss_bytes = result.rss_bytes
        return Sample(len(prompts) * max_tokens, result.elapsed_s)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> bytes:
        assert self._process.stdout
        return self._process.stdout.readline()


_QUIET = ("--log-level", "warning")
_END_S = 60.0


class Server:
    """`llmserve serve` in a subprocess, as a user starts it."""

    def __init__(self, config: Path, *, log: IO[bytes] | None = None) -> None:
        """With a `log` for its stderr it is out of the terminal's reach: Ctrl-C is for us only."""
        self.port = _free_port()
        command = (sys.executable, "-m", "llmserve", "serve", "--config", config)
        begin_s = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), *_QUIET],
            stderr=log,
            start_new_session=log is not None,
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.healthy_s = self._poll("/health", begin_s)
        self.ready_s = self._poll("/ready", begin_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def memory_bytes(self) -> int:
        """With the processes of its models."""
        return family_bytes(self._process.pid)

    @property
    def cpu_s(self) -> float:
        """CPU time that it has taken so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def end(self) -> int:
        """Ask it to, and return its exit code: that of SIGKILL if it takes longer than it may."""
        self._process.terminate()
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _poll(self, route: str, begin_s: float) -> float:
        """Seconds from `begin_s` until `route` answers 200."""
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(self.url + route).status_code == 200:
                    return time.perf_counter() - begin_s
            if self._process.poll() is not None:
                raise SystemExit("bench: the server ended; see its log above")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None
    ) -> None:
        self.end()


class Native:
    """POST /inference at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url + "/inference"

    async def run(
        self,
        prompts: list[str],
        max_tokens: int,
        *,
        stream: bool = False,
        response_format: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> Sample:
        """All prompts at once, greedy unless `parameters` say otherwise, ignoring EOS.

        Under a `response_format` the model must not be able to end before `max_tokens`.
        """
        parameters = {
            "temperature": 0, "max_tokens": max_tokens,
            "ignore_eos": response_format is None, **parameters
        }  # fmt: skip
        fields = {"response_format": response_format}
        sample = Sample(len(prompts) * max_tokens, 0)
        async with _client() as client:
            begin_s = time.perf_counter()
            await asyncio.gather(
                *(
                    self._stream(client, _body(prompt, parameters) | fields, sample)
                    if stream
                    else _post(client, self._url, _body(prompt, parameters) | fields)
                    for prompt in prompts
                )
            )
            sample.elapsed_s = time.perf_counter() - begin_s
        return sample

    async def _stream(
        self, client: httpx2.AsyncClient, body: dict[str, Any], sample: Sample
    ) -> None:
        last_s = begin_s = time.perf_counter()
        async with client.stream("POST", self._url, json={**body, "stream": True}) as response:
            response.raise_for_status()
            is_first = True
            async for line in response.aiter_lines():
                if not line.startswith('data: {"delta"'):
                    continue
                now_s = time.perf_counter()
                (sample.ttft_s if is_first else sample.gaps_s).append(now_s - last_s)
                last_s, is_first = now_s, False
        assert last_s > begin_s, "the stream had no text"


class OpenAIPeer:
    """POST /v1/completions at `url`: llama-server, Ollama, vLLM, …"""

    def __init__(self, url: str, model: str | None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/completions"
        self._model = model

    async def run(self, prompts: list[str], max_tokens: int, **parameters: Any) -> Sample:
        """As `Native.run`; counts the tokens that the peer says it generated."""
        # Not OpenAI's, but known to llama-server: compute everything, no hidden truncation.
        extra = {"ignore_eos": True, "cache_prompt": False, "top_k": 0, "min_p": 0}
        body = {"max_tokens": max_tokens, "temperature": 0, **extra, **parameters}
        if self._model:
            body["model"] = self._model
        async with _client() as client:
            begin_s = time.perf_counter()
            answers = await asyncio.gather(
                *(_post(client, self._url, {**body, "prompt": prompt}) for prompt in prompts)
            )
            elapsed_s = time.perf_counter() - begin_s
        return Sample(sum(answer["usage"]["completion_tokens"] for answer in answers), elapsed_s)


def _body(prompt: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt, "mode": "completion", "parameters": parameters}


def _client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=None))


async def _post(client: httpx2.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(url, json=body)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def temporary_config(text: str) -> Iterator[Path]:
    """A models.toml of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "models.toml"
        path.write_text(text)
        yield path
