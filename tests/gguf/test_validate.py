"""What llama.cpp would end the process over is refused, by the name of the key or the tensor."""

import math
import struct
from pathlib import Path

import pytest

from llmserve.errors import ModelFileError
from llmserve.gguf.header import read_model
from tests.gguf.raw_gguf import (
    ARCHITECTURE,
    ARRAY,
    F32,
    FLOAT32,
    INT32,
    Q8_0,
    STRING,
    UINT32,
    array,
    gguf,
    pair,
    string,
    tensor,
    u32,
)
from tests.tiny_encoders import write_bert, write_nomic_bert, write_t5_encoder
from tests.tiny_models import write_gemma3, write_lfm2, write_llama, write_mamba, write_qwen3

F16, I32, F64, Q8_1 = 1, 26, 28, 9
HEADS = [
    pair("llama.embedding_length", UINT32, u32(64)),
    pair("llama.attention.head_count", UINT32, u32(4)),
]
EXPERTS = pair("llama.expert_count", UINT32, u32(8))


def number(name: str, value: int) -> bytes:
    return pair(f"llama.{name}", UINT32, u32(value))


def real(name: str, value: float) -> bytes:
    return pair(f"llama.{name}", FLOAT32, struct.pack("<f", value))


def with_pairs(*pairs: bytes) -> bytes:
    return gguf([ARCHITECTURE, *pairs], [tensor("a", [8])], bytes(32))


def with_tensor(name: str, type_id: int, shape: tuple[int, ...] = (32, 2)) -> bytes:
    return gguf([ARCHITECTURE], [tensor(name, shape, type_id)], bytes(4096))


PER_LAYER = pair("llama.expert_used_count", ARRAY, array(INT32, 2, u32(0) * 2))
REFUSED = {
    "epsilon": (with_pairs(real("attention.layer_norm_rms_epsilon", -1)), "epsilon: .* least 0"),
    "not a number": (with_pairs(real("rope.freq_base", math.nan)), "freq_base: .* finite .* nan"),
    "infinite": (with_pairs(real("logit_scale", -math.inf)), "logit_scale: .* finite .* -inf"),
    "no expert": (with_pairs(EXPERTS), "llama.expert_used_count: expected at least 1, found 0"),
    "no expert in any layer": (with_pairs(EXPERTS, PER_LAYER), r"used_count: .* found \(0, 0\)"),
    "groups without experts": (with_pairs(number("expert_group_count", 1)), "found 1"),
    "groups of no size": (
        with_pairs(EXPERTS, number("expert_used_count", 2), number("expert_group_count", 3)),
        "expert_group_count: expected groups of the same size for 8 experts, found 3",
    ),
    "as many groups": (
        with_pairs(EXPERTS, number("expert_used_count", 2), number("expert_group_count", 8)),
        "expert_group_count: .* found 8",
    ),
    "no group used": (
        with_pairs(EXPERTS, number("expert_used_count", 2), number("expert_group_count", 4)),
        "llama.expert_group_used_count: expected 1 to 3, found 0",
    ),
    "scaling": (
        with_pairs(pair("llama.rope.scaling.type", STRING, string("none?"))),
        "rope.scaling.type: expected one of none, linear, yarn, longrope, found 'none[?]'",
    ),
    "odd rotation": (with_pairs(*HEADS, number("rope.dimension_count", 15)), "even .* found 15"),
    "wide rotation": (
        with_pairs(*HEADS, number("rope.dimension_count", 18)),
        "llama.rope.dimension_count: expected an even number up to the 16 of a head, found 18",
    ),
    "wide rotation of a window": (
        with_pairs(*HEADS, number("rope.dimension_count_swa", 64)),
        "dimension_count_swa: .* found 64",
    ),
    "norm in half precision": (
        with_tensor("blk.0.attn_norm.weight", F16, (64,)),
        "tensor blk.0.attn_norm.weight: expected type f32, found f16",
    ),
    "quantized bias": (with_tensor("blk.0.attn_q.bias", Q8_0, (64,)), "type f32, found q8_0"),
    "convolution": (with_tensor("blk.0.ssm_conv1d.weight", F16, (4, 8)), "type f32, found f16"),
    "doubles": (with_tensor("blk.0.ffn_up.weight", F64), "a type of weights, found f64"),
    "of sums": (with_tensor("blk.0.ffn_up.weight", Q8_1), "a type of weights, found q8_1"),
    "integers": (with_tensor("token_embd.weight", I32), "a type of weights, found i32"),
    "misaligned": (
        gguf(
            [ARCHITECTURE, pair("general.alignment", UINT32, u32(8))],
            [tensor("a", [2], F32), tensor("b", [8], F32, 8)],
            bytes(64),
        ),
        "tensor .: expected at a multiple of 32 bytes, found at",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_end_the_process(case: str, tmp_path: Path) -> None:
    content, reason = REFUSED[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=reason):
        read_model(path)


SERVED = {
    "table of numbers": with_tensor("blk.0.ffn_gate_tid2eid", I32),
    "no rotation": with_pairs(*HEADS, number("rope.dimension_count", 0)),
    "part of a head": with_pairs(*HEADS, number("rope.dimension_count", 8)),
    "heads as long as said": with_pairs(
        *HEADS, number("attention.key_length", 32), number("rope.dimension_count", 32)
    ),
    "experts in groups": with_pairs(
        EXPERTS,
        number("expert_used_count", 2),
        number("expert_group_count", 4),
        number("expert_group_used_count", 2),
    ),
}


@pytest.mark.parametrize("case", SERVED)
def test_what_would_not(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(SERVED[case])
    read_model(path)


WRITERS = [write_llama, write_qwen3, write_gemma3, write_mamba, write_lfm2]
ENCODERS = [write_bert, write_nomic_bert, write_t5_encoder]


@pytest.mark.parametrize("write", [*WRITERS, *ENCODERS])
def test_models_that_llama_cpp_loads(write: object, tmp_path: Path) -> None:
    assert callable(write)
    read_model(write(tmp_path / "x.gguf"))
