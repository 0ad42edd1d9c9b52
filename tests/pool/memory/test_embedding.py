"""Which models embed, and how, by their header and the config."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core import Pooling
from llmserve.errors import ModelFileError
from llmserve.gguf.header import Header
from llmserve.pool.memory.embedding import EmbeddingUse, embedding_use
from tests.pool.fakes import make_spec


def use_of(
    architecture: str, pooling: Pooling | None = None, **settings: Any
) -> EmbeddingUse | None:
    metadata = {f"{architecture}.{name.replace('__', '.')}": v for name, v in settings.items()}
    metadata["general.architecture"] = architecture
    return embedding_use(
        make_spec("a", pooling=pooling),
        Header("a.gguf", 3, metadata, (), data_offset=0, file_size=0),
    )


def test_a_model_that_generates() -> None:
    assert use_of("llama") is None
    assert use_of("llama", pooling_type=0) is None
    assert use_of("llama", attention__causal=True) is None


def test_a_model_that_generates_and_is_asked_to_embed() -> None:
    for pooling in Pooling:
        assert use_of("llama", pooling) == EmbeddingUse(pooling, is_whole=False, is_only=False)


@pytest.mark.parametrize(("value", "pooling"), [(1, "mean"), (2, "cls"), (3, "last")])
def test_encoders_say_how_they_pool(value: int, pooling: str) -> None:
    expected = EmbeddingUse(Pooling(pooling), is_whole=True, is_only=True)
    assert use_of("bert", pooling_type=value, attention__causal=False) == expected


@pytest.mark.parametrize(
    "architecture", ["bert", "nomic-bert", "jina-bert-v2", "gemma-embedding", "t5encoder"]
)
def test_encoders_that_do_not_say_it(architecture: str) -> None:
    mean = EmbeddingUse(Pooling.MEAN, is_whole=True, is_only=True)
    assert use_of(architecture) == mean
    assert use_of(architecture, pooling_type=0) == mean
    assert use_of("llama", attention__causal=False) == mean


def test_decoders_made_for_embeddings() -> None:
    """Qwen3-Embedding: its tokens see earlier ones only, and it generates nothing of use."""
    last = EmbeddingUse(Pooling.LAST, is_whole=False, is_only=True)
    assert use_of("qwen3", pooling_type=3) == last


def test_the_config_overrules_the_file() -> None:
    use = use_of("bert", Pooling.CLS, pooling_type=1)
    assert use == EmbeddingUse(Pooling.CLS, is_whole=True, is_only=True)


def test_rerankers_are_refused() -> None:
    with pytest.raises(ModelFileError, match="reranker"):
        use_of("bert", pooling_type=4)
    use = use_of("bert", Pooling.CLS, pooling_type=4)
    assert use
    assert use.pooling is Pooling.CLS


@given(st.booleans(), st.integers(1, 40_000), st.integers(0, 1 << 22))
def test_the_rows_of_logits_are_bounded(is_whole: bool, trained_len: int, vocab_size: int) -> None:
    use = EmbeddingUse(Pooling.MEAN, is_whole, is_only=True)
    max_len = use.max_len(trained_len, vocab_size)
    assert 1 <= max_len <= trained_len
    params = use.params(max_len, vocab_size)
    assert 1 <= params.max_inputs <= params.max_batch <= params.max_tokens <= max_len
    if is_whole:
        assert max_len <= 512 or 4 * vocab_size * max_len <= 1 << 30
        assert params.max_tokens == max_len
    else:
        assert max_len == trained_len
    assert params.max_batch <= 64 or 4 * vocab_size * params.max_batch <= 32 << 20
