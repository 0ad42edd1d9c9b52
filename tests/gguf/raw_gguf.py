"""GGUF files byte by byte, so that tests can make any part of one lie."""

import struct
from collections.abc import Sequence

UINT8, INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 5, 4, 6, 7, 8, 9, 10
F32, Q8_0 = 0, 8


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes, *, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def pair(key: str | bytes, type_id: int, value: bytes) -> bytes:
    return string(key) + u32(type_id) + value


def array(type_id: int, length: int, elements: bytes) -> bytes:
    return u32(type_id) + u64(length) + elements


def tensor(
    name: str | bytes,
    shape: Sequence[int],
    type_id: int = F32,
    offset: int = 0,
    *,
    num_dims: int | None = None,
) -> bytes:
    dims = b"".join(u64(dim) for dim in shape)
    count = len(shape) if num_dims is None else num_dims
    return string(name) + u32(count) + dims + u32(type_id) + u64(offset)


ARCHITECTURE = pair("general.architecture", STRING, string("llama"))


def gguf(
    pairs: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: bytes = u32(3),
    num_tensors: int | None = None,
    num_pairs: int | None = None,
) -> bytes:
    """A whole file; the counts are the true ones unless given. Data starts 32-byte aligned."""
    counts = u64(len(tensors) if num_tensors is None else num_tensors)
    counts += u64(len(pairs) if num_pairs is None else num_pairs)
    head = magic + version + counts + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data if tensors else head + data
