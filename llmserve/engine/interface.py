"""A loaded model, as everything above the engine sees it, wherever it lives.

`LocalEngine` is one in threads of this process, `process.client.ProcessEngine` one in a child.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from llmserve.core import EmbeddingRequest, Embeddings, EventStream, Request
from llmserve.engine.runtime import ModelInfo, RuntimeLimits


class Crash(Struct, frozen=True):
    """How the process of a loaded model ended, when it was not told to."""

    message: str
    log_lines: tuple[str, ...]  # the last ones that it wrote to stderr
    has_answered: bool = False  # something, before
    lived_s: float = 0.0  # since it was loaded


class Engine(Protocol):
    """What `LocalEngine` documents; every method belongs to the event loop that it was made on."""

    @property
    def name(self) -> str: ...

    @property
    def info(self) -> ModelInfo: ...

    @property
    def limits(self) -> RuntimeLimits: ...

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests. Once false, it is so for good."""

    @property
    def pid(self) -> int | None:
        """Of the process that it has for itself; None if it has none."""

    def watch(self, on_crash: Callable[[Crash], None]) -> None:
        """Have `on_crash` called, if its process ends by itself (or has already). Once."""

    def generate(self, request: Request) -> EventStream: ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings: ...

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]: ...

    async def detokenize(self, tokens: Sequence[int]) -> str: ...

    async def render(self, request: Request) -> str: ...

    async def close(self) -> None: ...
