"""A small GGUF model taken apart, so that each part can be made to lie, and put together again."""

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf as reference

from llmserve.gguf.tensor_types import TENSOR_TYPES
from tests.gguf.raw_gguf import ARRAY, STRING, array, gguf, pair, string, u32, u64

NUMBERS = {  # value type -> code of struct; bools are not among them
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
FLOATS = (6, 12)


@dataclass(frozen=True)
class Pair:
    """`value` is as in the file, after the type; `twice` writes it twice."""

    key: bytes
    type: int
    value: bytes

    @property
    def element_type(self) -> int:
        return int.from_bytes(self.value[:4], "little")

    def elements(self) -> list[Any]:
        """Of an array: numbers, or strings as bytes."""
        count = int.from_bytes(self.value[4:12], "little")
        rest = self.value[12:]
        if self.element_type != STRING:
            return list(struct.unpack(f"<{count}{NUMBERS[self.element_type]}", rest))
        found = []
        for _ in range(count):
            length = int.from_bytes(rest[:8], "little")
            found.append(rest[8 : 8 + length])
            rest = rest[8 + length :]
        return found

    def with_elements(self, elements: list[Any]) -> "Pair":
        return strings_or_numbers(self.key, self.element_type, elements)


def strings_or_numbers(key: bytes, element_type: int, elements: list[Any]) -> Pair:
    if element_type == STRING:
        raw = b"".join(map(string, elements))
    else:
        raw = struct.pack(f"<{len(elements)}{NUMBERS[element_type]}", *elements)
    return Pair(key, ARRAY, array(element_type, len(elements), raw))


@dataclass(frozen=True)
class Tensor:
    """`offset` None: where it belongs. `claimed_dims` None: as many as `shape` has."""

    name: bytes
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None
    claimed_dims: int | None = None

    def fitting(self, shape: tuple[int, ...] | None = None, type_id: int | None = None) -> "Tensor":
        """With another shape or type, and as much data as that needs: a lie that is consistent."""
        shape, type_id = shape or self.shape, self.type if type_id is None else type_id
        kind, count = TENSOR_TYPES[type_id], 1
        for dim in shape:
            count *= dim
        size = max(1, count // kind.block_len) * kind.block_bytes
        data = (self.data * (size // len(self.data) + 1))[:size]
        return replace(self, shape=shape, type=type_id, data=data)


@dataclass(frozen=True)
class Model:
    pairs: tuple[Pair, ...]
    tensors: tuple[Tensor, ...]
    num_pairs: int | None = None  # what the file claims; None: the truth
    num_tensors: int | None = None
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32

    @property
    def architecture(self) -> bytes:
        return self.value("general.architecture")[8:]

    def value(self, key: str) -> bytes:
        return next(pair.value for pair in self.pairs if pair.key == key.encode())

    def has(self, key: str) -> bool:
        return any(pair.key == key.encode() for pair in self.pairs)

    def put(self, *new: Pair) -> "Model":
        """With these pairs, in place of those with the same keys."""
        keys = [pair.key for pair in new]
        kept = tuple(pair for pair in self.pairs if pair.key not in keys)
        return replace(self, pairs=kept + new)

    def encode(self) -> bytes:
        infos, data = [], b""
        for each in self.tensors:
            offset = len(data) if each.offset is None else each.offset
            dims = b"".join(map(u64, each.shape))
            count = len(each.shape) if each.claimed_dims is None else each.claimed_dims
            infos.append(string(each.name) + u32(count) + dims + u32(each.type) + u64(offset))
            data += each.data + bytes(-len(each.data) % self.alignment)
        pairs = [pair(each.key, each.type, each.value) for each in self.pairs]
        head = gguf(
            pairs, magic=self.magic, version=u32(self.version),
            num_tensors=len(infos) if self.num_tensors is None else self.num_tensors,
            num_pairs=len(pairs) if self.num_pairs is None else self.num_pairs,
        ) + b"".join(infos)  # fmt: skip
        return head + bytes(-len(head) % self.alignment) + data


def take_apart(path: Path) -> Model:
    reader: Any = reference.GGUFReader(path)
    pairs = []
    for field in reader.fields.values():
        if field.name.startswith("GGUF."):
            continue
        raw = b"".join(part.tobytes() for part in field.parts)
        rest = raw[8 + len(field.name.encode()) :]
        pairs.append(Pair(field.name.encode(), int.from_bytes(rest[:4], "little"), rest[4:]))
    tensors = [
        Tensor(
            each.name.encode(),
            tuple(int(dim) for dim in each.shape),
            int(each.tensor_type),
            each.data.tobytes(),
        )
        for each in reader.tensors
    ]
    return Model(tuple(pairs), tuple(tensors))
