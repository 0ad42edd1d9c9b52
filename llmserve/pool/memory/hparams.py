"""What each layer of a model keeps in memory, derived from a GGUF header as llama.cpp does.

`architectures.py` has what no header says. An architecture that is in none of its tables has plain
attention in every layer, which is the common case, and where it is wrong errs towards more memory.
"""

from typing import Final

from msgspec import Struct

from llmserve.gguf.header import Header
from llmserve.pool.memory.architectures import (
    FULL_ATTENTION_INTERVAL,
    NEMOTRON,
    NO_CACHE,
    RECURRENT,
    RECURRENT_WITHOUT_HEADS,
    WINDOWS,
)

# LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS end the process when exceeded; the others are far above
# every real model and keep products of settings meaningful.
MAX_LAYERS: Final = 512
MAX_EXPERTS: Final = 1_024
MAX_HEADS: Final = 4_096
MAX_LEN: Final = 1 << 22


class Layer(Struct, frozen=True):
    """What one layer keeps, in elements: per KV cell, and per sequence (always float32)."""

    k_len: int = 0
    v_len: int = 0
    windowed: bool = False  # its cells are those of the sliding-window cache
    state_len: int = 0


class Hparams(Struct, frozen=True):
    """The sizes that memory depends on. Lengths count elements."""

    layers: tuple[Layer, ...]
    window_len: int  # tokens; 0 when no layer has a window
    embedding_len: int
    query_len: int  # of all heads of the widest layer
    kv_len: int  # K and V of all heads of the widest layer
    feed_forward_len: int  # of all experts that a token uses, or of the dense network
    num_experts_used: int  # 1 for a dense network
    inner_len: int  # of state space layers; 0 when there are none
    per_layer_input_len: int  # extra embeddings of all layers (gemma3n, gemma4)
    vocab_size: int
    num_masks: int = 0  # of a model without a cache: a row for each token of a batch
    is_gated: bool = True  # whether the feed-forward network multiplies its input by a gate

    @property
    def has_cache(self) -> bool:
        return any(layer.k_len or layer.state_len for layer in self.layers)


def read_hparams(header: Header) -> Hparams:
    """Derive the sizes; raises ModelFileError that names the key for what cannot be."""
    num_layers = _setting(header, "block_count", limit=MAX_LAYERS)
    embedding_len = _setting(header, "embedding_length")
    heads = _per_layer(header, "attention.head_count", num_layers, 0)
    kv_heads = _per_layer(header, "attention.head_count_kv", num_layers, heads)
    window_len = _window_len(header, num_layers)
    layers = _layers(header, num_layers, heads, kv_heads, window_len)
    k_len = _head_len(header, "key_length", embedding_len, heads[0])
    wkv_len = embedding_len if _optional(header, "wkv.head_size") else 0
    num_experts_used = _num_experts_used(header, num_layers)
    return Hparams(
        layers=layers,
        window_len=window_len if any(layer.windowed for layer in layers) else 0,
        embedding_len=embedding_len,
        query_len=max(heads) * k_len,
        kv_len=max(layer.k_len + layer.v_len for layer in layers),
        feed_forward_len=_feed_forward_len(header, num_layers, num_experts_used),
        num_experts_used=num_experts_used,
        inner_len=_optional(header, "ssm.inner_size") or wkv_len,
        per_layer_input_len=_per_layer_input_len(header) * num_layers,
        vocab_size=_checked(header, "vocab_size", header.vocab_size or 0, 0, MAX_LEN),
        num_masks=_num_masks(header),
        is_gated=_is_gated(header),
    )


def _layers(
    header: Header,
    num_layers: int,
    heads: tuple[int, ...],
    kv_heads: tuple[int, ...],
    window_len: int,
) -> tuple[Layer, ...]:
    num_trunk = num_layers - _optional(header, "nextn_predict_layers", limit=num_layers)
    num_kv = _num_layers_with_own_kv(header, num_layers)
    recurrent = _recurrent_layers(header, num_layers, kv_heads)
    attentive = _attention_layers(header, num_layers, recurrent)
    windowed = _windowed_layers(header, num_layers, num_trunk) if window_len else set()
    state_len = _state_len(header, heads[0]) if recurrent else 0
    mla = _optional(header, "attention.key_length_mla") > 0
    indexer_len = _optional(header, "attention.indexer.key_length")

    def layer(i: int) -> Layer:
        if i >= num_trunk:  # multi-token prediction, which this server does not use
            return Layer()
        state = state_len if i in recurrent else 0
        if i not in attentive or i >= num_kv:
            return Layer(state_len=state)
        k_len, v_len = _kv_head_lens(header, heads[0], windowed=i in windowed)
        return Layer(
            k_len=k_len * kv_heads[i] + indexer_len,
            # Multi-head latent attention keeps one compressed row, from which V is computed.
            v_len=0 if mla else v_len * kv_heads[i],
            windowed=i in windowed,
            state_len=state,
        )

    return tuple(layer(i) for i in range(num_layers))


def _kv_head_lens(header: Header, num_heads: int, *, windowed: bool) -> tuple[int, int]:
    embedding_len = _setting(header, "embedding_length")
    k_len = _head_len(header, "key_length", embedding_len, num_heads)
    v_len = _head_len(header, "value_length", embedding_len, num_heads)
    if windowed:
        k_len = _optional(header, "attention.key_length_swa", default=k_len)
        v_len = _optional(header, "attention.value_length_swa", default=v_len)
    return k_len, v_len


def _head_len(header: Header, name: str, embedding_len: int, num_heads: int) -> int:
    if num_heads == 0:
        return 0
    return _optional(header, f"attention.{name}", default=embedding_len // num_heads)


def _num_layers_with_own_kv(header: Header, num_layers: int) -> int:
    """The layers after these share the cache of an earlier one."""
    if header.architecture == "gemma3n":
        return min(20, num_layers)
    if header.architecture == "gemma4":
        return num_layers - _optional(header, "attention.shared_kv_layers", limit=num_layers)
    return num_layers


def _recurrent_layers(header: Header, num_layers: int, kv_heads: tuple[int, ...]) -> set[int]:
    architecture = header.architecture
    every = set(range(num_layers))
    if architecture in RECURRENT or architecture == "falcon-h1":
        return every
    if architecture in RECURRENT_WITHOUT_HEADS:
        return {i for i in every if kv_heads[i] == 0}
    if architecture in NEMOTRON:
        widths = _per_layer(header, "feed_forward_length", num_layers, 0)
        return {i for i in every if kv_heads[i] == 0 and widths[i] == 0}
    if architecture in FULL_ATTENTION_INTERVAL:
        marks = header.metadata.get(f"{architecture}.attention.recurrent_layers")
        if isinstance(marks, tuple):
            return {i for i in every if i < len(marks) and marks[i]}
        default = FULL_ATTENTION_INTERVAL[architecture]
        interval = _optional(header, "full_attention_interval", default=default) or default
        return {i for i in every if (i + 1) % interval != 0}
    return set()


def _attention_layers(header: Header, num_layers: int, recurrent: set[int]) -> set[int]:
    architecture = header.architecture
    every = set(range(num_layers))
    if architecture in NO_CACHE:
        return set()
    if architecture == "falcon-h1":  # both in every layer
        return every
    if architecture in NEMOTRON:
        widths = _per_layer(header, "feed_forward_length", num_layers, 0)
        return {i for i in every - recurrent if widths[i] == 0}
    return every - recurrent


def _window_len(header: Header, num_layers: int) -> int:
    window = WINDOWS.get(header.architecture or "")
    if window is None or (header.architecture == "exaone4" and num_layers != 64):
        return 0
    length = _optional(header, "attention.sliding_window", default=window.default_len)
    return window.fixed_len or length if length else 0


def _num_masks(header: Header) -> int:
    """Without a cache a batch has a mask of its own, and one for layers with a window."""
    if header.architecture not in NO_CACHE:
        return 0
    return 2 if _optional(header, "attention.sliding_window") else 1


def _is_gated(header: Header) -> bool:
    """Whether an encoder's network has a gate, in the same matrix or not. Others mostly do."""
    if header.architecture not in NO_CACHE:
        return True
    ffn = _optional(header, "feed_forward_length")
    shapes = [t.shape for t in header.tensors if t.name == "blk.0.ffn_up.weight"]
    has_gate = any("ffn_gate." in tensor.name for tensor in header.tensors)
    return has_gate or shapes[:1] != [(_setting(header, "embedding_length"), ffn)]


def _windowed_layers(header: Header, num_layers: int, num_trunk: int) -> set[int]:
    window = WINDOWS[header.architecture or ""]
    key = f"{header.architecture}.attention.sliding_window_pattern"
    pattern = header.metadata.get(key)
    if isinstance(pattern, tuple):
        if len(pattern) < num_layers:
            raise header.error(f"{key}: expected {num_layers} layers, found {len(pattern)}")
        return {i for i in range(num_layers) if pattern[i]}
    period = header.integer(key) if pattern is not None else window.period
    if not period:
        return set(range(num_trunk))
    dense = 0 if window.dense_first else period - 1
    return {i for i in range(num_trunk) if i % period != dense}


def _state_len(header: Header, num_heads: int) -> int:
    """Elements of one recurrent layer's state of one sequence (n_embd_r + n_embd_s)."""
    embedding_len = _setting(header, "embedding_length")
    conv_len = _optional(header, "ssm.conv_kernel")
    if wkv_head_len := _optional(header, "wkv.head_size"):
        return embedding_len * (wkv_head_len + _optional(header, "token_shift_count", default=2))
    if cached := _optional(header, "shortconv.l_cache"):
        return embedding_len * (cached - 1)
    if head_len := _optional(header, "kda.head_dim"):
        return num_heads * head_len * (3 * (conv_len - 1 if conv_len else 3) + head_len)
    if header.architecture == "minimax-01":
        head_len = _head_len(header, "key_length", embedding_len, num_heads)
        return num_heads * head_len * head_len
    inner_len = _optional(header, "ssm.inner_size")
    state_len = _optional(header, "ssm.state_size")
    conv_width = inner_len + 2 * _optional(header, "ssm.group_count") * state_len
    return max(0, conv_len - 1) * conv_width + state_len * inner_len


def _feed_forward_len(header: Header, num_layers: int, num_experts_used: int) -> int:
    dense = max(_per_layer(header, "feed_forward_length", num_layers, 0))
    expert = max(_per_layer(header, "expert_feed_forward_length", num_layers, 0)) or dense
    return max(dense, expert * num_experts_used)


def _num_experts_used(header: Header, num_layers: int) -> int:
    num_experts = _optional(header, "expert_count", limit=MAX_EXPERTS)
    used = max(_per_layer(header, "expert_used_count", num_layers, 0))
    if used > num_experts:
        key = f"{header.architecture}.expert_used_count"
        raise header.error(f"{key}: expected at most the {num_experts} experts, found {used}")
    return max(1, used)


def _per_layer_input_len(header: Header) -> int:
    default = 256 if header.architecture == "gemma3n" else 0
    return _optional(header, "embedding_length_per_layer_input", default=default)


def _setting(header: Header, name: str, *, limit: int = MAX_LEN) -> int:
    """A setting without which there is no model, from 1 to `limit`."""
    value = header.setting(name)
    if value is None:
        raise header.error(f"{header.architecture}.{name}: expected a number, found no such key")
    return _checked(header, name, value, 1, limit)


def _optional(header: Header, name: str, *, default: int = 0, limit: int = MAX_LEN) -> int:
    value = header.setting(name)
    return default if value is None else _checked(header, name, value, 0, limit)


def _checked(header: Header, name: str, value: int, least: int, limit: int) -> int:
    if not least <= value <= limit:
        key = f"{header.architecture}.{name}"
        raise header.error(f"{key}: expected {least} to {limit}, found {value}")
    return value


def _per_layer(
    header: Header, name: str, num_layers: int, default: int | tuple[int, ...]
) -> tuple[int, ...]:
    """A setting that is one number for all layers or an array of one for each."""
    key = f"{header.architecture}.{name}"
    value = header.metadata.get(key)
    limit = MAX_HEADS if "head_count" in name else MAX_LEN
    if value is None:
        return default if isinstance(default, tuple) else (default,) * num_layers
    if not isinstance(value, tuple):
        return (_optional(header, name, limit=limit),) * num_layers
    if len(value) != num_layers:
        raise header.error(
            f"{key}: expected one for each of {num_layers} layers, found {len(value)}"
        )
    numbers = tuple(item for item in value if isinstance(item, int))
    if len(numbers) != len(value) or not all(0 <= item <= limit for item in numbers):
        raise header.error(f"{key}: expected integers from 0 to {limit}, found {value!r:.80}")
    return numbers
