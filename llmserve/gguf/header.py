"""What a GGUF file says about itself, read and validated without loading it.

llama.cpp may end the process on a malformed file, so every file passes here first. The bytes are
parsed in `gguf_reader`; this module gives them meaning, and puts split models together; what is
asked of a model that is to be served is in `servable`. The only exception that leaves it is
`ModelFileError`.
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

from msgspec import Struct

from llmserve.errors import ModelFileError, sanitized
from llmserve.gguf.reader import Omitted, TensorInfo, Value, read_contents
from llmserve.gguf.tensor_types import FILE_TYPES, GUESSED_FILE_TYPE
from llmserve.gguf.validate import check_servable

MAX_PARTS: Final = 1_024


class Header(Struct, frozen=True):
    """All that a GGUF file says about itself, checked; of its arrays only what is small.

    `data_offset` is where tensor data starts, `file_size` the whole file, both in bytes.
    """

    path: str
    version: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_size: int

    @property
    def architecture(self) -> str | None:
        """llama.cpp's name of the architecture; None in the later parts of a split model."""
        return self.text("general.architecture")

    @property
    def name(self) -> str | None:
        return self.text("general.name")

    @property
    def quantization(self) -> str | None:
        """The file type as file names spell it, e.g. "Q4_K_M"; else the type of most bytes."""
        file_type = self.integer("general.file_type")
        if file_type is not None and (label := FILE_TYPES.get(file_type & ~GUESSED_FILE_TYPE)):
            return label
        totals: dict[str, int] = {}
        for tensor in self.tensors:
            totals[tensor.type.name] = totals.get(tensor.type.name, 0) + tensor.size_bytes
        return max(totals, key=lambda name: totals[name]).upper() if totals else None

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was trained to see at once."""
        return self.setting("context_length")

    @property
    def num_layers(self) -> int | None:
        return self.setting("block_count")

    @property
    def embedding_length(self) -> int | None:
        return self.setting("embedding_length")

    @property
    def vocab_size(self) -> int | None:
        """The length of the token list, which is what llama.cpp goes by; else the setting."""
        return self.array_len("tokenizer.ggml.tokens") or self.setting("vocab_size")

    @property
    def has_chat_template(self) -> bool:
        return isinstance(self.metadata.get("tokenizer.chat_template"), str)

    @property
    def split_count(self) -> int:
        """How many files make up the model; 1 for a file that is not split."""
        return self.integer("split.count") or 1

    @property
    def split_no(self) -> int:
        """Which part of a split model this is, from 0."""
        return self.integer("split.no") or 0

    @property
    def split_num_tensors(self) -> int | None:
        """How many tensors all parts hold together."""
        return self.integer("split.tensors.count")

    def setting(self, name: str) -> int | None:
        """The integer `<architecture>.<name>`; None when it is absent."""
        return self.integer(f"{self.architecture}.{name}")

    def integer(self, key: str) -> int | None:
        """The non-negative integer at `key`; ModelFileError when it is anything else."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(f"{key}: expected a non-negative integer, found {value!r}")
        return value

    def text(self, key: str) -> str | None:
        """The string at `key`; ModelFileError when it is anything else."""
        value = self.metadata.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.error(f"{key}: expected a string, found {value!r}")

    def array_len(self, key: str) -> int | None:
        """The length of the array at `key`, kept or not; None when it is absent."""
        value = self.metadata.get(key)
        if isinstance(value, tuple):
            return len(value)
        return value.length if isinstance(value, Omitted) else None

    def error(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {sanitized(reason)}")


class ModelFiles(Struct, frozen=True):
    """A complete model: one file, or every part of a split one in order."""

    parts: tuple[Header, ...]

    @property
    def header(self) -> Header:
        """The first part, which carries the metadata and is the one to load."""
        return self.parts[0]

    @property
    def path(self) -> Path:
        return Path(self.parts[0].path)

    @property
    def num_tensors(self) -> int:
        return sum(len(part.tensors) for part in self.parts)

    @property
    def size_bytes(self) -> int:
        return sum(part.file_size for part in self.parts)


def read_model(path: Path) -> ModelFiles:
    """Read and validate a model that is to be served: every part of it, and its vocabulary.

    `path` may name any part of a split model. Raises ModelFileError.
    """
    header = read_header(path)
    split = header.split_count > 1
    model = ModelFiles(_read_parts(path, header.split_count) if split else (header,))
    _check_parts(model)
    check_servable(model)
    return model


def read_header(path: Path) -> Header:
    """Read and validate one GGUF file (version 2 or 3, little-endian).

    Takes milliseconds, or some tens for a large vocabulary. Raises ModelFileError.
    """
    try:
        # Ask before opening: opening a pipe or a device can block or act.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelFileError(f"{path}: expected a regular file, found something else")
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            contents = read_contents(file, str(path), size)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL byte
        raise ModelFileError(f"{str(path)!r}: not a possible path: {error}") from error
    return Header(
        path=str(path),
        version=contents.version,
        metadata=contents.metadata,
        tensors=contents.tensors,
        data_offset=contents.data_offset,
        file_size=size,
    )


_PART_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def split_paths(path: Path) -> list[Path]:
    """Every part of the model by llama.cpp's naming (`name-00001-of-00003.gguf`), in order.

    Goes by the name alone and opens nothing; a name without a part number is a list of one.
    Raises ModelFileError for a part number or a count that cannot be.
    """
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    no, count = int(match["no"]), int(match["count"])
    if not 1 <= no <= count <= MAX_PARTS:
        raise ModelFileError(
            f"{path}: file name: expected part 1 to {MAX_PARTS} of as many or more, "
            f"found {no} of {count}"
        )
    return [path.with_name(f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]


def _read_parts(path: Path, count: int) -> tuple[Header, ...]:
    paths = split_paths(path)
    if len(paths) != count:
        raise ModelFileError(
            f"{path}: split.count is {count}, but the file name is not that of a part of {count}; "
            f"llama.cpp finds the parts by names such as name-00001-of-{count:05}.gguf"
        )
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelFileError(f"{path}: {len(missing)} of {count} parts are missing: {shown}")
    return tuple(read_header(part) for part in paths)


def _check_parts(model: ModelFiles) -> None:
    names: set[str] = set()
    for no, part in enumerate(model.parts):
        if (part.split_count, part.split_no) != (len(model.parts), no):
            expected = f"split.no {no} and split.count {len(model.parts)}"
            raise part.error(f"expected {expected}, found {part.split_no} and {part.split_count}")
        for tensor in part.tensors:
            if tensor.name in names:
                raise part.error(f"tensor {tensor.name} is in an earlier part too")
            names.add(tensor.name)
    claimed = model.header.split_num_tensors
    if len(model.parts) > 1 and claimed not in (None, model.num_tensors):
        raise model.header.error(
            f"split.tensors.count: expected {claimed} tensors, found {model.num_tensors}"
        )
