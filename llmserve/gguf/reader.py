"""Parse a GGUF header's bytes: the only code that trusts nothing.

The rules are those of the format (gguf.md of the ggml project) and of llama.cpp's own reader
(ggml/src/gguf.cpp); where they differ, the stricter one counts. Invariants:

- `Cursor` does all reading, so every length is checked against the file before it is used.
- Every refusal is a `ModelFileError` that says which file, what, where (byte offset), what was
  expected and what was found. OSError is left to the caller, which knows the path.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from msgspec import Struct

from llmserve.gguf.cursor import MAX_STRINGS, Cursor
from llmserve.gguf.tensor_types import REMOVED_TENSOR_TYPES, TENSOR_TYPES, TensorType

# Caps far above every real model (thousands of tensors, 262k tokens, 515k merges).
MAX_KEYS: Final = 4_096
MAX_KEY_BYTES: Final = 65_535  # the format's own limit
MAX_TENSORS: Final = 65_536
MAX_TENSOR_NAME_BYTES: Final = 63  # GGML_MAX_NAME - 1
MAX_DIMS: Final = 4  # GGML_MAX_DIMS
MAX_ARRAY_LEN: Final = 1 << 30  # GGUF_MAX_ARRAY_ELEMENTS
MAX_KEPT_ELEMENTS: Final = 1_024  # numbers of one array; covers every per-layer setting

_DEFAULT_ALIGNMENT: Final = 32
_INT64_MAX: Final = (1 << 63) - 1
_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {  # value type -> (name, struct format)
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}


class Omitted(Struct, frozen=True):
    """A value that was checked but not kept: an array, or a string too large to keep.

    `type` is the element type of an array ("string", "float32", ...), and "byte" for a string;
    `length` counts elements or bytes.
    """

    type: str
    length: int


Number = int | float | bool
Value = Number | str | tuple[Number, ...] | Omitted


class TensorInfo(Struct, frozen=True):
    """One tensor. `shape` has ggml's order (row length first); `offset` is from `data_offset`."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    size_bytes: int

    @property
    def num_elements(self) -> int:
        return self.size_bytes // self.type.block_bytes * self.type.block_len


class Contents(Struct, frozen=True):
    """What a GGUF file holds before its tensor data, which starts at byte `data_offset`."""

    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_offset: int


def read_contents(file: BinaryIO, path: str, size: int) -> Contents:
    """Parse and check the header of an open GGUF file of `size` bytes.

    `path` is for messages only. Raises ModelFileError, and OSError from reading.
    """
    cursor = Cursor(file, path, size)
    version, num_tensors, num_keys = _read_preamble(cursor)
    metadata = _read_metadata(cursor, num_keys)
    alignment = _alignment(cursor, metadata)
    tensors = tuple(_read_tensors(cursor, num_tensors))
    data_offset = _padded(cursor.offset, alignment) if tensors else cursor.offset
    _check_layout(cursor, tensors, data_offset, alignment)
    return Contents(version, metadata, tensors, data_offset)


def _read_preamble(cursor: Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4, "magic")
    if magic != b"GGUF":
        raise cursor.error("magic", "b'GGUF' (is this a GGUF file?)", magic, at=0)
    raw = cursor.take(4, "version")
    version = int.from_bytes(raw, "little")
    if version not in (2, 3):
        found = str(version)
        if int.from_bytes(raw, "big") in (1, 2, 3):
            found = f"{int.from_bytes(raw, 'big')} in big-endian order, which is not supported"
        elif version == 1:
            found = "1, which llama.cpp no longer reads; convert the model again"
        raise cursor.error("version", "2 or 3", found, at=4)
    # name length + name + dims + one dim + type + offset; key length + key + type + value
    num_tensors = cursor.count("number of tensors", MAX_TENSORS, 8 + 1 + 4 + 8 + 4 + 8)
    num_keys = cursor.count("number of keys", MAX_KEYS, 8 + 1 + 4 + 1)
    return version, num_tensors, num_keys


def _read_metadata(cursor: Cursor, num_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for i in range(1, num_keys + 1):
        at = cursor.offset
        key = cursor.name(f"key {i} of {num_keys}", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.error(f"key {i} of {num_keys}", "a new key", f"{key!r} again", at=at)
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: Cursor, key: str) -> Value:
    type_id = _read_type(cursor, key)
    if type_id == _ARRAY:
        return _read_array(cursor, key)
    if type_id == _STRING:
        return _read_string(cursor, key)
    return _read_numbers(cursor, key, type_id, 1)[0]


def _read_type(cursor: Cursor, key: str) -> int:
    at = cursor.offset
    type_id = cursor.u32(f"type of {key}")
    if type_id not in _SCALARS and type_id not in (_STRING, _ARRAY):
        raise cursor.error(f"type of {key}", "0 to 12", type_id, at=at)
    return type_id


def _read_string(cursor: Cursor, key: str) -> str | Omitted:
    length = cursor.count(f"length of {key}", cursor.size, 1)
    if not cursor.keep(length):
        cursor.skip(length, key)
        return Omitted("byte", length)
    # A name may hold stray bytes and the model still work, so they are shown, not refused.
    return cursor.take(length, key).decode(errors="replace")


def _read_array(cursor: Cursor, key: str) -> tuple[Number, ...] | Omitted:
    at = cursor.offset
    type_id = _read_type(cursor, f"the elements of {key}")
    if type_id == _ARRAY:
        raise cursor.error(f"type of the elements of {key}", "no nested array", "array", at=at)
    if type_id == _STRING:
        length = cursor.count(f"length of {key}", MAX_STRINGS, 8)
        cursor.skip_strings(length, key)
        return Omitted("string", length)
    name, code = _SCALARS[type_id]
    width = struct.calcsize(code)
    length = cursor.count(f"length of {key}", MAX_ARRAY_LEN, width)
    if length > MAX_KEPT_ELEMENTS or not cursor.keep(length * width):
        cursor.skip(length * width, key)
        return Omitted(name, length)
    return _read_numbers(cursor, key, type_id, length)


def _read_numbers(cursor: Cursor, key: str, type_id: int, count: int) -> tuple[Number, ...]:
    name, code = _SCALARS[type_id]
    at = cursor.offset
    raw = cursor.take(count * struct.calcsize(code), key)
    if name == "bool" and raw.strip(b"\0\1"):
        raise cursor.error(key, "bools of 0 or 1", raw.strip(b"\0\1")[0], at=at)
    return struct.unpack(f"<{count}{code}", raw)


def _alignment(cursor: Cursor, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value & (value - 1):
        raise cursor.error("general.alignment", "a power of two", value)
    return value


def _read_tensors(cursor: Cursor, num_tensors: int) -> Iterator[TensorInfo]:
    names: set[str] = set()
    for i in range(1, num_tensors + 1):
        at = cursor.offset
        name = cursor.name(f"name of tensor {i} of {num_tensors}", MAX_TENSOR_NAME_BYTES)
        if name in names:
            what = f"name of tensor {i} of {num_tensors}"
            raise cursor.error(what, "a new name", f"{name!r} again", at=at)
        names.add(name)
        shape = _read_shape(cursor, name)
        tensor_type = _read_tensor_type(cursor, name, shape)
        offset = cursor.u64(f"offset of tensor {name}")
        size_bytes = tensor_type.num_bytes(_product(shape))
        yield TensorInfo(name, shape, tensor_type, offset, size_bytes)


def _read_shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    what = f"shape of tensor {name}"
    at = cursor.offset
    num_dims = cursor.u32(what)
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.error(what, f"1 to {MAX_DIMS} dimensions", num_dims, at=at)
    shape = struct.unpack(f"<{num_dims}Q", cursor.take(8 * num_dims, what))
    if 0 in shape:
        raise cursor.error(what, "no empty dimension", list(shape), at=at)
    if _product(shape) > _INT64_MAX:
        raise cursor.error(what, f"at most {_INT64_MAX} elements", list(shape), at=at)
    return shape


def _read_tensor_type(cursor: Cursor, name: str, shape: tuple[int, ...]) -> TensorType:
    what = f"type of tensor {name}"
    at = cursor.offset
    type_id = cursor.u32(what)
    tensor_type = TENSOR_TYPES.get(type_id)
    if tensor_type is None:
        removed = REMOVED_TENSOR_TYPES.get(type_id)
        found = f"{type_id} ({f'removed: {removed}' if removed else 'unknown'})"
        raise cursor.error(what, "a ggml type", found, at=at)
    if shape[0] % tensor_type.block_len:
        found = f"rows of {shape[0]} elements"
        raise cursor.error(
            what, f"rows in {tensor_type.name} blocks of {tensor_type.block_len}", found, at=at
        )
    return tensor_type


def _check_layout(
    cursor: Cursor, tensors: tuple[TensorInfo, ...], data_offset: int, alignment: int
) -> None:
    """Tensors must follow each other in order, padded to the alignment, up to the file's end.

    That is llama.cpp's rule; it rules out tensors that overlap or leave the file.
    """
    next_offset = 0
    for tensor in tensors:
        what, at = f"data of tensor {tensor.name}", data_offset + tensor.offset
        if tensor.offset % alignment:
            raise cursor.error(what, f"an offset aligned to {alignment}", tensor.offset, at=at)
        if tensor.offset != next_offset:
            fault = "overlaps the tensor before" if tensor.offset < next_offset else "leaves a gap"
            raise cursor.error(what, f"offset {next_offset}", f"{tensor.offset} ({fault})", at=at)
        if at + tensor.size_bytes > cursor.size:
            found = f"a file of {cursor.size} bytes (truncated?)"
            raise cursor.error(what, f"to end at byte {at + tensor.size_bytes}", found, at=at)
        next_offset += _padded(tensor.size_bytes, alignment)


def _padded(num_bytes: int, alignment: int) -> int:
    return (num_bytes + alignment - 1) & -alignment


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for dim in shape:
        product *= dim
    return product
