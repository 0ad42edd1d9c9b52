"""How a model is to be loaded: what the config leaves open is chosen to fit the memory. Pure."""

from msgspec import Struct

from llmserve.pool.memory import ContextOptions, estimate, largest_context
from llmserve.registry.config import ModelSpec
from llmserve.registry.gguf import ModelFiles

MAX_SEQUENCES = 16  # more sequences make each slower, and hardly more tokens in all (README)
MIN_OUTPUTS = 32  # rows of logits in a step, for prompts that want those of every token
MIN_CONTEXT_LENGTH = 512  # what is offered, and then refused with the numbers, if nothing fits
CELLS_PER_SEQUENCE = 64  # a context too small for many at a time gets fewer slots
FALLBACK_CONTEXT_LENGTH = 4096  # for a file that does not say what it was trained on


class Placement(Struct, frozen=True):
    context_length: int  # tokens; also the number of KV cells, which all sequences share
    max_sequences: int
    size_bytes: int  # weights, KV cells and buffers: what must stay resident

    @property
    def max_outputs(self) -> int:
        return _max_outputs(self.max_sequences)

    def __str__(self) -> str:
        return (
            f"{self.context_length:,} tokens of context, {self.max_sequences} at a time,"
            f" {self.size_bytes / 1e6:,.0f} MB"
        )


def place(
    spec: ModelSpec, model: ModelFiles, budget_bytes: int, repacked_types: frozenset[str]
) -> Placement:
    """The largest context up to the training length that fits the budget, unless `spec` says.

    The result may exceed the budget: then not even `MIN_CONTEXT_LENGTH`, or what `spec` demands,
    fits. Raises `ModelFileError`.
    """
    wanted = spec.max_concurrency or MAX_SEQUENCES
    options = _options(wanted, repacked_types)
    context_length = spec.context_length or _largest(model, budget_bytes, options)
    max_sequences = spec.max_concurrency or min(
        MAX_SEQUENCES, max(1, context_length // CELLS_PER_SEQUENCE)
    )
    needed = estimate(
        model, num_cells=context_length, options=_options(max_sequences, repacked_types)
    )
    return Placement(context_length, max_sequences, needed.total_bytes)


def _largest(model: ModelFiles, budget_bytes: int, options: ContextOptions) -> int:
    trained = model.header.context_length or FALLBACK_CONTEXT_LENGTH
    fitting = largest_context(model, budget_bytes, max_cells=trained, options=options)
    return min(trained, max(fitting or 0, MIN_CONTEXT_LENGTH))


def _options(max_sequences: int, repacked_types: frozenset[str]) -> ContextOptions:
    return ContextOptions(
        max_sequences=max_sequences,
        max_outputs=_max_outputs(max_sequences),
        repacked_types=repacked_types,
    )


def _max_outputs(max_sequences: int) -> int:
    return max(max_sequences, MIN_OUTPUTS)
