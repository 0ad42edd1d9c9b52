"""How a model is to be loaded, and what that takes."""

from msgspec import Struct


class Placement(Struct, frozen=True):
    context_length: int  # tokens; also the number of KV cells
    max_sequences: int
    size_bytes: int  # weights, KV cells, buffers
