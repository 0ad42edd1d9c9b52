"""What crosses the border between the server and the process of a model.

Frozen Structs of plain data, each known by its tag; those of `core` and `engine` go as they are.
A `Reply` and the answers name the request by the id that the server gave it. After the last word
about a request, or its `Cancel`, nothing more about it counts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from llmserve import errors
from llmserve.core import EmbeddingRequest, Embeddings, Event, Request
from llmserve.engine.load_spec import LoadSpec, Machine
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.runtime import ModelInfo, RuntimeLimits
from llmserve.errors import LlmserveError

# -- to the child --------------------------------------------------------------------------------


class Open(Struct, frozen=True, tag=True):
    """Load this model; the first command."""

    spec: LoadSpec
    log_level: int  # records below it stay in the child


class Generate(Struct, frozen=True, tag=True):
    id: int
    request: Request


class Call(Struct, frozen=True, tag=True):
    """Call a method of the engine, one of `METHODS`; `Result` or `Failure` is the answer."""

    id: int
    method: str
    args: dict[str, Any]


class Cancel(Struct, frozen=True, tag=True):
    """Forget a request. Unknown ids are fine."""

    id: int


class Stop(Struct, frozen=True, tag=True):
    """Finish what runs as cancelled, and end."""


Question = Generate | Call
ToChild = Open | Question | Cancel | Stop


# -- from the child ------------------------------------------------------------------------------


class Fault(Struct, frozen=True, tag=True):
    """One of our errors, by the name of its class."""

    kind: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    @classmethod
    def of(cls, error: LlmserveError) -> "Fault":
        kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _KINDS)
        return cls(kind.__name__, error.message, error.param, error.retry_after_s)

    def error(self) -> LlmserveError:
        kind = _KINDS.get(self.kind, LlmserveError)
        return kind(self.message, param=self.param, retry_after_s=self.retry_after_s)


_KINDS: dict[str, type[LlmserveError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, LlmserveError)
}


class Hello(Struct, frozen=True, tag=True):
    """The child is there. Its first word, before any command."""

    machine: Machine


class Progress(Struct, frozen=True, tag=True):
    """How much of the model is loaded."""

    fraction: float


class Ready(Struct, frozen=True, tag=True):
    """The model is loaded."""

    info: ModelInfo
    limits: RuntimeLimits


class NotLoaded(Struct, frozen=True, tag=True):
    """… or it cannot be; the child ends."""

    fault: Fault


class Entered(Struct, frozen=True, tag=True):
    """A generation has got a slot."""

    id: int


class Reply(Struct, frozen=True, tag=True):
    """What a generation has to say next."""

    id: int
    event: Event


class Result(Struct, frozen=True, tag=True):
    """What a `Call` returns."""

    id: int
    value: Any


class Failure(Struct, frozen=True, tag=True):
    """The request has failed."""

    id: int
    fault: Fault


class LogRecord(Struct, frozen=True, tag=True):
    logger: str
    level: int
    text: str
    exception: str = ""


Answer = Result | Failure  # the last word about a request that is no generation
FromChild = (
    Hello | Progress | Ready | NotLoaded | Entered | Reply | Answer | StepStats | Load | LogRecord
)


# -- calls ---------------------------------------------------------------------------------------


class Vectors(Struct, frozen=True):
    """`Embeddings` as plain data."""

    model: str
    num_rows: int
    data: bytes  # rows of little-endian float32
    prompt_tokens: int

    @classmethod
    def of(cls, embeddings: Embeddings) -> "Vectors":
        vectors = embeddings.vectors
        data = vectors.astype("<f4", copy=False).tobytes()
        return cls(embeddings.model, len(vectors), data, embeddings.prompt_tokens)

    def embeddings(self) -> Embeddings:
        vectors = np.frombuffer(self.data, dtype="<f4").reshape(self.num_rows, -1)
        return Embeddings(self.model, vectors.astype(np.float32, copy=False), self.prompt_tokens)


class Method(NamedTuple):
    """How a method of the engine is called over there.

    What a message calls Any arrives as what msgpack knows; here is what it was.
    """

    args: dict[str, Any]  # types by name
    result: Any  # the type of what is sent
    computes: bool = False  # in the worker: it may be repeated elsewhere, and may take long
    pack: Callable[[Any], Any] = lambda result: result
    unpack: Callable[[Any], Any] = lambda result: result

    def arguments(self, args: dict[str, Any]) -> dict[str, Any]:
        return {name: msgspec.convert(value, self.args[name]) for name, value in args.items()}

    def returned(self, value: Any) -> Any:
        return self.unpack(msgspec.convert(value, self.result))


METHODS = {
    "tokenize": Method({"text": str, "add_special": bool}, list[int]),
    "detokenize": Method({"tokens": list[int]}, str),
    "render": Method({"request": Request}, str),
    "embed": Method(
        {"request": EmbeddingRequest},
        Vectors,
        computes=True,
        pack=Vectors.of,
        unpack=Vectors.embeddings,
    ),
}
