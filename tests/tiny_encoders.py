"""Small encoders with random weights that llama.cpp really loads, as `tiny_models` has decoders.

The vocabulary is WordPiece with every printable ASCII character in it, at the start of a word and
within one; any other character is [UNK].
"""

from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.tiny_models import TinyModel, WeightType

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
    weights: WeightType = "f16",
    seed: int = 0,
) -> Path:
    """A BERT: learned positions, LayerNorm after each part, GELU, biases everywhere."""
    model = TinyModel(path, "bert", weights, seed)
    _add_settings(model.writer, layers, embedding, heads, feed_forward, context, pooling)
    _add_wordpiece(model.writer, vocab)
    model.weight("token_embd", embedding, vocab)
    _table(model, "position_embd", embedding, context)
    _table(model, "token_types", embedding, 2)
    _norm(model, "token_embd_norm", embedding)
    for i in range(layers):
        block = f"blk.{i}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            _linear(model, f"{block}.{part}", embedding, embedding)
        _norm(model, f"{block}.attn_output_norm", embedding)
        _linear(model, f"{block}.ffn_up", embedding, feed_forward)
        _linear(model, f"{block}.ffn_down", feed_forward, embedding)
        _norm(model, f"{block}.layer_output_norm", embedding)
    return model.write()


def write_nomic_bert(
    path: Path,
    *,
    layers: int = 2,
    embedding: int = 64,
    heads: int = 4,
    feed_forward: int = 128,
    vocab: int = 320,
    context: int = 2048,
    pooling: int | None = gguf.PoolingType.MEAN,
    weights: WeightType = "f16",
    seed: int = 0,
) -> Path:
    """A nomic-bert: rotary positions, a gated feed-forward network, no biases of matrices."""
    model = TinyModel(path, "nomic-bert", weights, seed)
    _add_settings(model.writer, layers, embedding, heads, feed_forward, context, pooling)
    model.set({"rope.freq_base": 1000.0})
    _add_wordpiece(model.writer, vocab)
    model.weight("token_embd", embedding, vocab)
    _table(model, "token_types", embedding, 2)
    _norm(model, "token_embd_norm", embedding)
    for i in range(layers):
        block = f"blk.{i}"
        model.weight(f"{block}.attn_qkv", embedding, 3 * embedding)
        model.weight(f"{block}.attn_output", embedding, embedding)
        _norm(model, f"{block}.attn_output_norm", embedding)
        model.weight(f"{block}.ffn_gate", embedding, feed_forward)
        model.weight(f"{block}.ffn_up", embedding, feed_forward)
        model.weight(f"{block}.ffn_down", feed_forward, embedding)
        _norm(model, f"{block}.layer_output_norm", embedding)
    return model.write()


def write_t5_encoder(
    path: Path,
    *,
    layers: int = 2,
    embedding: int = 64,
    heads: int = 4,
    feed_forward: int = 128,
    vocab: int = 320,
    seed: int = 0,
) -> Path:
    """The encoder of a T5: relative positions as biases of the attention's scores."""
    model = TinyModel(path, "t5encoder", "f16", seed)
    _add_settings(model.writer, layers, embedding, heads, feed_forward, 512, None)
    model.set({"attention.relative_buckets_count": 32, "attention.layer_norm_rms_epsilon": 1e-6})
    model.add_vocabulary(vocab)
    model.weight("token_embd", embedding, vocab)
    model.vector("enc.output_norm.weight", embedding)
    for i in range(layers):
        block = f"enc.blk.{i}"
        model.vector(f"{block}.attn_norm.weight", embedding)
        for part in ("attn_q", "attn_k", "attn_v", "attn_o"):
            model.weight(f"{block}.{part}", embedding, embedding)
        if i == 0:
            _noise(model, f"{block}.attn_rel_b.weight", (32, heads), 1.0)
        model.vector(f"{block}.ffn_norm.weight", embedding)
        model.weight(f"{block}.ffn_gate", embedding, feed_forward)
        model.weight(f"{block}.ffn_up", embedding, feed_forward)
        model.weight(f"{block}.ffn_down", feed_forward, embedding)
    return model.write()


def _add_settings(
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


def _add_wordpiece(writer: gguf.GGUFWriter, num_tokens: int) -> None:
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


def _linear(model: TinyModel, name: str, num_in: int, num_out: int) -> None:
    model.weight(name, num_in, num_out)
    _noise(model, f"{name}.bias", (num_out,), 0.1)


def _norm(model: TinyModel, name: str, size: int) -> None:
    _noise(model, f"{name}.weight", (size,), 0.2, mean=1.0)
    _noise(model, f"{name}.bias", (size,), 0.2)


def _table(model: TinyModel, name: str, embedding: int, num_rows: int) -> None:
    """Looked up and added to the tokens' embeddings, so as large as these."""
    _noise(model, f"{name}.weight", (num_rows, embedding), embedding**-0.5)


def _noise(
    model: TinyModel, name: str, shape: tuple[int, ...], scale: float, *, mean: float = 0.0
) -> None:
    model.writer.add_tensor(name, model.normal(shape, scale, mean))


# -- an independent computation ------------------------------------------------------------------


class NumpyBert:
    """What `write_bert` has written, computed from the paper (arXiv 1810.04805) one text at a
    time, in float64."""

    def __init__(self, path: Path, heads: int = 4) -> None:
        reader = gguf.GGUFReader(path)
        self._tensors = {t.name: np.array(t.data, dtype=np.float64) for t in reader.tensors}
        self._heads = heads
        self._num_layers = sum(name.endswith("ffn_up.weight") for name in self._tensors)

    def rows(self, tokens: list[int]) -> NDArray[np.float64]:
        """The last layer's output, (tokens, embedding)."""
        t = self._tensors
        x = t["token_embd.weight"][tokens] + t["position_embd.weight"][: len(tokens)]
        x = self._norm("token_embd_norm", x + t["token_types.weight"][0])
        for i in range(self._num_layers):
            block = f"blk.{i}"
            x = self._norm(f"{block}.attn_output_norm", x + self._attention(block, x))
            hidden = _gelu(self._linear(f"{block}.ffn_up", x))
            x = self._norm(
                f"{block}.layer_output_norm", x + self._linear(f"{block}.ffn_down", hidden)
            )
        return x

    def _attention(self, block: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        q, k, v = (
            self._linear(f"{block}.attn_{name}", x).reshape(len(x), self._heads, -1)
            for name in "qkv"
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        return self._linear(f"{block}.attn_output", mixed)

    def _linear(self, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = x @ self._tensors[f"{name}.weight"].T
        return out + self._tensors[f"{name}.bias"]

    def _norm(self, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
        return x * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The approximation by tanh, which is ggml's."""
    result: NDArray[np.float64] = (
        0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    )
    return result
