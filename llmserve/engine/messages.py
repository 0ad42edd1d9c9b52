"""What crosses the border between the engine and its worker.

Frozen Structs of plain data: they cross a thread today and can cross a process unchanged.
"""

from typing import Protocol

from msgspec import Struct

from llmserve.core import Constraint, Finished, Part, Request
from llmserve.engine.output.parser import Reading


class Submit(Struct, frozen=True, tag=True):
    """Start a generation. `tokens` is not empty and no longer than `max_len` <= the context."""

    id: int
    request: Request
    tokens: list[int]
    max_len: int  # prompt and generated tokens together
    seed: int
    accepted_s: float  # on the monotonic clock
    constraint: Constraint | None = None  # the worker's compiler has prepared it
    reading: Reading | None = None  # how to understand the answer, where it can be more than text


class Embed(Struct, frozen=True, tag=True):
    """Compute the vectors of `inputs`, none of which is empty or longer than the model takes."""

    id: int
    inputs: list[list[int]]


class Cancel(Struct, frozen=True, tag=True):
    """Forget a generation, or embeddings; nothing more is said about it. Unknown ids are fine."""

    id: int


class Fetched(Struct, frozen=True, tag=True):
    """Parked prefixes have come from disk."""


class Stop(Struct, frozen=True, tag=True):
    """End the worker; all that was submitted before finishes as cancelled. The last command."""


class Embedded(Struct, frozen=True, tag=True):
    """The answer to `Embed`: a row of little-endian float32 for each input, of any length.

    None: the worker has ended first.
    """

    data: bytes | None


class Failed(Struct, frozen=True, tag=True):
    """A generation, or embeddings, ended by a fault of the engine, or for want of a slot."""

    message: str
    is_timeout: bool = False


class StepStats(Struct, frozen=True, tag=True):
    """One step, for the metrics."""

    num_decoded: int  # rows: sequences that computed one token, and tokens that were guessed
    num_prefilled: int  # prompt tokens, or those of inputs to embed
    num_cells: int = 0  # that were in use before
    expected_s: float | None = None
    step_s: float = 0.0
    num_drafted: int = 0  # guessed tokens
    num_accepted: int = 0  # those that came true
    num_preempted: int = 0  # sequences that lost their slots since the step before


class Load(Struct, frozen=True, tag=True):
    """How many requests the worker has, for the metrics."""

    num_running: int = 0
    num_waiting: int = 0


class Waiting(Struct, frozen=True, tag=True):
    """One in the queue."""

    id: int
    expected_wait_s: float  # from now


class QueueReport(Struct, frozen=True, tag=True):
    """Who waits for a slot, the first first, and how long one that came now would."""

    waiting: tuple[Waiting, ...] = ()
    newcomer_wait_s: float = 0.0


Command = Submit | Embed | Cancel | Fetched | Stop
Reply = tuple[int, Part | Finished | Embedded | Failed]  # request id, what happened


class StepReport(Struct, frozen=True, tag=True):
    """Everything that one step has to say, delivered at once."""

    replies: list[Reply]
    stats: StepStats | None = None
    load: Load | None = None  # where it has changed
    queue: QueueReport | None = None  # where it has changed
    entered: tuple[int, ...] = ()  # requests that have got a slot


class Ended(Struct, frozen=True, tag=True):
    """The worker's last word, whatever it died of. With `fault` all its requests have failed."""

    fault: str | None


Report = StepReport | Ended


class EngineObserver(Protocol):
    """What an engine tells about itself, on the event loop."""

    def on_step(self, stats: StepStats) -> None: ...

    def on_load(self, load: Load) -> None: ...
