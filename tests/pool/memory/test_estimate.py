from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llmserve.errors import ModelFileError
from llmserve.gguf.header import Header, ModelFiles
from llmserve.gguf.reader import Omitted, TensorInfo, Value
from llmserve.gguf.tensor_types import TYPES_BY_NAME
from llmserve.pool.memory.estimate import (
    ContextOptions,
    MemoryEstimate,
    estimate,
    largest_context,
    repacked_types,
)
from llmserve.pool.memory.hparams import read_hparams

F32, F16 = 4, 2

LLAMA: dict[str, Value] = {
    "block_count": 4,
    "context_length": 8192,
    "embedding_length": 512,
    "feed_forward_length": 1536,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}
MAMBA: dict[str, Value] = {
    "block_count": 4,
    "embedding_length": 512,
    "attention.head_count": 0,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 1024,
    "ssm.state_size": 16,
}

OPTIONS = ContextOptions(max_sequences=16, max_outputs=16)


def options_with(**changes: Any) -> ContextOptions:
    return replace(OPTIONS, **changes)


def _header(
    architecture: str, settings: dict[str, Any], tensors: tuple[TensorInfo, ...] = ()
) -> Header:
    metadata: dict[str, Value] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{name}": value for name, value in settings.items()}
    metadata["tokenizer.ggml.tokens"] = Omitted("string", 32_000)
    return Header("model.gguf", 3, metadata, tensors, data_offset=0, file_size=0)


def _model(architecture: str = "llama", /, **settings: Any) -> ModelFiles:
    base = MAMBA if architecture in ("mamba", "mamba2") else LLAMA
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return ModelFiles((_header(architecture, base | named),))


def _kv_bytes(model: ModelFiles, num_cells: int = 4096, **options: Any) -> int:
    return estimate(model, num_cells=num_cells, options=options_with(**options)).kv_bytes


# --- caches -------------------------------------------------------------------------------------

ROW = 2 * 64 * F16  # K or V of a cell of one layer: 2 heads of 512 / 8 elements


def test_plain_attention_keeps_k_and_v_of_every_layer() -> None:
    assert _kv_bytes(_model()) == 4 * 4096 * 2 * ROW
    assert _kv_bytes(_model("a-future-one")) == 4 * 4096 * 2 * ROW


def test_cells_are_padded_as_llama_cpp_does() -> None:
    assert _kv_bytes(_model(), 1) == _kv_bytes(_model(), 256) == 4 * 256 * 2 * ROW
    assert _kv_bytes(_model(), 257) == _kv_bytes(_model(), 512)


def test_head_settings() -> None:
    without_kv = {key: value for key, value in LLAMA.items() if not key.endswith("_kv")}
    model = ModelFiles((_header("llama", without_kv),))
    assert _kv_bytes(model) == 4 * 4096 * 2 * 4 * ROW  # as many KV heads as heads
    own_lengths = _model(attention__key_length=128, attention__value_length=32)
    assert _kv_bytes(own_lengths) == 4 * 4096 * 2 * (128 + 32) * F16
    per_layer = _model(attention__head_count_kv=(2, 0, 4, 2))
    assert _kv_bytes(per_layer) == 4096 * 2 * (2 + 0 + 4 + 2) * 64 * F16


def test_cache_types() -> None:
    row = 128 // 32 * 34
    assert _kv_bytes(_model(), type_k="q8_0", type_v="q8_0") == 4 * 4096 * 2 * row
    with pytest.raises(ModelFileError, match="blocks of 32, found rows of 16 elements; use f16"):
        _kv_bytes(_model(attention__key_length=8), type_k="q8_0")


def test_a_sliding_window_has_a_small_cache_of_its_own() -> None:
    gemma = _model("gemma3", block_count=6, attention__sliding_window=128)
    cells = 128 * 16 + 512  # a window for each sequence, and a batch
    assert _kv_bytes(gemma, 32_768) == (5 * cells + 32_768) * 2 * ROW
    assert _kv_bytes(gemma, 1024) == 6 * 1024 * 2 * ROW  # never more than all
    assert _kv_bytes(gemma, 32_768, max_sequences=1) == (5 * 768 + 32_768) * 2 * ROW
    assert _kv_bytes(_model("gemma3", block_count=6), 32_768) == 6 * 32_768 * 2 * ROW


@pytest.mark.parametrize(
    ("architecture", "settings", "windowed"),
    [
        ("gemma2", {}, [0, 2, 4, 6]),
        ("gemma3", {"attention.sliding_window": 99}, [0, 1, 2, 3, 4, 6, 7]),
        ("gemma3", {"attention.sliding_window": 99, "attention.sliding_window_pattern": 2}, None),
        ("gpt-oss", {"attention.sliding_window": 128}, [0, 2, 4, 6]),
        ("cohere2", {"attention.sliding_window": 99}, [0, 1, 2, 4, 5, 6]),
        ("smallthinker", {"attention.sliding_window": 99}, [1, 2, 3, 5, 6, 7]),
        ("llama4", {}, [0, 1, 2, 4, 5, 6]),
        ("llama4", {"attention.sliding_window": 0}, []),
        ("exaone4", {}, []),  # only the 64-layer one has windows
        ("phi3", {"attention.sliding_window": 99}, []),  # llama.cpp ignores it
        ("qwen2", {"attention.sliding_window": 99}, []),
        (
            "gemma4",
            {
                "attention.sliding_window": 99,
                "attention.sliding_window_pattern": (True, False) * 4,
            },
            [0, 2, 4, 6],
        ),
    ],
)
def test_which_layers_have_a_window(
    architecture: str, settings: dict[str, Any], windowed: list[int] | None
) -> None:
    hparams = read_hparams(_header(architecture, LLAMA | {"block_count": 8} | settings))
    expected = [0, 2, 4, 6] if windowed is None else windowed
    assert [i for i, layer in enumerate(hparams.layers) if layer.windowed] == expected


def test_heads_of_another_length_in_windowed_layers() -> None:
    gemma4 = _model(
        "gemma4",
        block_count=2,
        attention__sliding_window=64,
        attention__sliding_window_pattern=(True, False),
        attention__key_length_swa=32,
        attention__value_length_swa=32,
    )
    assert _kv_bytes(gemma4, 256) == 256 * 2 * 2 * (32 + 64) * F16


def test_layers_that_share_the_cache_of_another() -> None:
    pattern = (True, True, True, False)
    shared = _model("gemma4", attention__shared_kv_layers=2, attention__sliding_window=64)
    shared.header.metadata["gemma4.attention.sliding_window_pattern"] = pattern
    assert _kv_bytes(shared, 256) == 2 * 256 * 2 * ROW
    assert _kv_bytes(_model("gemma3n", block_count=30), 256) == 20 * 256 * 2 * ROW


def test_latent_attention_keeps_one_compressed_row() -> None:
    deepseek = _model(
        "deepseek2",
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
    )
    assert _kv_bytes(deepseek) == 4 * 4096 * 576 * F16


def test_prediction_layers_keep_nothing() -> None:
    assert _kv_bytes(_model("glm4moe", nextn_predict_layers=1)) == 3 * 4096 * 2 * ROW


@pytest.mark.parametrize("architecture", ["bert", "gemma-embedding", "llada"])
def test_models_without_a_cache(architecture: str) -> None:
    assert _kv_bytes(_model(architecture)) == 0


# --- recurrent state ----------------------------------------------------------------------------


def test_mamba_keeps_a_state_per_sequence_and_no_cells() -> None:
    state = (3 * 1024 + 16 * 1024) * F32
    assert _kv_bytes(_model("mamba"), 256) == _kv_bytes(_model("mamba"), 65_536) == 4 * 16 * state
    assert _kv_bytes(_model("mamba"), max_sequences=1, max_outputs=1) == 4 * state
    grouped = _model("mamba2", ssm__group_count=2)
    assert _kv_bytes(grouped) == 4 * 16 * (3 * (1024 + 2 * 2 * 16) + 16 * 1024) * F32


def test_rwkv_keeps_shifted_tokens_and_a_matrix_per_head() -> None:
    assert _kv_bytes(_model("rwkv7", wkv__head_size=64)) == 4 * 16 * 512 * (2 + 64) * F32
    shifts = _model("arwkv7", wkv__head_size=64, token_shift_count=1)
    assert _kv_bytes(shifts) == 4 * 16 * 512 * (1 + 64) * F32


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 1024, "ssm__state_size": 16}
STATE = 16 * (3 * 1024 + 16 * 1024) * F32  # of 16 sequences


def test_hybrids() -> None:
    per_layer = {"attention__head_count_kv": (0, 2, 0, 2)}
    cells = 4096 * 2 * ROW
    assert _kv_bytes(_model("jamba", **per_layer, **SSM)) == 2 * cells + 2 * STATE
    assert _kv_bytes(_model("granitehybrid", **per_layer, **SSM)) == 2 * cells + 2 * STATE
    lfm2 = _model("lfm2", **per_layer, shortconv__l_cache=3)
    assert _kv_bytes(lfm2) == 2 * cells + 2 * 16 * 2 * 512 * F32
    assert _kv_bytes(_model("falcon-h1", **SSM)) == 4 * cells + 4 * STATE
    nemotron = _model("nemotron_h", **per_layer, feed_forward_length=(0, 0, 9, 9), **SSM)
    assert _kv_bytes(nemotron) == cells + STATE
    kimi = _model("kimi-linear", **per_layer, kda__head_dim=64, ssm__conv_kernel=4)
    assert _kv_bytes(kimi) == 2 * cells + 2 * 16 * 8 * 64 * (3 * 3 + 64) * F32


def test_every_fourth_layer_of_qwen3next_has_attention() -> None:
    qwen = _model("qwen3next", block_count=8, **SSM)
    assert _kv_bytes(qwen) == 2 * 4096 * 2 * ROW + 6 * STATE
    other = _model("qwen3next", block_count=8, full_attention_interval=2, **SSM)
    assert _kv_bytes(other) == 4 * 4096 * 2 * ROW + 4 * STATE
    marked = _model("qwen3next", attention__recurrent_layers=(True, False, False, False), **SSM)
    assert _kv_bytes(marked) == 3 * 4096 * 2 * ROW + STATE


# --- weights ------------------------------------------------------------------------------------


def _tensors(*rows: tuple[str, tuple[int, ...], str]) -> tuple[TensorInfo, ...]:
    tensors, offset = [], 0
    for name, shape, type_name in rows:
        num_elements = 1
        for dim in shape:
            num_elements *= dim
        size = TYPES_BY_NAME[type_name].num_bytes(num_elements)
        tensors.append(TensorInfo(name, shape, TYPES_BY_NAME[type_name], offset, size))
        offset += size
    return tuple(tensors)


MATRIX = 256 * 256 // 32 * 18
VECTOR = 256 * F32


def _estimate_weights(*rows: tuple[str, tuple[int, ...], str], **options: Any) -> MemoryEstimate:
    model = ModelFiles((_header("llama", LLAMA, _tensors(*rows)),))
    defaults: dict[str, Any] = {"repacked_types": frozenset({"q4_0"})}
    return estimate(model, num_cells=256, options=options_with(**(defaults | options)))


ROWS = (
    ("token_embd.weight", (256, 256), "q4_0"),
    ("blk.0.attn_q.weight", (256, 256), "q4_0"),
    ("output.weight", (256, 256), "q4_0"),
    ("output_norm.weight", (256,), "f32"),
)


def test_repacked_weights_leave_reclaimable_pages_behind() -> None:
    result = _estimate_weights(*ROWS)
    assert result.weights_bytes == 3 * MATRIX + VECTOR
    assert result.reclaimable_bytes == 2 * MATRIX  # between what is used in place
    assert result.resident_bytes - result.total_bytes == 2 * MATRIX
    assert _estimate_weights(*ROWS, mmap=False).reclaimable_bytes == 0
    assert _estimate_weights(*ROWS, repacked_types=frozenset()).reclaimable_bytes == 0


def test_pages_outside_of_what_is_used_in_place_are_unmapped() -> None:
    result = _estimate_weights(ROWS[1], ROWS[0], ROWS[3], ROWS[2])
    assert result.reclaimable_bytes == 0


def test_a_tied_output_is_copied_when_its_type_is_repacked() -> None:
    tied = (*ROWS[:2], ROWS[3])
    assert _estimate_weights(*tied).weights_bytes == 3 * MATRIX + VECTOR
    assert _estimate_weights(*tied, repacked_types=frozenset()).weights_bytes == 2 * MATRIX + VECTOR


def test_only_matrices_of_whole_row_groups_are_repacked() -> None:
    odd = ("blk.0.attn_k.weight", (256, 12), "q4_0")
    stack = ("blk.0.attn_k_b.weight", (256, 8, 4), "q4_0")
    experts = ("blk.0.ffn_up_exps.weight", (256, 8, 4), "q4_0")
    for row, is_copied in ((odd, False), (stack, False), (experts, True)):
        result = _estimate_weights(ROWS[0], row, ROWS[3], ("output.weight", (256, 8), "f16"))
        assert bool(result.reclaimable_bytes) == is_copied


def test_all_parts_of_a_split_model_count() -> None:
    header = _header("llama", LLAMA, _tensors(*ROWS))
    one = estimate(ModelFiles((header,)), num_cells=256, options=OPTIONS)
    two = estimate(ModelFiles((header, header)), num_cells=256, options=OPTIONS)
    assert two.weights_bytes == 2 * one.weights_bytes
    assert two.kv_bytes == one.kv_bytes


@pytest.mark.parametrize(
    ("system_info", "expected"),
    [
        ("CPU : SSE3 = 1 | AVX2 = 1 | REPACK = 1 | ", {"q4_0", "q4_K", "iq4_nl", "mxfp4"}),
        ("CPU : AVX2 = 1 | AVX512 = 1 | REPACK = 1", {"q4_0", "q4_K", "iq4_nl", "mxfp4", "q2_K"}),
        ("CPU : AVX2 = 1 | OPENMP = 1 | ", set()),
        ("CPU : AVX2 = 0 | REPACK = 1 | ", set()),
        ("", set()),
    ],
)
def test_what_a_build_repacks(system_info: str, expected: set[str]) -> None:
    assert repacked_types(system_info) == expected


def test_what_an_arm_build_repacks() -> None:
    names = repacked_types("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | REPACK = 1 | ")
    assert {"q4_0", "q8_0", "q6_K"} <= names


# --- buffers ------------------------------------------------------------------------------------


def _compute_bytes(model: ModelFiles, num_cells: int = 4096, **options: Any) -> int:
    return estimate(model, num_cells=num_cells, options=options_with(**options)).compute_bytes


def test_the_attention_mask_grows_with_cells() -> None:
    growth = _compute_bytes(_model(), 8192) - _compute_bytes(_model(), 4096)
    assert growth == 4096 * 512 * F16
    assert _compute_bytes(_model("mamba"), 8192) == _compute_bytes(_model("mamba"), 4096)


def test_outputs_take_a_row_of_logits_each() -> None:
    many = _compute_bytes(_model(), max_sequences=64, max_outputs=256)
    few = _compute_bytes(_model(), max_sequences=16, max_outputs=16)
    assert many > few + (256 - 16) * 32_000 * F32 / 2


def test_experts_in_use_count_like_one_wide_network() -> None:
    experts = {"expert_count": 8, "expert_used_count": 4}
    wide = _compute_bytes(_model(feed_forward_length=4 * 1536))
    assert _compute_bytes(_model(feed_forward_length=1536, **experts)) == wide
    assert _compute_bytes(_model(expert_feed_forward_length=1536, **experts)) == wide


def test_a_small_context_has_a_small_batch() -> None:
    assert _compute_bytes(_model(), 256) < _compute_bytes(_model(), 512)


# --- the largest context ------------------------------------------------------------------------


@given(
    budget_bytes=st.integers(0, 4 << 30),
    max_cells=st.integers(256, 1 << 20),
    architecture=st.sampled_from(["llama", "gemma2", "mamba", "qwen3next"]),
)
def test_the_largest_context_is_the_largest_that_fits(
    budget_bytes: int, max_cells: int, architecture: str
) -> None:
    model = _model(architecture)
    cells = largest_context(model, budget_bytes, max_cells=max_cells, options=OPTIONS)
    needed = estimate(model, num_cells=cells or 256, options=OPTIONS).total_bytes
    assert (needed <= budget_bytes) == (cells is not None)
    if cells is None:
        return
    assert cells % 256 == 0
    assert cells <= max_cells
    if cells + 256 <= max_cells:
        assert estimate(model, num_cells=cells + 256, options=OPTIONS).total_bytes > budget_bytes


@given(few=st.integers(1, 1 << 17), more=st.integers(0, 1 << 17))
def test_more_cells_never_take_less(few: int, more: int) -> None:
    model = _model("gemma2")
    less = estimate(model, num_cells=few, options=OPTIONS).total_bytes
    assert less <= estimate(model, num_cells=few + more, options=OPTIONS).total_bytes


# --- implausible headers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"block_count": 0}, r"llama\.block_count: expected 1 to 512, found 0"),
        ({"block_count": 513}, r"llama\.block_count: expected 1 to 512, found 513"),
        ({"block_count": "four"}, r"llama\.block_count: expected a non-negative integer"),
        ({"embedding_length": 2**32 - 1}, r"llama\.embedding_length: expected 1 to"),
        ({"attention.head_count": 2**31}, r"llama\.attention\.head_count: expected 0 to 4096"),
        ({"attention.head_count_kv": (1, 2)}, r"head_count_kv: expected one for each of 4 layers"),
        ({"attention.head_count_kv": (1, 2, 3, 2**31)}, "head_count_kv: expected integers from 0"),
        ({"attention.head_count_kv": (1.5,) * 4}, "head_count_kv: expected integers from 0"),
        ({"attention.key_length": 2**40}, r"llama\.attention\.key_length: expected 0 to"),
        ({"vocab_size": 2**40}, r"llama\.vocab_size: expected 0 to"),
        ({"nextn_predict_layers": 5}, r"llama\.nextn_predict_layers: expected 0 to 4, found 5"),
        ({"expert_count": 1025}, r"llama\.expert_count: expected 0 to 1024"),
        ({"expert_used_count": 2}, r"expert_used_count: expected at most the 0 experts, found 2"),
    ],
)
def test_implausible_headers_are_refused_by_key(settings: dict[str, Any], reason: str) -> None:
    model = ModelFiles((_header("llama", LLAMA | settings),))
    if "vocab_size" in settings:
        del model.header.metadata["tokenizer.ggml.tokens"]  # which would take precedence
    with pytest.raises(ModelFileError, match=reason):
        estimate(model, num_cells=256, options=OPTIONS)


def test_a_missing_setting_is_named() -> None:
    model = ModelFiles((_header("llama", {}),))
    with pytest.raises(ModelFileError, match=r"llama\.block_count: expected a number, found no"):
        estimate(model, num_cells=256, options=OPTIONS)


_NUMBERS = st.one_of(st.integers(-1, 600), st.integers(-(2**63), 2**64 - 1), st.booleans())
_VALUES = st.one_of(
    _NUMBERS,
    st.floats(),
    st.sampled_from(["", "four"]),
    st.lists(_NUMBERS, max_size=5).map(tuple),
    st.builds(Omitted, st.just("int32"), st.integers(0, 2**40)),
)
_NAMES = st.sampled_from(
    [
        *LLAMA,
        *MAMBA,
        *("attention.key_length", "attention.key_length_mla", "attention.shared_kv_layers"),
        *("attention.sliding_window", "attention.sliding_window_pattern"),
        *("attention.recurrent_layers", "full_attention_interval", "nextn_predict_layers"),
        *("expert_count", "expert_used_count", "vocab_size"),
        *("kda.head_dim", "shortconv.l_cache", "wkv.head_size"),
    ]
)
_ARCHITECTURES = st.sampled_from(
    [
        *("llama", "llama4", "gemma2", "gemma3n", "gemma4", "deepseek2", "bert"),
        *("mamba", "rwkv7", "jamba", "lfm2", "falcon-h1", "nemotron_h", "qwen3next"),
        *("minimax-01", "kimi-linear"),
    ]
)


@given(architecture=_ARCHITECTURES, lies=st.dictionaries(_NAMES, _VALUES, max_size=4))
def test_any_header_is_estimated_or_refused(architecture: str, lies: dict[str, Any]) -> None:
    model = ModelFiles((_header(architecture, LLAMA | MAMBA | lies),))
    try:
        result = estimate(model, num_cells=4096, options=OPTIONS)
    except ModelFileError:
        return
    assert result.kv_bytes >= 0
    assert result.total_bytes > 0
