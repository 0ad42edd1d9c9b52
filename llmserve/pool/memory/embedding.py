"""Whether and how a model computes embeddings, from its header and the config. Pure."""

from typing import Final

from msgspec import Struct

from llmserve.config.schema import ModelSpec
from llmserve.core import Pooling
from llmserve.engine.runtime import MAX_BATCH, EmbeddingParams
from llmserve.gguf.header import Header
from llmserve.pool.memory.architectures import NO_CACHE

# llama.cpp keeps a row of logits for every token of a batch, also where none is read
# (output_reserve in llama-context.cpp): with a large vocabulary they are most of the memory.
_ROW_BYTES: Final = 4
_BATCH_BYTES: Final = 32 << 20  # of such rows in a batch of several inputs
_INPUT_BYTES: Final = 1 << 30  # … of the longest input that has to be in one batch
_MIN_BATCH: Final = 64  # tokens; smaller ones are slow
_MAX_INPUTS: Final = 32  # in one batch

_ENCODERS: Final = NO_CACHE | {"t5encoder"}
_OWN_POOLING: Final = {1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST}  # llama.h
_RANK: Final = 4


class EmbeddingUse(Struct, frozen=True):
    """`is_whole`: every token sees all others, so an input cannot be computed in parts.

    `is_only`: the model was made for embeddings and generates no text. `max_inputs`: texts at the
    same time.
    """

    pooling: Pooling
    is_whole: bool
    is_only: bool
    max_inputs: int = _MAX_INPUTS

    def params(self, max_len: int, vocab_size: int) -> EmbeddingParams:
        """For inputs of at most `max_len` tokens."""
        batch = _BATCH_BYTES // (_ROW_BYTES * max(1, vocab_size))
        batch = min(max_len, max(_MIN_BATCH, min(MAX_BATCH, batch)))
        max_inputs = min(self.max_inputs, batch)
        return EmbeddingParams(self.pooling, self.is_whole, max_len, batch, max_inputs)

    def max_len(self, trained_len: int, vocab_size: int) -> int:
        """The longest input that is offered where the config does not say."""
        if not self.is_whole:
            return trained_len
        return min(trained_len, max(MAX_BATCH, _INPUT_BYTES // (_ROW_BYTES * max(1, vocab_size))))


def embedding_use(spec: ModelSpec, header: Header) -> EmbeddingUse | None:
    """How to embed with the model; None for one that only generates.

    Raises `ModelFileError` for a reranker, whose scores are neither.
    """
    own = header.setting("pooling_type")
    is_encoder = header.architecture in _ENCODERS or (
        header.metadata.get(f"{header.architecture}.attention.causal") is False
    )
    if own == _RANK and spec.pooling is None:
        raise header.error(
            "is a reranker, which this server has no route for; set pooling in models.toml to use"
            " it for embeddings"
        )
    default = _OWN_POOLING.get(own or 0) or (Pooling.MEAN if is_encoder else None)
    pooling = spec.pooling or default
    if pooling is None:
        return None
    is_only = is_encoder or own in _OWN_POOLING
    # Of a model that also generates it is for that.
    max_inputs = (spec.max_concurrency if is_only else None) or _MAX_INPUTS
    return EmbeddingUse(pooling, is_whole=is_encoder, is_only=is_only, max_inputs=max_inputs)
