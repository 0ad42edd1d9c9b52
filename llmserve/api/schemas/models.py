"""The wire format of GET /models and of the commands beside it."""

from msgspec import Struct


class ModelStatus(Struct):
    name: str
    aliases: tuple[str, ...]
    source: str
    state: str  # cold | loading | ready | unloading | failed
    doing: str | None  # of a load: reading | downloading | waiting for memory | loading
    progress: float | None  # of what it is doing, 0 to 1
    bytes: int | None  # estimate of the memory it takes; null before the first load
    context_length: int | None
    slots: int | None  # requests answered at the same time
    active: int  # requests that hold the model, or wait for it
    last_used: float | None  # unix time
    pinned: bool
    error: str | None


class ModelList(Struct):
    models: list[ModelStatus]
    memory_budget: int  # bytes
    memory_used: int  # bytes, by estimate
