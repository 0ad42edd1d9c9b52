"""How much memory a model will take, computed from its header before anything is loaded.

Accounts for what llama.cpp allocates for contexts with a unified KV cache and flash attention,
entirely on the CPU: weights, KV cells, recurrent state, compute buffers, output buffer, and the
vocabulary's tables. Sizes of caches follow llama.cpp's formulas exactly (`llama-kv-cache.cpp`,
`llama-kv-cache-iswa.cpp`, `llama-memory-recurrent.cpp`); compute buffers follow the peak of its
graphs as measured over shapes, see `_activation_len`. Tests hold the sum to within 10 % of what
a process really grows by.

Pure: no I/O, no look at the machine.
"""

from typing import Final, Literal

import msgspec
from msgspec import Struct

from llmserve.engine.runtime import MAX_BATCH
from llmserve.gguf.header import Header, ModelFiles
from llmserve.gguf.reader import TensorInfo
from llmserve.gguf.tensor_types import TYPES_BY_NAME
from llmserve.pool.memory.embedding import EmbeddingUse
from llmserve.pool.memory.hparams import Hparams, Layer, read_hparams

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

CELL_MULTIPLE: Final = 256  # llama.cpp pads a context to a multiple of this many cells

_F32: Final = 4
_MASK_BYTES: Final = 2  # flash attention takes a float16 mask
_CELL_BYTES: Final = 64  # position, shift and sequence set of a cell (llama-kv-cells.h)
# Measured with llama.cpp's own vocabularies: strings, their hash maps, the merge ranks.
_TOKEN_BYTES: Final = 176
_MERGE_BYTES: Final = 150
_T5_TOKEN_BYTES: Final = 540  # a trie instead
# Measured: threads, graph nodes and allocator slack, whatever the model.
_BASE_BYTES: Final = 3 << 20
_TENSOR_BYTES: Final = 8 << 10

# Which tensor types a CPU may copy into an interleaved layout (ggml-cpu/repack.cpp, amx/).
_REPACKED_BY: Final = {
    "AVX2": ("q4_0", "q4_K", "iq4_nl", "mxfp4"),
    "AVX512": ("q2_K",),
    "AMX_INT8": ("q4_0", "q4_1", "q8_0", "q4_K", "q5_K", "q6_K", "iq4_xs"),
    "DOTPROD": ("q4_0", "q4_K", "q5_K", "q6_K", "iq4_nl", "mxfp4", "q8_0", "q1_0"),
    "MATMUL_INT8": ("q4_0", "q4_K", "q5_K", "q6_K", "q8_0", "q1_0"),
}
REPACKED_ANYWHERE: Final = frozenset(name for names in _REPACKED_BY.values() for name in names)
_REPACKED_ROWS: Final = 8  # a tensor's rows must be a multiple of this
_LOOKED_UP: Final = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")


class ContextOptions(Struct, frozen=True, kw_only=True):
    """The settings of a llama.cpp context and model that memory depends on.

    `max_outputs` must not be below `max_sequences`: llama.cpp asserts it. `batch` is n_batch and
    n_ubatch, in tokens. With `embeds` every token of a batch has an embedding and an output row.
    `repacked_types` is what this machine repacks, see `repacked_types`.
    """

    max_sequences: int
    max_outputs: int
    batch: int = MAX_BATCH
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    mmap: bool = True
    embeds: bool = False
    repacked_types: frozenset[str] = REPACKED_ANYWHERE


class MemoryEstimate(Struct, frozen=True):
    """What a loaded model needs, in bytes.

    `reclaimable_bytes` is not needed: file pages behind repacked weights, which are resident
    after a load but never read again, and which the kernel drops as soon as memory is short.
    """

    weights_bytes: int
    kv_bytes: int  # KV cells and recurrent state
    compute_bytes: int  # graph and output buffers
    overhead_bytes: int  # vocabulary, graph nodes, cell tables
    reclaimable_bytes: int

    @property
    def total_bytes(self) -> int:
        """What must stay resident: the number to hold against a budget."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes

    @property
    def resident_bytes(self) -> int:
        """What the process will have grown by, as its RSS shows it."""
        return self.total_bytes + self.reclaimable_bytes


def estimate(
    model: ModelFiles,
    *,
    num_cells: int,
    options: ContextOptions,
    embedding: EmbeddingUse | None = None,
) -> MemoryEstimate:
    """The memory that `model` takes with a context of `num_cells` KV cells.

    With `embedding` there is a second one for inputs as long, or only that. Raises
    ModelFileError, naming the key, for a header that cannot be that of a model, and for cache
    types that do not fit its heads.
    """
    assert num_cells > 0, num_cells
    assert options.max_outputs >= options.max_sequences > 0, options
    hparams = read_hparams(model.header)
    needed, mapped = _weights_bytes(model, options)
    contexts = [] if embedding and embedding.is_only else [options]
    if embedding:
        contexts.append(_embedding_options(embedding, hparams, num_cells, options))
    num_cells = _padded(num_cells)
    return MemoryEstimate(
        weights_bytes=needed,
        kv_bytes=sum(_kv_bytes(model.header, hparams, num_cells, each) for each in contexts),
        compute_bytes=sum(_compute_bytes(hparams, num_cells, each) for each in contexts),
        overhead_bytes=_model_overhead_bytes(model, hparams)
        + sum(_cell_overhead_bytes(hparams, num_cells, each) for each in contexts),
        reclaimable_bytes=mapped,
    )


def _embedding_options(
    embedding: EmbeddingUse, hparams: Hparams, max_len: int, options: ContextOptions
) -> ContextOptions:
    params = embedding.params(max_len, hparams.vocab_size)
    return msgspec.structs.replace(
        options,
        batch=params.max_tokens,
        max_sequences=params.max_inputs,
        max_outputs=params.max_tokens,
        embeds=True,
    )


def largest_context(
    model: ModelFiles,
    budget_bytes: int,
    *,
    max_cells: int,
    options: ContextOptions,
    embedding: EmbeddingUse | None = None,
) -> int | None:
    """The most KV cells, a multiple of 256 and at most `max_cells`, that fit the budget.

    None when not even 256 do. Raises what `estimate` raises.
    """

    def fits(blocks: int) -> bool:
        num_cells = blocks * CELL_MULTIPLE
        needed = estimate(model, num_cells=num_cells, options=options, embedding=embedding)
        return needed.total_bytes <= budget_bytes

    low, high = 0, max_cells // CELL_MULTIPLE  # low fits (vacuously at 0), above high is not asked
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * CELL_MULTIPLE or None


def repacked_types(system_info: str) -> frozenset[str]:
    """The tensor types that a build of llama.cpp repacks, from its `llama_print_system_info()`."""
    parts = system_info.replace(":", "|").split("|")
    flags = {part.split("=")[0].strip() for part in parts if part.strip().endswith("= 1")}
    # AMX has a buffer of its own; the others share one that can be compiled out.
    features = {"AMX_INT8"} | ({*_REPACKED_BY} if "REPACK" in flags else set())
    return frozenset(name for flag in features & flags for name in _REPACKED_BY[flag])


# --- weights ------------------------------------------------------------------------------------


def _weights_bytes(model: ModelFiles, options: ContextOptions) -> tuple[int, int]:
    """Bytes needed, and bytes of file pages that stay mapped without being needed.

    llama.cpp maps each file whole, then unmaps what is outside the first and last tensor that it
    uses in place; a repacked tensor is a copy, and its pages in between stay.
    """
    needed = mapped_idly = 0
    has_output = any(t.name == "output.weight" for part in model.parts for t in part.tensors)
    for part in model.parts:
        in_place = [t for t in part.tensors if not _is_repacked(t, options.repacked_types)]
        in_place_bytes = sum(tensor.size_bytes for tensor in in_place)
        needed += sum(tensor.size_bytes for tensor in part.tensors)
        if in_place and options.mmap:
            last = in_place[-1]
            mapped_idly += last.offset + last.size_bytes - in_place[0].offset - in_place_bytes
        if not has_output:
            needed += _tied_output_bytes(part, options.repacked_types)
    return needed, mapped_idly


def _is_repacked(tensor: TensorInfo, types: frozenset[str]) -> bool:
    """Whether a matrix is multiplied by, and of a type and shape with an interleaved layout."""
    if tensor.type.name not in types or tensor.name.startswith(_LOOKED_UP):
        return False
    is_matrix = len(tensor.shape) == 2 or (len(tensor.shape) == 3 and "_exps" in tensor.name)
    return is_matrix and tensor.shape[1] % _REPACKED_ROWS == 0


def _tied_output_bytes(part: Header, types: frozenset[str]) -> int:
    """An embedding table that is the output matrix too is looked up in place and copied."""
    return sum(
        tensor.size_bytes
        for tensor in part.tensors
        if tensor.name == "token_embd.weight" and tensor.type.name in types
    )


# --- caches -------------------------------------------------------------------------------------


def _kv_bytes(header: Header, hparams: Hparams, num_cells: int, options: ContextOptions) -> int:
    num_window_cells = _num_window_cells(hparams, num_cells, options)
    total = 0
    for layer in hparams.layers:
        cells = num_window_cells if layer.windowed else num_cells
        total += cells * _cell_bytes(header, layer, options)
        total += options.max_sequences * layer.state_len * _F32
    return total


def _cell_bytes(header: Header, layer: Layer, options: ContextOptions) -> int:
    total = 0
    for length, name in ((layer.k_len, options.type_k), (layer.v_len, options.type_v)):
        cache_type = TYPES_BY_NAME[name]
        if length % cache_type.block_len:
            raise header.error(
                f"a KV cache of type {name} needs rows in blocks of {cache_type.block_len}, "
                f"found rows of {length} elements; use f16"
            )
        total += cache_type.num_bytes(length)
    return total


def _num_window_cells(hparams: Hparams, num_cells: int, options: ContextOptions) -> int:
    """The size of the sliding-window cache: a window for each sequence and one batch."""
    if not hparams.window_len:
        return 0
    wanted = hparams.window_len * options.max_sequences + _batch(num_cells, options)
    return _padded(min(num_cells, wanted))


# --- buffers ------------------------------------------------------------------------------------


def _compute_bytes(hparams: Hparams, num_cells: int, options: ContextOptions) -> int:
    """The graph's buffer at its widest, llama.cpp's output rows, and the CPU's scratch space."""
    tokens = _batch(num_cells, options)
    outputs = min(tokens, options.max_outputs)
    num_masked = _num_window_cells(hparams, num_cells, options)
    if any(layer.k_len and not layer.windowed for layer in hparams.layers):
        num_masked += num_cells
    num_masked += tokens * hparams.num_masks
    state = options.max_sequences * max(layer.state_len for layer in hparams.layers)
    activations = _F32 * (tokens * _activation_len(hparams) + state)
    # Encoders compute no logits, but llama.cpp keeps the rows for them all the same.
    num_logits = hparams.vocab_size if hparams.has_cache else 0
    logits = _F32 * outputs * (num_logits + 2 * hparams.embedding_len)
    row_len = hparams.vocab_size + (hparams.embedding_len if options.embeds else 0)
    output_rows = _F32 * options.max_outputs * row_len
    # The widest input of a multiplication, quantized or narrowed for the kernel.
    scratch = (
        tokens * max(hparams.feed_forward_len, hparams.query_len, 2 * hparams.inner_len) * 17 // 16
    )
    masks = num_masked * tokens * _MASK_BYTES
    return masks + max(activations, logits) + output_rows + scratch


def _activation_len(hparams: Hparams) -> int:
    """Float32 elements per token that live at once in the widest part of a layer.

    Measured on llama.cpp's reserved buffers: a feed-forward network keeps gate, up and either
    their product or the experts' outputs beside the residual stream, without a gate up alone;
    attention keeps the queries twice; a state space layer keeps its projections and convolution
    input.
    """
    embedding_len = hparams.embedding_len
    ffn = hparams.feed_forward_len
    outputs = embedding_len * hparams.num_experts_used if hparams.num_experts_used > 1 else 0
    feed_forward = ffn + max(2 * ffn, outputs) + 4 * embedding_len if ffn else 0
    if not hparams.is_gated:
        feed_forward = ffn + 2 * embedding_len
    attention = 2 * hparams.query_len + 2 * hparams.kv_len + 2 * embedding_len
    state_space = 6 * hparams.inner_len + embedding_len
    return max(feed_forward, attention, state_space) + 2 * hparams.per_layer_input_len


def _model_overhead_bytes(model: ModelFiles, hparams: Hparams) -> int:
    header = model.header
    is_t5 = header.metadata.get("tokenizer.ggml.model") == "t5"
    tokens = hparams.vocab_size * (_T5_TOKEN_BYTES if is_t5 else _TOKEN_BYTES)
    merges = (header.array_len("tokenizer.ggml.merges") or 0) * _MERGE_BYTES
    return tokens + merges + _BASE_BYTES + model.num_tensors * _TENSOR_BYTES


def _cell_overhead_bytes(hparams: Hparams, num_cells: int, options: ContextOptions) -> int:
    return (num_cells + _num_window_cells(hparams, num_cells, options)) * _CELL_BYTES


def _batch(num_cells: int, options: ContextOptions) -> int:
    return min(num_cells, options.batch)


def _padded(num_cells: int) -> int:
    return -(-num_cells // CELL_MULTIPLE) * CELL_MULTIPLE
