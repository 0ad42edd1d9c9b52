"""What llama.cpp takes for granted about a model, asked before it ends the process over it.

Each rule is an assertion, or an access without one, of the llama.cpp that the pinned
llama-cpp-python vendors: `llama-model.cpp` (load_hparams) and the operators of `ggml-cpu`. Only
rules that hold for every architecture are here; a child process takes what gets past them.
"""

import math
from typing import TYPE_CHECKING, Final

from llmserve.gguf.reader import TensorInfo

if TYPE_CHECKING:
    from llmserve.gguf.header import Header, ModelFiles

_ROPE_SCALINGS: Final = ("none", "linear", "yarn", "longrope")
_MAPPED_ALIGNMENT: Final = 32  # TENSOR_ALIGNMENT of ggml-impl.h; a file is mapped as it is
_NOT_MULTIPLIED: Final = frozenset(("i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"))
# Added, scaled by or convolved with, which on a CPU takes float32 only.
_ALWAYS_F32: Final = (
    *("norm.weight", ".bias", "token_types.weight", "rope_freqs.weight", "attn_sinks.weight"),
    *("ssm_conv1d.weight", "shortconv.conv.weight", ".ssm_a", ".ssm_d"),
)
_TABLES_OF_NUMBERS: Final = ("ffn_gate_tid2eid", "d2t")  # and not weights


def check_servable(model: "ModelFiles") -> None:
    """Raises ModelFileError for what cannot be served, naming the key or the tensor."""
    header = model.header
    _check_kind(model)
    _check_vocabulary(header)
    _check_numbers(header)
    _check_experts(header)
    _check_rope(header)
    for part in model.parts:
        for tensor in part.tensors:
            _check_tensor(part, tensor)


def _check_kind(model: "ModelFiles") -> None:
    header = model.header
    kind = header.text("general.type")
    if kind not in (None, "model"):
        raise header.error(f"general.type: expected 'model', found {kind!r}")
    if header.architecture is None:
        raise header.error("general.architecture: expected a name, found no such key")
    if model.num_tensors == 0:
        raise header.error("expected a model's weights, found no tensor (a vocabulary only?)")


def _check_vocabulary(header: "Header") -> None:
    num_tokens = header.array_len("tokenizer.ggml.tokens")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        length = header.array_len(key)
        if length is not None and length < (num_tokens or 0):
            raise header.error(
                f"{key}: expected one for each of {num_tokens} tokens, found {length}"
            )


def _check_numbers(header: "Header") -> None:
    prefix = f"{header.architecture}."
    for key, value in header.metadata.items():
        if not isinstance(value, float) or not key.startswith(prefix):
            continue
        if not math.isfinite(value):
            raise header.error(f"{key}: expected a finite number, found {value}")
        if value < 0 and key.endswith("_epsilon"):
            raise header.error(f"{key}: expected at least 0, found {value}")


def _check_experts(header: "Header") -> None:
    architecture = header.architecture
    num_experts = header.setting("expert_count") or 0
    used = header.metadata.get(f"{architecture}.expert_used_count", 0)
    if num_experts and not (any(used) if isinstance(used, tuple) else used):
        raise header.error(f"{architecture}.expert_used_count: expected at least 1, found {used}")
    num_groups = header.setting("expert_group_count") or 0
    if num_groups >= max(1, num_experts) or (num_groups > 1 and num_experts % num_groups):
        raise header.error(
            f"{architecture}.expert_group_count: expected groups of the same size for"
            f" {num_experts} experts, found {num_groups}"
        )
    num_used = header.setting("expert_group_used_count") or 0
    if num_groups > 1 and not 0 < num_used < num_groups:
        raise header.error(
            f"{architecture}.expert_group_used_count: expected 1 to {num_groups - 1},"
            f" found {num_used}"
        )


def _check_rope(header: "Header") -> None:
    scaling = header.text(f"{header.architecture}.rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        raise header.error(
            f"{header.architecture}.rope.scaling.type: expected one of"
            f" {', '.join(_ROPE_SCALINGS)}, found {scaling!r:.80}"
        )
    head_len = _head_len(header)
    for suffix in ("", "_swa"):
        head_len = header.setting(f"attention.key_length{suffix}") or head_len
        num_dims = header.setting(f"rope.dimension_count{suffix}")
        if head_len and num_dims and (num_dims > head_len or num_dims % 2):
            raise header.error(
                f"{header.architecture}.rope.dimension_count{suffix}: expected an even number"
                f" up to the {head_len} of a head, found {num_dims}"
            )


def _head_len(header: "Header") -> int:
    """0 if the first layer has no heads: such models say nothing about the others."""
    heads = header.metadata.get(f"{header.architecture}.attention.head_count")
    num_heads = heads[0] if isinstance(heads, tuple) and heads else heads
    if not isinstance(num_heads, int) or num_heads < 1:
        return 0
    return (header.embedding_length or 0) // num_heads


def _check_tensor(part: "Header", tensor: TensorInfo) -> None:
    found = tensor.type.name
    if (part.data_offset + tensor.offset) % _MAPPED_ALIGNMENT:
        raise part.error(
            f"tensor {tensor.name}: expected at a multiple of {_MAPPED_ALIGNMENT} bytes, found at"
            f" {part.data_offset + tensor.offset}"
        )
    if any(name in tensor.name for name in _TABLES_OF_NUMBERS):
        return
    if tensor.name.endswith(_ALWAYS_F32) and found != "f32":
        raise part.error(f"tensor {tensor.name}: expected type f32, found {found}")
    if found in _NOT_MULTIPLIED:
        raise part.error(f"tensor {tensor.name}: expected a type of weights, found {found}")
