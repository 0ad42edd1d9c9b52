"""What the config leaves open is chosen to fit; what it says is obeyed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmserve.config.units import Size
from llmserve.core import Pooling
from llmserve.engine.runtime import EmbeddingParams
from llmserve.errors import ModelFileError
from llmserve.gguf.header import ModelFiles, read_model
from llmserve.pool.load_plan import (
    CACHE_SHARE,
    MAX_SEQUENCES,
    MIN_CONTEXT_LENGTH,
    MIN_OUTPUTS,
    plan_load,
)
from tests.pool.fakes import make_spec
from tests.tiny_encoders import write_bert
from tests.tiny_models import write_llama

PLENTY = 1 << 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    path: Path = tmp_path_factory.mktemp("plan") / "tiny.gguf"
    write_llama(path)
    return read_model(path)


def test_with_plenty_of_memory_it_is_the_training_length(model: ModelFiles) -> None:
    plan = plan_load(make_spec("a"), model, PLENTY, frozenset())
    assert plan.context_length == model.header.context_length
    assert plan.max_sequences == MAX_SEQUENCES


@given(share=st.floats(0, 1))
def test_with_less_it_is_the_largest_that_fits(model: ModelFiles, share: float) -> None:
    spec = make_spec("a", prefix_cache=Size(0))
    most = plan_load(spec, model, PLENTY, frozenset())
    least = plan_load(replace(spec, context_length=MIN_CONTEXT_LENGTH), model, 0, frozenset())
    budget = int(least.size_bytes + share * (most.size_bytes - least.size_bytes))
    plan = plan_load(spec, model, budget, frozenset())
    assert plan.size_bytes <= budget
    assert MIN_CONTEXT_LENGTH <= plan.context_length <= most.context_length
    if plan.context_length < most.context_length:
        longer = replace(
            spec, context_length=plan.context_length + 256, max_concurrency=MAX_SEQUENCES
        )
        assert plan_load(longer, model, budget, frozenset()).size_bytes > budget


def test_where_nothing_fits_the_least_is_offered_to_be_refused(model: ModelFiles) -> None:
    plan = plan_load(make_spec("a"), model, 1, frozenset())
    assert plan.context_length == MIN_CONTEXT_LENGTH
    assert plan.size_bytes > 1


def test_what_the_config_says_is_obeyed(model: ModelFiles) -> None:
    spec = make_spec("a", context_length=300, max_concurrency=3)
    plan = plan_load(spec, model, PLENTY, frozenset())
    assert (plan.context_length, plan.max_sequences) == (300, 3)


@given(budget=st.integers(0, 1 << 28))
def test_an_open_prefix_cache_takes_what_is_left_of_its_share(
    model: ModelFiles, budget: int
) -> None:
    without = plan_load(make_spec("a", prefix_cache=Size(0)), model, budget, frozenset())
    plan = plan_load(make_spec("a"), model, budget, frozenset())
    assert 0 <= plan.prefix_cache_bytes <= budget * CACHE_SHARE
    if without.size_bytes <= budget:
        assert plan.size_bytes <= budget
    if budget >= 1 << 27:
        assert plan.prefix_cache_bytes > 1 << 20
        assert plan.context_length == without.context_length


def test_a_given_prefix_cache_is_part_of_what_is_needed(model: ModelFiles) -> None:
    without = plan_load(make_spec("a", prefix_cache=Size(0)), model, PLENTY, frozenset())
    plan = plan_load(make_spec("a", prefix_cache=Size(1 << 30)), model, PLENTY, frozenset())
    assert without.prefix_cache_bytes == 0
    assert plan.prefix_cache_bytes == 1 << 30
    assert plan.size_bytes == without.size_bytes + (1 << 30)
    assert plan_load(
        make_spec("a", prefix_cache=Size(1 << 30)), model, 1 << 20, frozenset()
    ).size_bytes


# -- embeddings ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return read_model(write_bert(tmp_path_factory.mktemp("plan") / "bert.gguf"))


def test_a_model_for_embeddings(encoder: ModelFiles) -> None:
    plan = plan_load(make_spec("a"), encoder, PLENTY, frozenset())
    assert plan.context_length == 512
    assert plan.embedding == EmbeddingParams(Pooling.MEAN, True, 512, 512, 32)
    assert not plan.generates
    assert plan.max_sequences == 32
    plan = plan_load(make_spec("a", max_concurrency=5), encoder, PLENTY, frozenset())
    assert plan.embedding
    assert plan.max_sequences == plan.embedding.max_inputs == 5


def test_the_second_context_is_counted(model: ModelFiles) -> None:
    alone = plan_load(make_spec("a"), model, PLENTY, frozenset())
    both = plan_load(make_spec("a", pooling=Pooling.LAST), model, PLENTY, frozenset())
    assert alone.embedding is None
    assert both.embedding == EmbeddingParams(Pooling.LAST, False, 2048, 512, 32)
    assert both.generates
    assert both.context_length == alone.context_length
    # The cells are there twice; and there are rows for 512 tokens instead of 16.
    assert both.size_bytes > alone.size_bytes + 2048 * 2 * 2 * 2 * 32
    tight = plan_load(make_spec("a", pooling=Pooling.LAST), model, alone.size_bytes, frozenset())
    assert tight.context_length < alone.context_length


def test_a_context_beyond_the_learned_positions_is_refused(encoder: ModelFiles) -> None:
    """llama.cpp would look up rows that are not there, and end the process."""
    with pytest.raises(ModelFileError, match=r"512 positions.*models\.a\.context_length is 513"):
        plan_load(make_spec("a", context_length=513), encoder, PLENTY, frozenset())
    assert plan_load(make_spec("a", context_length=512), encoder, PLENTY, frozenset()).embedding


def test_there_are_rows_for_prompts_and_they_are_counted(
    model: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("a", context_length=300, max_concurrency=3)
    plan = plan_load(spec, model, PLENTY, frozenset())
    assert plan.max_outputs == MIN_OUTPUTS
    many = plan_load(make_spec("a", max_concurrency=MIN_OUTPUTS + 1), model, PLENTY, frozenset())
    assert many.max_outputs == MIN_OUTPUTS + 2  # the runtime has a sequence of its own
    monkeypatch.setattr("llmserve.pool.load_plan.MIN_OUTPUTS", 3)
    few = plan_load(spec, model, PLENTY, frozenset())
    vocab_size = 320
    assert plan.size_bytes - few.size_bytes >= (MIN_OUTPUTS - 4) * 4 * vocab_size
