"""What to load and how to run it: plain data, which can be given to another process.

Paths are bytes, as the system has them: not every name of a file is a text.
"""

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from llmserve.core import Mode
from llmserve.engine.runtime import LlamaParams

BACKEND = "llmserve.engine.llama.backend"  # a module as `loading.Backend` describes it


class Policy(Struct, frozen=True):
    """How a model shares its time. `config.schema.ModelSpec` has the defaults."""

    max_queue: int  # requests beyond the slots
    max_queue_tokens: int  # of the prompts that wait for a slot
    queue_timeout_s: float | None  # longest wait for a slot; None: for ever
    target_itl_s: float  # what a step should take at most while answers are decoded
    speculation: bool  # whether steps may verify a draft of what comes next


class Machine(Struct, frozen=True, tag=True):
    """What the backend makes of this machine."""

    system_info: str  # the features of the CPU that it uses
    build_info: str  # what the state of KV cells depends on, beside the model


class DiskCacheSpec(Struct, frozen=True):
    """Where prefixes outlive the model, `budget_bytes` in each folder; None: they do not."""

    files: tuple[bytes, ...]  # of the model, whose change makes them worthless
    budget_bytes: int
    folder: bytes | None
    pinned_folder: bytes | None  # of pinned prompts


class LoadSpec(Struct, frozen=True):
    name: str
    path: bytes
    params: LlamaParams
    policy: Policy
    stall_timeout_s: float  # the longest silence of its process at work, if it has one
    default_mode: Mode | None = None
    prefix_cache_bytes: int = 0
    disk: DiskCacheSpec | None = None
    pinned_prompts: tuple[str, ...] = ()


class LoadProgress(Protocol):
    """Where a load notes how far it is, and learns that it is to be given up."""

    is_cancelled: bool
    on_cancel: Callable[[], None]  # called when it is: what can be given up at once is

    def update(self, fraction: float) -> bool:
        """Note how much is done; whether to go on. Any thread."""
