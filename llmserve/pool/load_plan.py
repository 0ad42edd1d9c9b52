"""How a model is to be loaded: what the config leaves open is chosen to fit the memory. Pure."""

from msgspec import Struct
from msgspec.structs import replace

from llmserve.config.schema import ModelSpec
from llmserve.engine.runtime import EmbeddingParams
from llmserve.gguf.header import ModelFiles
from llmserve.pool.memory.embedding import EmbeddingUse, embedding_use
from llmserve.pool.memory.estimate import ContextOptions, estimate, largest_context

MAX_SEQUENCES = 16  # more sequences make each slower, and hardly more tokens in all (README)
MIN_OUTPUTS = 32  # rows of logits in a step, for prompts that want those of every token
MIN_CONTEXT_LENGTH = 512  # what is offered, and then refused with the numbers, if nothing fits
CELLS_PER_SEQUENCE = 64  # a context too small for many at a time gets fewer slots
FALLBACK_CONTEXT_LENGTH = 4096  # for a file that does not say what it was trained on
CACHE_SHARE = 0.1  # of the budget at most, for cached prefixes
CACHE_TIMES_KV = 4  # and so many times what the KV cells take: more would hardly be found again


class LoadPlan(Struct, frozen=True):
    context_length: int  # tokens; also the number of KV cells, which all sequences share
    max_sequences: int
    size_bytes: int  # weights, KV cells, buffers, and cached prefixes: what must stay resident
    prefix_cache_bytes: int = 0  # of these
    embedding: EmbeddingParams | None = None
    generates: bool = True  # False: for embeddings only

    @property
    def max_outputs(self) -> int:
        return _max_outputs(self.max_sequences)

    def __str__(self) -> str:
        return (
            f"{self.context_length:,} tokens of context, {self.max_sequences} at a time,"
            f" {self.size_bytes / 1e6:,.0f} MB"
            f" ({self.prefix_cache_bytes / 1e6:,.0f} for prefixes)"
        )


def plan_load(
    spec: ModelSpec, model: ModelFiles, budget_bytes: int, repacked_types: frozenset[str]
) -> LoadPlan:
    """The largest context up to the training length that fits the budget, unless `spec` says.

    The result may exceed the budget: then not even `MIN_CONTEXT_LENGTH`, or what `spec` demands,
    fits. A prefix cache that `spec` leaves open never makes it exceed. Raises `ModelFileError`.
    """
    use = embedding_use(spec, model.header)
    _check_positions(spec, model)
    reserved = _reserved_for_prefixes(spec, budget_bytes, use)
    options = _options(spec.max_concurrency or MAX_SEQUENCES, repacked_types)
    context_length = spec.context_length or _largest(model, budget_bytes - reserved, options, use)
    max_sequences = spec.max_concurrency or min(
        MAX_SEQUENCES, max(1, context_length // CELLS_PER_SEQUENCE)
    )
    options = _options(max_sequences, repacked_types)
    needed = estimate(model, num_cells=context_length, options=options, embedding=use)
    cache_bytes = reserved
    if spec.prefix_cache is None:
        spare = max(0, budget_bytes - needed.total_bytes)
        cache_bytes = min(reserved, spare, CACHE_TIMES_KV * needed.kv_bytes)
    plan = LoadPlan(context_length, max_sequences, needed.total_bytes + cache_bytes, cache_bytes)
    if use is None:
        return plan
    params = use.params(context_length, model.header.vocab_size or 0)
    return replace(
        plan,
        max_sequences=params.max_inputs if use.is_only else max_sequences,
        embedding=params,
        generates=not use.is_only,
    )


def _reserved_for_prefixes(spec: ModelSpec, budget_bytes: int, use: EmbeddingUse | None) -> int:
    """The most that cached prefixes may take, in bytes."""
    if use and use.is_only:
        return 0  # nothing is generated
    return int(budget_bytes * CACHE_SHARE) if spec.prefix_cache is None else spec.prefix_cache


def _largest(
    model: ModelFiles, budget_bytes: int, options: ContextOptions, use: EmbeddingUse | None
) -> int:
    trained = _trained(model, use)
    fitting = largest_context(
        model, budget_bytes, max_cells=trained, options=options, embedding=use
    )
    return min(trained, max(fitting or 0, MIN_CONTEXT_LENGTH))


def _trained(model: ModelFiles, use: EmbeddingUse | None) -> int:
    trained = model.header.context_length or FALLBACK_CONTEXT_LENGTH
    return use.max_len(trained, model.header.vocab_size or 0) if use else trained


def _check_positions(spec: ModelSpec, model: ModelFiles) -> None:
    """A position beyond a learned table would end the process."""
    tables = [t for part in model.parts for t in part.tensors if t.name == "position_embd.weight"]
    if tables and spec.context_length and spec.context_length > tables[0].shape[1]:
        raise model.header.error(
            f"has {tables[0].shape[1]} positions, and models.{spec.name}.context_length is"
            f" {spec.context_length}; set no more than that"
        )


def _options(max_sequences: int, repacked_types: frozenset[str]) -> ContextOptions:
    return ContextOptions(
        max_sequences=max_sequences + 1,  # the runtime has one of its own
        max_outputs=_max_outputs(max_sequences),
        repacked_types=repacked_types,
    )


def _max_outputs(max_sequences: int) -> int:
    return max(max_sequences + 1, MIN_OUTPUTS)
