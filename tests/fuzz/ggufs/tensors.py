"""Lies about a model's weights: names, shapes, types and places, and noise for numbers."""

import struct
from dataclasses import replace
from random import Random

from llmserve.gguf.tensor_types import TENSOR_TYPES
from tests.fuzz.ggufs.dissected import Model, Tensor

_F32, _F16 = 0, 1


def _with(model: Model, old: Tensor, new: Tensor) -> Model:
    return replace(model, tensors=tuple(new if each is old else each for each in model.tensors))


def another_shape(random: Random, model: Model) -> Model:
    """With as many data as that needs, so that only the model's own sizes can tell."""
    old = random.choice(model.tensors)
    block_len = TENSOR_TYPES[old.type].block_len
    row, *rest = old.shape
    shape = random.choice(
        (
            (row + block_len, *rest),
            (max(block_len, row // 2 // block_len * block_len), *rest),
            (block_len, *rest),
            (row, *(max(1, dim // 2) for dim in rest)),
            (row, *(dim + 1 for dim in rest)),
            (row, 1),
            (row,),
            (*old.shape, 1),
            (*old.shape, 2),
            tuple(reversed(old.shape)) if old.shape[-1] % block_len == 0 else (row,),
        )
    )
    return _with(model, old, old.fitting(shape[:4]))


def another_tensor_type(random: Random, model: Model) -> Model:
    old = random.choice(model.tensors)
    fitting = [
        number for number, kind in TENSOR_TYPES.items() if old.shape[0] % kind.block_len == 0
    ]
    return _with(model, old, old.fitting(type_id=random.choice(fitting)))


def an_impossible_tensor(random: Random, model: Model) -> Model:
    """What the format itself forbids."""
    old = random.choice(model.tensors)
    row, *rest = old.shape
    new = random.choice(
        (
            replace(old, shape=(0, *rest)),
            replace(old, shape=(2**63, *rest)),
            replace(old, shape=(2**32, 2**32)),
            replace(old, shape=(2**31, 2**31, 2, 2)),
            replace(old, shape=(row + 1, *rest)),
            replace(old, shape=(row, 2**40)),
            replace(old, claimed_dims=random.choice((0, 5, 2**31, 2**32 - 1))),
            replace(old, type=random.choice((4, 31, 99, 2**31, 2**32 - 1))),
            replace(old, name=b""),
            replace(old, name=b"n" * 70),
            replace(old, name=b"\xff\0"),
            replace(old, name=random.choice(model.tensors).name),
        )
    )
    return _with(model, old, new)


def an_offset_that_lies(random: Random, model: Model) -> Model:
    old = random.choice(model.tensors)
    offset = random.choice((1, 32, 4096, 2**31, 2**40, 2**63 - 32, 2**63, 2**64 - 32))
    return _with(model, old, replace(old, offset=offset))


def without_a_tensor(random: Random, model: Model) -> Model:
    gone = random.sample(model.tensors, random.choice((1, 1, 2, len(model.tensors) - 1)))
    return replace(model, tensors=tuple(each for each in model.tensors if each not in gone))


def a_tensor_more(random: Random, model: Model) -> Model:
    names = (
        b"output.weight",
        b"rope_freqs.weight",
        b"blk.0.attn_q.bias",
        b"blk.99.ffn_up.weight",
        b"x",
        b"blk.-1.attn_k.weight",
        b"rope_factors_long.weight",
        b"blk.0.ffn_gate_inp.weight",
        b"output.bias",
        b"cls.weight",
    )
    new = replace(random.choice(model.tensors), name=random.choice(names))
    kept = tuple(each for each in model.tensors if each.name != new.name)
    return replace(model, tensors=(*kept, new))


def a_tensor_by_another_name(random: Random, model: Model) -> Model:
    first, second = random.sample(model.tensors, 2)
    swapped = {first.name: second.name, second.name: first.name}
    return replace(
        model,
        tensors=tuple(replace(t, name=swapped.get(t.name, t.name)) for t in model.tensors),
    )


def noise_for_weights(random: Random, model: Model) -> Model:
    old = random.choice(model.tensors)
    size = len(old.data)
    noise = random.choice(
        (
            random.randbytes(size),
            b"\xff" * size,
            bytes(size),
            (struct.pack("<f", float("nan")) * size)[:size],
            (struct.pack("<e", float("inf")) * size)[:size],
            b"\x7f" * size,
        )
    )
    return _with(model, old, replace(old, data=noise))


def counts_that_lie(random: Random, model: Model) -> Model:
    count = random.choice((0, 1, 2**16, 2**31, 2**40, 2**63, 2**64 - 1))
    if random.random() < 0.5:
        count = random.choice((count, len(model.tensors) + 1, len(model.tensors) - 1))
        return replace(model, num_tensors=count)
    return replace(
        model, num_pairs=random.choice((count, len(model.pairs) + 1, len(model.pairs) - 1))
    )


def another_format(random: Random, model: Model) -> Model:
    return random.choice(
        (
            replace(model, magic=b"GGML"),
            replace(model, version=1),
            replace(model, version=4),
            replace(model, version=3 << 24),
            replace(model, version=2),
            replace(model, alignment=64),
            replace(model, alignment=8),
        )
    )


CHANGES = (
    another_shape,
    another_tensor_type,
    an_impossible_tensor,
    an_offset_that_lies,
    without_a_tensor,
    a_tensor_more,
    a_tensor_by_another_name,
    noise_for_weights,
    counts_that_lie,
    another_format,
)
