"""Lies about what a model is: its settings, by key, type and value."""

import math
import struct
from dataclasses import replace
from random import Random

from tests.fuzz.ggufs.dissected import FLOATS, NUMBERS, Model, Pair, strings_or_numbers
from tests.gguf.raw_gguf import BOOL, FLOAT32, INT32, STRING, UINT32, UINT64
from tests.gguf.raw_gguf import string as encoded

_COUNTS = (0, 1, 2, 3, 5, 7, 8, 31, 33, 63, 64, 65, 127, 255, 256, 257, 1000, 65_535, 65_536)
_HUGE = (2**20, 2**31 - 1, 2**31, 2**32 - 1)
_REALS = (0.0, -0.0, -1.0, 1e-38, 1e38, 0.5, 3.0, math.nan, math.inf, -math.inf)
_TEXTS = (*b"x none linear yarn longrope %s%n".split(), b"", b"\xff\xfe", b"\0", b"a" * 70_000)
_ARCHITECTURES = (
    b"llama qwen2 qwen3 qwen3moe gemma2 gemma3 mamba mamba2 lfm2 bert nomic-bert t5 t5encoder"
    b" rwkv6 rwkv7 deepseek2 phi3 falcon gptneox mpt bloom starcoder2 granite clip cohere2"
    b" wavtokenizer-dec command-r jamba plamo2 falcon-h1 gpt-oss llada diffusion x"
).split()


def any_number(random: Random, type_id: int) -> bytes:
    if type_id in FLOATS:
        return struct.pack(f"<{NUMBERS[type_id]}", random.choice(_REALS))
    width = struct.calcsize(NUMBERS[type_id])
    value: int = random.choice((*_COUNTS, *_HUGE, random.getrandbits(8 * width)))
    value %= 256**width
    return value.to_bytes(width, "little")


def another_number(random: Random, model: Model) -> Model:
    """A setting that is something else."""
    old = random.choice([each for each in model.pairs if each.type in NUMBERS])
    return model.put(replace(old, value=any_number(random, old.type)))


def nearly_the_number(random: Random, model: Model) -> Model:
    old = random.choice(
        [each for each in model.pairs if each.type in NUMBERS and each.type not in FLOATS]
    )
    value = int.from_bytes(old.value, "little")
    new = random.choice((value + 1, max(0, value - 1), value * 2, value // 2, value * 3 + 1))
    return model.put(
        replace(old, value=(new % 256 ** len(old.value)).to_bytes(len(old.value), "little"))
    )


def another_type(random: Random, model: Model) -> Model:
    """The same setting as a float, a bool, a text, a list."""
    old = random.choice([each for each in model.pairs if each.type in NUMBERS])
    new = random.choice(
        (
            Pair(old.key, FLOAT32, struct.pack("<f", 2.5)),
            Pair(old.key, BOOL, b"\1"),
            Pair(old.key, STRING, encoded("2")),
            Pair(old.key, INT32, struct.pack("<i", -2)),
            Pair(old.key, UINT64, struct.pack("<Q", 2**63 + 5)),
            strings_or_numbers(old.key, INT32, [2, 2]),
            strings_or_numbers(old.key, INT32, []),
            strings_or_numbers(old.key, STRING, [b"2"]),
        )
    )
    return model.put(new)


def type_of_other_bytes(random: Random, model: Model) -> Model:
    old = random.choice(model.pairs)
    return model.put(replace(old, type=random.randrange(16)))


def without_a_key(random: Random, model: Model) -> Model:
    gone = random.choice(model.pairs)
    return replace(model, pairs=tuple(each for each in model.pairs if each is not gone))


def a_key_twice(random: Random, model: Model) -> Model:
    return replace(model, pairs=(*model.pairs, random.choice(model.pairs)))


def a_key_misspelt(random: Random, model: Model) -> Model:
    old = random.choice(model.pairs)
    new = replace(old, key=random.choice((b"", old.key[:-1], old.key + b"\0", b"\xff" + old.key)))
    return replace(model, pairs=tuple(new if each is old else each for each in model.pairs))


def another_text(random: Random, model: Model) -> Model:
    old = random.choice([each for each in model.pairs if each.type == STRING])
    return model.put(replace(old, value=encoded(random.choice(_TEXTS))))


def another_architecture(random: Random, model: Model) -> Model:
    """Every setting under the name of another architecture."""
    old, new = model.architecture, random.choice(_ARCHITECTURES)
    pairs = tuple(
        replace(each, key=each.key.replace(old + b".", new + b".", 1)) for each in model.pairs
    )
    named = Pair(b"general.architecture", STRING, encoded(new))
    return replace(model, pairs=pairs).put(named)


_MORE_NUMBERS = (
    b"expert_count expert_used_count expert_group_count expert_group_used_count expert_shared_count"
    b" expert_gating_func leading_dense_block_count vocab_size attention.sliding_window"
    b" attention.key_length_mla attention.kv_lora_rank attention.head_count_kv pooling_type"
    b" attention.value_length rope.dimension_count nextn_predict_layers"
    b" rope.scaling.original_context_length ssm.conv_kernel ssm.inner_size ssm.state_size"
    b" ssm.time_step_rank ssm.group_count wkv.head_size decoder_start_token_id"
    b" attention.group_norm_groups"
).split()
_MORE_REALS = (
    b"rope.freq_base rope.scaling.factor rope.scaling.attn_factor attention.scale logit_scale"
    b" attn_logit_softcapping final_logit_softcapping attention.clamp_kqv residual_scale"
    b" attention.max_alibi_bias embedding_scale rope.scaling.yarn_log_multiplier"
).split()


def one_more_setting(random: Random, model: Model) -> Model:
    prefix = model.architecture + b"."
    if random.random() < 0.6:
        key = prefix + random.choice(_MORE_NUMBERS)
        return model.put(Pair(key, UINT32, any_number(random, UINT32)))
    if random.random() < 0.7:
        key = prefix + random.choice(_MORE_REALS)
        return model.put(Pair(key, FLOAT32, any_number(random, FLOAT32)))
    key = prefix + b"rope.scaling.type"
    return model.put(Pair(key, STRING, encoded(random.choice(_TEXTS))))


def per_layer_lists(random: Random, model: Model) -> Model:
    """A number that may be a list of one for each layer, of the wrong length or with wrong ones."""
    name = random.choice(
        (
            "attention.head_count",
            "attention.head_count_kv",
            "feed_forward_length",
            "rope.dimension_sections",
        )
    )
    key = model.architecture + b"." + name.encode()
    numbers = [
        random.choice((0, 1, 2, 3, 4, 64, 2**31 - 1, -1)) for _ in range(random.randrange(8))
    ]
    return model.put(strings_or_numbers(key, INT32, numbers))


def another_general_setting(random: Random, model: Model) -> Model:
    key, type_id, value = random.choice(
        (
            (b"general.alignment", UINT32, any_number(random, UINT32)),
            (b"general.file_type", UINT32, any_number(random, UINT32)),
            (b"split.count", UINT32, b"\2\0\0\0"),
            (b"split.no", UINT32, b"\1\0\0\0"),
            (b"split.tensors.count", INT32, b"\3\0\0\0"),
            (b"split.count", 2, b"\2\0"),
            (b"general.type", STRING, encoded("adapter")),
            (b"adapter.type", STRING, encoded("lora")),
            (b"general.quantization_version", UINT32, any_number(random, UINT32)),
        )
    )
    return model.put(Pair(key, type_id, value))


CHANGES = (
    another_number,
    nearly_the_number,
    another_type,
    type_of_other_bytes,
    without_a_key,
    a_key_twice,
    a_key_misspelt,
    another_text,
    another_architecture,
    one_more_setting,
    per_layer_lists,
    another_general_setting,
)
