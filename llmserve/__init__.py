"""llmserve: a CPU-first local inference server, and the library that it is made of."""

from typing import TYPE_CHECKING

__all__ = ["LLM", "__version__"]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llmserve.llm import LLM
else:

    def __getattr__(name: str) -> object:
        """`LLM` brings the engine, which the command line and a model's process do without."""
        if name != "LLM":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from llmserve.llm import LLM

        return LLM
