"""Small GGUF models with random weights that llama.cpp really loads, one writer per shape.

Seeded: the same arguments write the same bytes. Weights are scaled so that activations stay
finite; what comes out is noise. The vocabulary is SentencePiece-like with every byte in it, so
any text can be tokenized. Writing 100 MB takes about half a second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

WeightType = Literal["f16", "q8_0", "q4_0"]

_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


class TinyModel:
    """Collects the metadata and tensors of one model; `write` puts them into a file."""

    def __init__(self, path: Path, architecture: str, weights: WeightType, seed: int) -> None:
        self.path = path
        self.prefix = architecture
        self.writer = gguf.GGUFWriter(path, architecture)
        self._weights = weights
        self._rng = np.random.default_rng(seed)

    def set(self, settings: Mapping[str, int | float | bool | str | Sequence[int]]) -> None:
        """Add `<architecture>.<name>` settings; ints are written as uint32."""
        for name, value in settings.items():
            key = f"{self.prefix}.{name}"
            if isinstance(value, bool):
                self.writer.add_bool(key, value)
            elif isinstance(value, int):
                self.writer.add_uint32(key, value)
            elif isinstance(value, float):
                self.writer.add_float32(key, value)
            elif isinstance(value, str):
                self.writer.add_string(key, value)
            else:
                self.writer.add_array(key, list(value))

    def add_vocabulary(
        self, num_tokens: int, *, chat_template: str | None = None, infill: bool = False
    ) -> None:
        """With `infill` the last three are the tokens that fill in the middle."""
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        words = [f"▁w{i}" for i in range(num_tokens - len(_SPECIAL_TOKENS) - 256)]
        tokens = [*_SPECIAL_TOKENS, *byte_tokens, *words]
        assert len(tokens) == num_tokens, "the vocabulary needs at least 259 tokens"
        types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
        types += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(words)
        self.writer.add_tokenizer_model("llama")
        self.writer.add_token_list(tokens)
        self.writer.add_token_scores([-float(i) for i in range(num_tokens)])
        self.writer.add_token_types(types)
        self.writer.add_bos_token_id(1)
        self.writer.add_eos_token_id(2)
        self.writer.add_unk_token_id(0)
        if chat_template is not None:
            self.writer.add_chat_template(chat_template)
        for index, name in enumerate(("pre", "suf", "mid") if infill else (), num_tokens - 3):
            self.writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", index)

    def weight(self, name: str, num_in: int, *rest: int) -> None:
        """A matrix (or stack of them) of the model's weight type; `num_in` is the row length."""
        shape = (*reversed(rest), num_in)
        scale = 1.0 / np.sqrt(num_in)
        if self._weights == "f16":
            data = self._rng.random(shape, dtype=np.float32) - 0.5
            self.writer.add_tensor(f"{name}.weight", (data * (3.46 * scale)).astype(np.float16))
            return
        blocks, quantization = _random_blocks(self._rng, self._weights, shape, scale)
        self.writer.add_tensor(f"{name}.weight", blocks, raw_dtype=quantization)

    def vector(self, name: str, *shape: int, value: float = 1.0) -> None:
        """A float32 tensor filled with `value`: norms, biases and the like."""
        self.writer.add_tensor(name, np.full(tuple(reversed(shape)), value, dtype=np.float32))

    def normal(
        self, shape: tuple[int, ...], scale: float, mean: float = 0.0
    ) -> NDArray[np.float32]:
        """Float32 noise, for what must not be the same everywhere."""
        return (self._rng.standard_normal(shape) * scale + mean).astype(np.float32)

    def write(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def _random_blocks(
    rng: np.random.Generator, weights: WeightType, shape: tuple[int, ...], scale: float
) -> tuple[NDArray[np.uint8], gguf.GGMLQuantizationType]:
    """Rows of quantized blocks: a float16 step, then random codes of about unit variance."""
    num_codes, std, kind = {
        "q8_0": (32, 73.9, gguf.GGMLQuantizationType.Q8_0),
        "q4_0": (16, 4.6, gguf.GGMLQuantizationType.Q4_0),
    }[weights]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, 2 + num_codes), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(scale / std).tobytes(), dtype=np.uint8)
    return blocks.reshape(*shape[:-1], -1), kind


def write_llama(
    path: Path,
    *,
    architecture: str = "llama",
    layers: int = 2,
    embedding: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_len: int | None = None,
    feed_forward: int = 128,
    experts: int = 0,
    experts_used: int = 0,
    vocab: int = 320,
    context: int = 2048,
    tied: bool = True,
    qkv_bias: bool = False,
    head_norms: bool = False,
    weights: WeightType = "q8_0",
    chat_template: str | None = CHAT_TEMPLATE,
    infill: bool = False,
    settings: Mapping[str, int | float | bool | str | Sequence[int]] | None = None,
    seed: int = 0,
) -> Path:
    """A llama, or with `architecture` another one that has the same tensors (e.g. mistral3)."""
    model = TinyModel(path, architecture, weights, seed)
    head_len = head_len or embedding // heads
    _add_attention_settings(
        model, layers, embedding, heads, kv_heads, head_len, feed_forward, context
    )
    if experts:
        model.set({"expert_count": experts, "expert_used_count": experts_used})
    model.set(settings or {})
    model.add_vocabulary(vocab, chat_template=chat_template, infill=infill)
    _add_embeddings(model, embedding, vocab, tied=tied)
    for i in range(layers):
        block = f"blk.{i}"
        _add_attention(model, block, embedding, heads, kv_heads, head_len, bias=qkv_bias)
        if head_norms:
            _add_head_norms(model, block, head_len)
        model.vector(f"{block}.ffn_norm.weight", embedding)
        if experts:
            model.weight(f"{block}.ffn_gate_inp", embedding, experts)
            _add_feed_forward(model, block, embedding, feed_forward, "_exps", experts)
        else:
            _add_feed_forward(model, block, embedding, feed_forward)
    return model.write()


def write_qwen2(path: Path, **arguments: Any) -> Path:
    """A qwen2: a llama whose Q, K and V have biases. Arguments as of `write_llama`."""
    return write_llama(path, architecture="qwen2", qkv_bias=True, **arguments)


def write_qwen3(path: Path, **arguments: Any) -> Path:
    """A qwen3: a llama whose heads have norms; with `pooling_type` in `settings` an embedder."""
    return write_llama(path, architecture="qwen3", head_norms=True, **arguments)


def write_gemma3(
    path: Path,
    *,
    layers: int = 6,
    embedding: int = 64,
    heads: int = 4,
    kv_heads: int = 1,
    head_len: int = 32,
    feed_forward: int = 128,
    window: int = 512,
    vocab: int = 320,
    context: int = 8192,
    weights: WeightType = "q8_0",
    seed: int = 0,
) -> Path:
    """A gemma3: of every six layers, five see only the last `window` tokens."""
    model = TinyModel(path, "gemma3", weights, seed)
    _add_attention_settings(
        model, layers, embedding, heads, kv_heads, head_len, feed_forward, context
    )
    model.set({"attention.sliding_window": window})
    model.add_vocabulary(vocab)
    _add_embeddings(model, embedding, vocab, tied=True)
    for i in range(layers):
        block = f"blk.{i}"
        _add_attention(model, block, embedding, heads, kv_heads, head_len)
        _add_head_norms(model, block, head_len)
        model.vector(f"{block}.post_attention_norm.weight", embedding)
        model.vector(f"{block}.ffn_norm.weight", embedding)
        _add_feed_forward(model, block, embedding, feed_forward)
        model.vector(f"{block}.post_ffw_norm.weight", embedding)
    return model.write()


def write_mamba(
    path: Path,
    *,
    layers: int = 2,
    embedding: int = 64,
    state: int = 16,
    conv: int = 4,
    vocab: int = 320,
    context: int = 2048,
    weights: WeightType = "f16",
    seed: int = 0,
) -> Path:
    """A mamba: no attention, one recurrent state per sequence and layer."""
    model = TinyModel(path, "mamba", weights, seed)
    inner, rank = 2 * embedding, 32 * max(1, embedding // 512)
    model.set(
        {
            "block_count": layers,
            "context_length": context,
            "embedding_length": embedding,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "ssm.conv_kernel": conv,
            "ssm.inner_size": inner,
            "ssm.state_size": state,
            "ssm.time_step_rank": rank,
        }
    )
    model.add_vocabulary(vocab)
    _add_embeddings(model, embedding, vocab, tied=True)
    for i in range(layers):
        block = f"blk.{i}"
        model.vector(f"{block}.attn_norm.weight", embedding)
        model.weight(f"{block}.ssm_in", embedding, 2 * inner)
        model.vector(f"{block}.ssm_conv1d.weight", conv, inner, value=0.25)
        model.vector(f"{block}.ssm_conv1d.bias", inner, value=0.0)
        model.weight(f"{block}.ssm_x", inner, rank + 2 * state)
        model.weight(f"{block}.ssm_dt", rank, inner)
        model.vector(f"{block}.ssm_dt.bias", inner, value=0.0)
        model.vector(f"{block}.ssm_a", state, inner, value=-1.0)
        model.vector(f"{block}.ssm_d", inner)
        model.weight(f"{block}.ssm_out", inner, embedding)
    return model.write()


def write_lfm2(
    path: Path,
    *,
    layers: int = 4,
    embedding: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 128,
    conv: int = 3,
    vocab: int = 320,
    context: int = 2048,
    weights: WeightType = "q8_0",
    seed: int = 0,
) -> Path:
    """An lfm2, a hybrid: attention in every second layer, short convolutions in the others."""
    model = TinyModel(path, "lfm2", weights, seed)
    head_len = embedding // heads
    per_layer = [kv_heads if i % 2 else 0 for i in range(layers)]
    _add_attention_settings(
        model, layers, embedding, heads, per_layer, head_len, feed_forward, context
    )
    model.set({"shortconv.l_cache": conv})
    model.add_vocabulary(vocab)
    model.weight("token_embd", embedding, vocab)
    model.vector("token_embd_norm.weight", embedding)
    for i, kv in enumerate(per_layer):
        block = f"blk.{i}"
        if kv:
            _add_attention(model, block, embedding, heads, kv, head_len)
            _add_head_norms(model, block, head_len)
        else:
            model.vector(f"{block}.attn_norm.weight", embedding)
            model.vector(f"{block}.shortconv.conv.weight", conv, embedding, value=0.3)
            model.weight(f"{block}.shortconv.in_proj", embedding, 3 * embedding)
            model.weight(f"{block}.shortconv.out_proj", embedding, embedding)
        model.vector(f"{block}.ffn_norm.weight", embedding)
        _add_feed_forward(model, block, embedding, feed_forward)
    return model.write()


def _add_attention_settings(
    model: TinyModel,
    layers: int,
    embedding: int,
    heads: int,
    kv_heads: int | list[int],
    head_len: int,
    feed_forward: int,
    context: int,
) -> None:
    model.set(
        {
            "block_count": layers,
            "context_length": context,
            "embedding_length": embedding,
            "feed_forward_length": feed_forward,
            "attention.head_count": heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": head_len,
            "attention.value_length": head_len,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": head_len,
        }
    )


def _add_embeddings(model: TinyModel, embedding: int, vocab: int, *, tied: bool) -> None:
    model.weight("token_embd", embedding, vocab)
    model.vector("output_norm.weight", embedding)
    if not tied:
        model.weight("output", embedding, vocab)


def _add_attention(
    model: TinyModel,
    block: str,
    embedding: int,
    heads: int,
    kv_heads: int,
    head_len: int,
    *,
    bias: bool = False,
) -> None:
    model.vector(f"{block}.attn_norm.weight", embedding)
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        model.weight(f"{block}.attn_{name}", embedding, count * head_len)
        if bias:
            model.vector(f"{block}.attn_{name}.bias", count * head_len, value=0.0)
    model.weight(f"{block}.attn_output", heads * head_len, embedding)


def _add_head_norms(model: TinyModel, block: str, head_len: int) -> None:
    model.vector(f"{block}.attn_q_norm.weight", head_len)
    model.vector(f"{block}.attn_k_norm.weight", head_len)


def _add_feed_forward(
    model: TinyModel, block: str, embedding: int, feed_forward: int, suffix: str = "", *stack: int
) -> None:
    model.weight(f"{block}.ffn_gate{suffix}", embedding, feed_forward, *stack)
    model.weight(f"{block}.ffn_up{suffix}", embedding, feed_forward, *stack)
    model.weight(f"{block}.ffn_down{suffix}", feed_forward, embedding, *stack)
