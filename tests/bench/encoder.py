"""A BERT with random weights, as llama.cpp loads it: how fast one is does not depend on them.

The vocabulary is WordPiece with every printable ASCII character in it, at the start of a word and
within one; any other character is [UNK]. Seeded: the same arguments write the same bytes.
"""

from pathlib import Path
from typing import Final, Literal

import gguf
import numpy as np

CLS: Final = 2
SEP: Final = 3
_SPECIAL_TOKENS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS: Final = [chr(code) for code in range(33, 127)]


def write_bert(
    path: Path,
    *,
    layers: int = 2,
    embedding: int = 64,
    heads: int = 4,
    feed_forward: int = 128,
    vocab: int = 320,
    context: int = 512,
    pooling: int | None = gguf.PoolingType.MEAN,
    weights: Literal["f16", "q8_0"] = "f16",
    seed: int = 0,
) -> Path:
    """Learned positions, LayerNorm after each part, GELU, biases everywhere."""
    writer = gguf.GGUFWriter(path, "bert")
    add_settings(writer, layers, embedding, heads, feed_forward, context, pooling)
    add_wordpiece(writer, vocab)
    tensors = _Tensors(writer, weights, seed)
    tensors.matrix("token_embd", embedding, vocab)
    tensors.noise("position_embd.weight", (context, embedding), embedding**-0.5)
    tensors.noise("token_types.weight", (2, embedding), embedding**-0.5)
    tensors.norm("token_embd_norm", embedding)
    for i in range(layers):
        block = f"blk.{i}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors.linear(f"{block}.{part}", embedding, embedding)
        tensors.norm(f"{block}.attn_output_norm", embedding)
        tensors.linear(f"{block}.ffn_up", embedding, feed_forward)
        tensors.linear(f"{block}.ffn_down", feed_forward, embedding)
        tensors.norm(f"{block}.layer_output_norm", embedding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_settings(
    writer: gguf.GGUFWriter,
    layers: int,
    embedding: int,
    heads: int,
    feed_forward: int,
    context: int,
    pooling: int | None,
) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(embedding)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))


def add_wordpiece(writer: gguf.GGUFWriter, num_tokens: int) -> None:
    """As llama.cpp's converter writes it: `▁` begins a word, what continues one is bare."""
    tokens = [*_SPECIAL_TOKENS, *(f"▁{c}" for c in _CHARACTERS), *_CHARACTERS]
    tokens += [f"▁w{i}" for i in range(num_tokens - len(tokens))]
    assert len(tokens) == num_tokens, "the vocabulary needs at least 193 tokens"
    types = [gguf.TokenType.CONTROL] * len(_SPECIAL_TOKENS)
    types += [gguf.TokenType.NORMAL] * (num_tokens - len(types))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_type_count(2)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(CLS)
    writer.add_eos_token_id(SEP)
    writer.add_sep_token_id(SEP)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)


class _Tensors:
    """Random ones, scaled so that activations stay finite."""

    def __init__(self, writer: gguf.GGUFWriter, weights: str, seed: int) -> None:
        self._writer = writer
        self._kind = gguf.GGMLQuantizationType[weights.upper()]
        self._rng = np.random.default_rng(seed)

    def matrix(self, name: str, num_in: int, num_out: int) -> None:
        data = self._rng.standard_normal((num_out, num_in), dtype=np.float32) * num_in**-0.5
        blocks = gguf.quants.quantize(data, self._kind)
        self._writer.add_tensor(f"{name}.weight", blocks, raw_dtype=self._kind)

    def linear(self, name: str, num_in: int, num_out: int) -> None:
        self.matrix(name, num_in, num_out)
        self.noise(f"{name}.bias", (num_out,), 0.1)

    def norm(self, name: str, size: int) -> None:
        self.noise(f"{name}.weight", (size,), 0.2, mean=1.0)
        self.noise(f"{name}.bias", (size,), 0.2)

    def noise(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> None:
        data = self._rng.standard_normal(shape, dtype=np.float32) * scale + mean
        self._writer.add_tensor(name, data.astype(np.float32))
