"""The engine as a library, without HTTP: `LLM`. A thin face over `assembly`.

Everything runs on an event loop in a thread of its own (`library/background.py`), so that the calls
of many threads and event loops meet there and are computed together.
"""

import logging
import os
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, Unpack, overload

from llmserve import assembly
from llmserve.core import Embeddings
from llmserve.hub.locate import check_files
from llmserve.library.background import Background
from llmserve.library.calls import generate, generate_all, load
from llmserve.library.config import choose_model
from llmserve.library.messages import Messages
from llmserve.library.parameters import (
    ChatParameters,
    EmbeddingParameters,
    PromptParameters,
    StreamParameters,
    chat_request,
    embedding_request,
    prompt_request,
    prompt_requests,
    stream_request,
)
from llmserve.library.results import Generation
from llmserve.library.streams import AsyncStream, Stream

logging.getLogger("llmserve").addHandler(logging.NullHandler())  # silent, unless it is configured


class LLM:
    """A model, for programs.

    `model` is a name of models.toml, the path of a `.gguf` file, or `owner/repo` or
    `owner/repo:QUANT` of the hub, which is downloaded if it is not on disk; None is the default
    model. models.toml is `config_file`, else the file that LLMSERVE_CONFIG names, else the one in
    the working directory, else the packaged one. `config` has keys of `[models.NAME]`, and of
    `[server]` those in `library.config.SERVER_KEYS`; they count more than the file.

    Making one reads the config only. The first call loads the model, or `load()`, which says why
    if it cannot. All methods may be called by any thread at any time; those with an `a` are the
    same for an event loop. They raise `errors.LlmserveError`s. `close` ends what still runs with a
    `ShuttingDownError`; without it the model leaves memory with this object or the program.

    It does not survive a fork: make one in each process that `multiprocessing` starts.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        config_file: str | Path | None = None,
        **config: Any,
    ) -> None:
        """Raises `ConfigError`, `ModelNotFoundError`, or `ModelFileError` for a missing file."""
        path = config_file or os.environ.get("LLMSERVE_CONFIG")
        whole, spec = choose_model(model, Path(path) if path else None, config)
        if not spec.fallback:
            check_files([spec])  # a missing file is told now, not by the first call
        self._model = spec
        self._background = Background(lambda: assembly.build_gateway(whole, os.environ))
        # Not at exit: no thread could be started any more, and the processes end by themselves.
        weakref.finalize(self, self._background.start_closing).atexit = False

    def __repr__(self) -> str:
        return f"LLM({self._model.name!r}, {self._model.source!r})"

    # -- for threads ------------------------------------------------------------------------

    def load(self) -> None:
        """Return when the model is loaded. Raises what keeps it from that."""
        self._background.result(load(self._background.gateway, self._model))

    @overload
    def generate(self, prompt: str, **parameters: Unpack[PromptParameters]) -> Generation: ...
    @overload
    def generate(
        self, prompt: list[str], **parameters: Unpack[PromptParameters]
    ) -> list[Generation]: ...
    def generate(
        self, prompt: str | list[str], **parameters: Unpack[PromptParameters]
    ) -> Generation | list[Generation]:
        """The answer to a prompt, or those to a list of them, in its order."""
        return self._background.result(self._generated(prompt, parameters))

    def chat(self, messages: Messages, **parameters: Unpack[ChatParameters]) -> Generation:
        """The next turn of a conversation."""
        request = chat_request(self._model.name, messages, parameters)
        return self._background.result(generate(self._background.gateway, request))

    def stream(self, prompt: str | Messages, **parameters: Unpack[StreamParameters]) -> Stream:
        """The parts of one answer as they come, to a prompt or to messages."""
        request = stream_request(self._model.name, prompt, parameters)
        return Stream(self._background, request, owner=self)

    def embed(
        self, texts: str | list[str], **parameters: Unpack[EmbeddingParameters]
    ) -> Embeddings:
        """`vectors` of length 1, a row for each text."""
        request = embedding_request(self._model.name, texts, parameters)
        return self._background.result(self._background.gateway.embed(request))

    def close(self) -> None:
        """End what runs and give the memory back. Fine if it was closed before."""
        self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- for event loops --------------------------------------------------------------------

    async def aload(self) -> None:
        """As `load`."""
        await self._background.aresult(load(self._background.gateway, self._model))

    @overload
    async def agenerate(
        self, prompt: str, **parameters: Unpack[PromptParameters]
    ) -> Generation: ...
    @overload
    async def agenerate(
        self, prompt: list[str], **parameters: Unpack[PromptParameters]
    ) -> list[Generation]: ...
    async def agenerate(
        self, prompt: str | list[str], **parameters: Unpack[PromptParameters]
    ) -> Generation | list[Generation]:
        """As `generate`. To be cancelled cancels the work, here and below."""
        return await self._background.aresult(self._generated(prompt, parameters))

    async def achat(self, messages: Messages, **parameters: Unpack[ChatParameters]) -> Generation:
        """As `chat`."""
        request = chat_request(self._model.name, messages, parameters)
        return await self._background.aresult(generate(self._background.gateway, request))

    def astream(
        self, prompt: str | Messages, **parameters: Unpack[StreamParameters]
    ) -> AsyncStream:
        """As `stream`, for `async for`."""
        request = stream_request(self._model.name, prompt, parameters)
        return AsyncStream(self._background, request, owner=self)

    async def aembed(
        self, texts: str | list[str], **parameters: Unpack[EmbeddingParameters]
    ) -> Embeddings:
        """As `embed`."""
        request = embedding_request(self._model.name, texts, parameters)
        return await self._background.aresult(self._background.gateway.embed(request))

    async def aclose(self) -> None:
        """As `close`."""
        await self._background.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    # ---------------------------------------------------------------------------------------

    def _generated(
        self, prompt: str | list[str], parameters: PromptParameters
    ) -> Coroutine[Any, Any, Generation | list[Generation]]:
        gateway, name = self._background.gateway, self._model.name
        if isinstance(prompt, str):
            return generate(gateway, prompt_request(name, prompt, parameters))
        return generate_all(gateway, prompt_requests(name, prompt, parameters))
