"""Embeddings on llama.cpp: against its own plain use, and against an implementation in numpy."""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from llmserve.core import Pooling, Vectors
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.runtime import AbortedError, Chunk, EmbeddingParams, InputChunk
from llmserve.errors import EngineError
from tests.smollm2 import MODEL
from tests.tiny_encoders import NumpyBert, write_bert, write_nomic_bert, write_t5_encoder
from tests.tiny_models import write_gemma3, write_lfm2, write_llama, write_qwen3

TEXTS = ("hello world", "a", "Is this a test? It is!", "x y z " * 8, "hello world", "so be it")
_TYPES = {
    Pooling.MEAN: lib.LLAMA_POOLING_TYPE_MEAN,
    Pooling.CLS: lib.LLAMA_POOLING_TYPE_CLS,
    Pooling.LAST: lib.LLAMA_POOLING_TYPE_LAST,
}


def load(
    path: Path,
    pooling: Pooling,
    *,
    is_whole: bool,
    generates: bool = False,
    max_len: int = 512,
    max_batch: int = 256,
) -> LlamaRuntime:
    embedding = EmbeddingParams(pooling, is_whole, max_len, max_batch, max_inputs=32)
    params = LlamaParams(
        max_len,
        max_sequences=4,
        max_outputs=16,
        num_threads=2,
        embedding=embedding,
        generates=generates,
    )
    return LlamaRuntime(path, params)


def tokens_of(runtime: LlamaRuntime, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [runtime.tokenize(text, add_special=True) for text in texts]


def batched(runtime: LlamaRuntime, inputs: Sequence[Sequence[int]]) -> Vectors:
    return runtime.embed([InputChunk(i, 0, tokens, True) for i, tokens in enumerate(inputs)])


def alone(runtime: LlamaRuntime, inputs: Sequence[Sequence[int]]) -> Vectors:
    return np.concatenate([batched(runtime, [tokens]) for tokens in inputs])


def directly(path: Path, inputs: Sequence[Sequence[int]], pooling: Pooling) -> Vectors:
    """llama.cpp as its own example uses it: a fresh context, one text at a time, pooled there."""
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    vectors = []
    for tokens in inputs:
        wanted = lib.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = 512
        wanted.n_threads = wanted.n_threads_batch = 2
        wanted.embeddings = True
        wanted.pooling_type = _TYPES[pooling]
        context = lib.llama_init_from_model(model, wanted)
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert lib.llama_decode(context, batch) == 0
        row = lib.llama_get_embeddings_seq(context, 0)
        size = lib.llama_model_n_embd_out(model)
        vectors.append(np.array(row[:size], dtype=np.float32))
        lib.llama_batch_free(batch)
        lib.llama_free(context)
    lib.llama_model_free(model)
    return np.array(vectors)


def assert_close(found: Vectors, expected: Any, tolerance: float = 2e-3) -> None:
    """Within `tolerance` of the length of each vector: kernels round by batch size."""
    assert found.shape == expected.shape
    lengths = np.linalg.norm(expected, axis=1)
    assert (np.linalg.norm(found - expected, axis=1) <= tolerance * lengths).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    return write_bert(folder / "bert.gguf")


@pytest.fixture(scope="module")
def both() -> Iterator[LlamaRuntime]:
    """The real model, to generate and to embed."""
    runtime = load(MODEL, Pooling.MEAN, is_whole=False, generates=True)
    yield runtime
    runtime.close()


# -- whole inputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", Pooling)
def test_bert_as_in_the_paper(bert: Path, pooling: Pooling) -> None:
    runtime = load(bert, pooling, is_whole=True)
    inputs = tokens_of(runtime)
    reference = NumpyBert(bert)
    rows = [reference.rows(tokens) for tokens in inputs]
    pooled = {
        Pooling.MEAN: np.array([r.mean(axis=0) for r in rows]),
        Pooling.CLS: np.array([r[0] for r in rows]),
        Pooling.LAST: np.array([r[-1] for r in rows]),
    }[pooling]
    assert_close(batched(runtime, inputs), pooled)
    assert_close(alone(runtime, inputs), pooled)
    runtime.close()


ENCODERS: dict[str, Callable[[Path], Path]] = {
    "bert": write_bert,
    "nomic-bert": write_nomic_bert,
    "llama": lambda path: write_llama(path, weights="f16", settings={"attention.causal": False}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_as_llama_cpp_alone(folder: Path, name: str) -> None:
    """The llama is one whose tokens see later ones: it has KV cells, but no use for them."""
    path = ENCODERS[name](folder / f"encoder-{name}.gguf")
    runtime = load(path, Pooling.MEAN, is_whole=True)
    inputs = tokens_of(runtime)
    expected = directly(path, inputs, Pooling.MEAN)
    for _ in range(3):  # nothing of a call is left for the next
        assert_close(batched(runtime, inputs), expected)
    assert_close(alone(runtime, inputs), expected)
    runtime.close()


def test_the_encoder_of_a_t5(folder: Path) -> None:
    """It has cells, and is to be encoded, not decoded."""
    runtime = load(write_t5_encoder(folder / "t5.gguf"), Pooling.MEAN, is_whole=True)
    inputs = tokens_of(runtime)
    expected = alone(runtime, inputs)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    assert_close(batched(runtime, inputs), expected)
    reverse = alone(runtime, [tokens[::-1] for tokens in inputs])  # positions matter
    assert np.abs(reverse[2] - expected[2]).max() > 0.01
    runtime.close()


def test_an_input_as_long_as_the_context(bert: Path) -> None:
    runtime = load(bert, Pooling.MEAN, is_whole=True)
    limits = runtime.embedding_limits
    assert limits
    assert (limits.max_len, limits.max_batch, limits.is_whole) == (512, 256, True)
    tokens = [5 + i % 300 for i in range(512)]
    rows = NumpyBert(bert).rows(tokens)
    assert_close(batched(runtime, [tokens]), rows.mean(axis=0)[None])
    runtime.close()


def test_a_model_for_embeddings_only(bert: Path) -> None:
    runtime = load(bert, Pooling.CLS, is_whole=True)
    assert not runtime.info.generates
    assert runtime.limits.context_length == 512
    assert runtime.info.bos_text == "[CLS]"
    (tokens,) = tokens_of(runtime, ["a b"])
    assert runtime.detokenize(tokens).decode().replace(" ", "") == "[CLS]ab[SEP]"
    with pytest.raises(AssertionError):
        runtime.decode([Chunk(0, 0, [5], True)])
    assert runtime.num_tokens(0) == 0
    runtime.close()


# -- inputs in parts -----------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", Pooling)
def test_a_real_model_as_llama_cpp_alone(pooling: Pooling) -> None:
    runtime = load(MODEL, pooling, is_whole=False, generates=True)
    inputs = tokens_of(runtime, TEXTS[:4])
    # Its weights are quantized and so are the activations, by a rule that depends on the batch.
    expected = directly(MODEL, inputs, pooling)
    assert_close(batched(runtime, inputs), expected, tolerance=0.03)
    assert_close(alone(runtime, inputs), expected, tolerance=0.03)
    runtime.close()


@pytest.mark.parametrize("pooling", Pooling)
def test_a_qwen3_as_llama_cpp_alone(folder: Path, pooling: Pooling) -> None:
    path = write_qwen3(folder / "qwen3.gguf", weights="f16")
    runtime = load(path, pooling, is_whole=False)
    inputs = tokens_of(runtime)
    assert_close(batched(runtime, inputs), directly(path, inputs, pooling))
    runtime.close()


def test_a_hybrid_as_llama_cpp_alone(folder: Path) -> None:
    """Its convolutions have a state for each sequence."""
    path = write_lfm2(folder / "lfm2.gguf", weights="f16")
    runtime = load(path, Pooling.MEAN, is_whole=False)
    inputs = tokens_of(runtime, TEXTS[:3])
    assert_close(batched(runtime, inputs), directly(path, inputs, Pooling.MEAN))
    runtime.close()


def test_a_sliding_window_as_llama_cpp_alone(folder: Path) -> None:
    """In parts, with most of the tokens out of the window of the last ones."""
    path = write_gemma3(folder / "gemma3.gguf", window=16, weights="f16")
    runtime = load(path, Pooling.LAST, is_whole=False)
    inputs = tokens_of(runtime, ["to be or not to be " * 5, "that is the question " * 3])
    assert min(map(len, inputs)) > 80
    for _ in range(2):
        found = []
        for tokens in inputs:
            runtime.embed([InputChunk(0, 0, tokens[:50], False)])
            found.append(runtime.embed([InputChunk(0, 50, tokens[50:], True)])[0])
        assert_close(np.array(found), directly(path, inputs, Pooling.LAST))
    runtime.close()


@pytest.mark.parametrize("pooling", Pooling)
def test_parts_give_the_same_as_the_whole(folder: Path, pooling: Pooling) -> None:
    path = write_qwen3(folder / "parts.gguf", weights="f16")
    runtime = load(path, pooling, is_whole=False)
    first, second = tokens_of(runtime, ["the quick brown fox", "jumps over it"])
    whole = alone(runtime, [first, second])
    empty = runtime.embed([InputChunk(3, 0, first[:5], False), InputChunk(1, 0, second[:1], False)])
    assert empty.shape == (0, 64)
    one = runtime.embed([InputChunk(1, 1, second[1:], True), InputChunk(3, 5, first[5:9], False)])
    other = runtime.embed([InputChunk(3, 9, first[9:], True)])
    assert_close(np.concatenate([other, one]), whole)
    runtime.close()


def test_a_forgotten_input_leaves_nothing(folder: Path) -> None:
    path = write_qwen3(folder / "forgotten.gguf", weights="f16")
    runtime = load(path, Pooling.MEAN, is_whole=False)
    first, second = tokens_of(runtime, ["something else", "and this"])
    expected = alone(runtime, [second])
    runtime.embed([InputChunk(0, 0, first, False)])
    runtime.forget(0)
    assert_close(batched(runtime, [second]), expected)
    runtime.close()


def test_aborted_and_then_again(folder: Path) -> None:
    path = write_qwen3(folder / "aborted.gguf", weights="f16")
    runtime = load(path, Pooling.MEAN, is_whole=False)
    (tokens,) = tokens_of(runtime, ["to be or not to be"])
    expected = batched(runtime, [tokens])
    runtime.embed([InputChunk(0, 0, tokens[:4], False)])
    runtime.abort()
    with pytest.raises(AbortedError):
        runtime.embed([InputChunk(0, 4, tokens[4:], True)])
    runtime.clear_abort()
    assert_close(batched(runtime, [tokens]), expected)  # all was forgotten
    runtime.close()


def test_generation_is_not_disturbed(both: LlamaRuntime) -> None:
    """The two contexts share the weights, and nothing else."""
    prompt = both.tokenize("The capital of France is", add_special=False)
    expected = both.decode([Chunk(0, 0, prompt, True)]).copy()
    both.trim(0, 0)
    both.decode([Chunk(0, 0, prompt[:-1], False)])
    batched(both, tokens_of(both))
    logits = both.decode([Chunk(0, len(prompt) - 1, prompt[-1:], True)])
    both.trim(0, 0)
    assert logits.argmax() == expected.argmax()
    assert np.abs(logits - expected).max() < 1.0  # rounding alone: see facts about batch sizes


def test_similar_texts_are_closer(both: LlamaRuntime) -> None:
    """The vectors of a real model mean something."""
    texts = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Stock prices fell by 3 %."]
    vectors = batched(both, tokens_of(both, texts))
    vectors -= batched(both, tokens_of(both, ["Hello, how are you today?"]))  # what all share
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cats, other = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert cats > other + 0.1


# -- what goes wrong -----------------------------------------------------------------------------


def test_a_context_that_cannot_be_made_frees_the_model(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[str] = []
    free = lib.llama_model_free

    def note(model: object) -> None:
        freed.append("model")
        free(model)

    monkeypatch.setattr(lib, "llama_model_free", note)
    monkeypatch.setattr(lib, "llama_init_from_model", lambda model, params: None)
    with pytest.raises(EngineError, match="cannot make a context of 512 tokens"):
        load(bert, Pooling.MEAN, is_whole=True)
    assert freed == ["model"]


def test_a_failed_computation_is_our_error(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load(bert, Pooling.MEAN, is_whole=True)
    for code in (-2, 1):
        monkeypatch.setattr(lib, "llama_decode", lambda context, batch, code=code: code)
        with pytest.raises(EngineError, match=r"llama_decode failed with code -2|found no cells"):
            batched(runtime, [[5, 6]])
    runtime.close()
    del runtime
    gc.collect()
