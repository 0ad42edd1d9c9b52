"""models.toml -> frozen Structs. Validated once, here; nothing else reads the file.

Every refusal is a `ConfigError` that names the file, the key and the fix.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from llmserve.config.fallback import chain
from llmserve.config.hub_ref import HubRef, make_ref
from llmserve.config.provider import Provider
from llmserve.config.units import Duration, HostName, Origin, Size
from llmserve.core import Mode, Pooling

Text = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]


Isolation: TypeAlias = Literal["process", "thread"]


Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[server]`: one process."""

    host: Text = "127.0.0.1"
    port: Port = 8000
    allowed_hosts: tuple[
        HostName, ...
    ] = ()  # more names that it answers to, see api/http/origins.py
    allowed_origins: tuple[Origin, ...] = ()  # of pages that may ask, besides its own
    memory_budget: Size | None = None  # for all that is resident; None, "auto": a share of the rest
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 8 << 20
    max_connections: Positive = 4096  # beyond it, the one that has been silent longest is closed
    header_timeout: Duration = Duration(10)  # for the head of a request, once it has begun
    body_timeout: Duration = Duration(60)  # for its whole body
    idle_timeout: Duration = Duration(60)  # of a connection on which no request begins
    write_timeout: Duration = Duration(30)  # of a client that takes nothing of its answer
    request_timeout: Duration | None = None  # for an answer, from its request on; None: no limit
    preload: bool = True  # load the default model at start-up instead of at its first request
    load_wait_s: Seconds = 60.0  # how long a request waits for its model to load before a 503
    shutdown_grace_s: Seconds = 30.0  # how long running requests may go on after SIGTERM
    keep_alive_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0  # a silent stream gets a comment
    prefix_cache_dir: Path | None = None  # prefixes outlive the server there; None: they do not
    prefix_cache_disk: Size = Size(4 << 30)  # bytes of each model there
    isolation: Isolation = "process"  # where models live: a process for each, or threads of ours
    log_prompts: bool = False  # whether prompts and answers are logged, their first 2000 characters
    auto_download: bool = False  # whether a request may start the download of its model
    api_keys_env: Text | None = None  # a variable with keys; None: LLMSERVE_API_KEYS, if it is set
    api_keys_file: Path | None = None  # a file with hashes of keys


class ModelSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """`[models.NAME]`: one model, where it comes from and how it is run.

    Beside `remote`, only the keys of `Provider` and `_REMOTE_TOO` are given.
    """

    name: str = ""  # the NAME of the table; not a key in it
    package: Text | None = None  # an installed Python distribution that ships the file
    file: Text | None = None  # the file inside `package` or inside the repository `hf`
    path: Path | None = None  # a GGUF file, absolute after `load_config`
    hf: Text | None = None  # "owner/repo" or "owner/repo:QUANT" on the hub
    revision: Text | None = None  # of `hf`: a branch, tag or commit
    sha256: Text | None = None  # of the one file of `hf`
    aliases: tuple[str, ...] = ()
    context_length: Positive | None = None  # None: the largest that fits, up to the training length
    max_concurrency: Annotated[int, Meta(ge=1, le=255)] | None = None  # None: 16, fewer if short
    max_queue: Annotated[int, Meta(ge=0, le=100_000)] = 256
    max_queue_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 262_144  # of waiting prompts
    queue_timeout: Duration | None = None  # longest wait for a slot; None: as long as it takes
    target_itl: Duration = Duration(0.15)  # between two tokens of a stream while prompts come
    stall_timeout: Duration = Duration(120)  # longest silence of a model at work, then it is ended
    speculation: bool = True  # whether steps may verify guesses at what comes next
    prefix_cache: Size | None = None  # for parked prefixes; None: a share of the memory budget
    pinned_prompts: tuple[Text, ...] = ()  # system messages whose prefixes are always known
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None  # None: as many as can run at once
    default_mode: Mode | None = None
    pooling: Pooling | None = None  # for embeddings; None: as the model's file says, if it does
    keep_alive: Duration | None = None  # unload after so long without a request; None: never
    pinned: bool = False  # never unload
    fallback: tuple[str, ...] = ()  # names of models that answer when this one cannot
    remote: Provider | None = None  # in the file its keys stand beside the others

    @property
    def source(self) -> str:
        """Where the weights come from, for people."""
        if self.remote:
            return f"remote {', '.join(self.remote.urls)}"
        if self.package:
            return f"package {self.package}"
        return f"path {self.path}" if self.path else f"hf {self.hf}"

    @property
    def hub(self) -> HubRef | None:
        """The model on the hub, if that is its source."""
        if self.hf is None:
            return None
        return make_ref(self.hf, file=self.file, revision=self.revision, sha256=self.sha256)


class Config(Struct, frozen=True):
    """The whole file. `models` is in the order of the file; `names` has the aliases too."""

    path: Path
    server: ServerConfig
    models: tuple[ModelSpec, ...]
    names: dict[str, ModelSpec] = field(default_factory=dict)

    @property
    def default(self) -> ModelSpec:
        """The model of a request that names none: called or aliased `default`, else the first."""
        return self.names.get("default", self.models[0])

    @property
    def stand_ins(self) -> dict[str, list[str]]:
        """The names of `fallback` of every model, without aliases."""
        return {m.name: [self.names[name].name for name in m.fallback] for m in self.models}

    def chain(self, spec: ModelSpec) -> list[ModelSpec]:
        """`spec` and the models that may stand in for it, in the order to try."""
        if not spec.fallback:
            return [spec]
        return [self.names[name] for name in chain(spec.name, self.stand_ins)]


class ConfigChange(Struct, frozen=True):
    """What a reload changed: names of models."""

    models: list[str]  # all that are offered now
    added: list[str]
    removed: list[str]
    changed: list[str]
