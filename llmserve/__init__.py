"""llmserve: a CPU-first local inference server."""

__version__ = "0.1.0"
