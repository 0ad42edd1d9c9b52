"""What is fuzzed. A target takes any bytes and raises only if a property is broken."""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    name: str
    module: str
    num_runs: int = 0  # in a usual run of the tests: a second or two

    @property
    def check(self) -> Callable[[bytes], None]:
        """Imports only what the target needs: under atheris that takes a while."""
        module = importlib.import_module(f"{__name__}.{self.module}")
        return getattr(module, f"check_{self.name}")  # type: ignore[no-any-return]


TARGETS = {
    target.name: target
    for target in (
        Target("gguf", "files", 2_000),
        Target("config", "files", 500),
        Target("sse", "answers", 5_000),
        Target("provider_answer", "answers", 3_000),
        Target("provider_error", "answers", 3_000),
        Target("format", "answers", 1_000),
        Target("body", "requests", 1_500),
        Target("gbnf", "requests", 1_500),
    )
}
