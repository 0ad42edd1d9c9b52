"""The wire format of GET /models and of the commands beside it."""

from msgspec import Struct


class AddressStatus(Struct):
    """One address of a remote model."""

    url: str
    state: str  # closed: it is asked | open: it is not, after failures | half-open: one trial
    active: int
    error: str | None  # the last one, until it answers again


class ModelStatus(Struct, kw_only=True):
    name: str
    aliases: tuple[str, ...]
    source: str | None  # null: only admins see it, `pid`, `memory`, `log`, `addresses`
    # cold | loading | ready | unloading | failed | quarantined; remote: ready | half-open | open
    state: str
    doing: str | None = None  # of a load: reading | downloading | waiting for memory | loading
    progress: float | None = None  # of what it is doing, 0 to 1
    bytes: int | None = None  # estimate of the memory it takes; null before the first load
    context_length: int | None = None
    slots: int | None  # requests answered at the same time; null: no limit here
    active: int  # requests that hold the model, or wait for it
    last_used: float | None  # unix time
    pinned: bool = False
    error: str | None
    pid: int | None = None  # of the process that the model is loaded in; null: it has none
    memory: int | None = None  # bytes that this process has in memory, with the file's pages
    crashes: int = 0  # processes of this model that died
    log: list[str] | None = None  # the last lines of the last one of them
    fallback: tuple[str, ...]
    addresses: list[AddressStatus] | None = None  # of a remote model


class ModelList(Struct):
    models: list[ModelStatus]
    memory_budget: int  # bytes
    memory_used: int  # bytes, by estimate
