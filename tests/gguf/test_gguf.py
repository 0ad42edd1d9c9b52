import os
import re
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import gguf as reference
import llama_cpp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmserve.errors import ModelFileError
from llmserve.gguf.header import Header, read_header, read_model, split_paths
from llmserve.gguf.reader import Omitted
from llmserve.gguf.tensor_types import REMOVED_TENSOR_TYPES, TENSOR_TYPES
from tests.gguf.raw_gguf import (
    ARCHITECTURE,
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array,
    gguf,
    pair,
    string,
    tensor,
    u32,
    u64,
)
from tests.smollm2 import MODEL
from tests.tiny_models import write_gemma3, write_llama, write_mamba

MAX_SECONDS = 2.0  # of this process: other load on the machine does not count
MAX_PEAK_BYTES = 48 << 20


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- valid files --------------------------------------------------------------------------------


def _assert_agrees(header: Header, path: Path) -> None:
    """Everything that the `gguf` package reads from the same file is in the header."""
    expected = reference.GGUFReader(path)
    assert header.data_offset == expected.data_offset
    assert [tensor.name for tensor in header.tensors] == [t.name for t in expected.tensors]
    for ours, theirs in zip(header.tensors, expected.tensors, strict=True):
        assert ours.shape == tuple(int(dim) for dim in theirs.shape)
        assert ours.type.id == theirs.tensor_type
        assert header.data_offset + ours.offset == theirs.data_offset
        assert (ours.size_bytes, ours.num_elements) == (theirs.n_bytes, theirs.n_elements)
    keys = [key for key in expected.fields if not key.startswith("GGUF.")]
    assert list(header.metadata) == keys
    for key in keys:
        field, value = expected.fields[key], header.metadata[key]
        if isinstance(value, Omitted):
            assert value.length == len(field.data)
        else:
            contents = field.contents()
            assert value == (tuple(contents) if isinstance(contents, list) else contents)


def test_real_model_agrees_with_the_gguf_package() -> None:
    header = read_header(MODEL)
    _assert_agrees(header, MODEL)
    assert header.architecture == "llama"
    assert header.quantization == "Q4_1"
    assert (header.context_length, header.num_layers) == (8192, 30)
    assert (header.embedding_length, header.vocab_size) == (576, 49152)
    assert header.has_chat_template
    assert (header.split_count, header.split_no, header.split_num_tensors) == (1, 0, None)
    assert read_model(MODEL).size_bytes == MODEL.stat().st_size


def test_reading_a_large_vocabulary_is_fast_and_small(tmp_path: Path) -> None:
    tokens = b"".join(string(f"token-{i}") for i in range(262_144))
    vocabulary = pair("tokenizer.ggml.tokens", ARRAY, array(STRING, 262_144, tokens))
    path = _write(tmp_path / "large.gguf", gguf([ARCHITECTURE, vocabulary]))
    header = _read_within_bounds(path, max_peak_bytes=2 << 20)
    assert header is not None
    assert header.vocab_size == 262_144


@pytest.mark.parametrize("write", [write_llama, write_gemma3, write_mamba])
def test_written_models_agree_with_the_gguf_package(write: object, tmp_path: Path) -> None:
    assert callable(write)
    path = write(tmp_path / "model.gguf")
    _assert_agrees(read_header(path), path)
    assert read_model(path).parts == (read_header(path),)


def test_values_of_every_type(tmp_path: Path) -> None:
    pairs = [
        ARCHITECTURE,
        pair("a.u8", UINT8, b"\xff"),
        pair("a.i32", INT32, b"\xff\xff\xff\xff"),
        pair("a.u64", UINT64, u64(2**64 - 1)),
        pair("a.true", BOOL, b"\1"),
        pair("a.text", STRING, string("größe")),
        pair("a.stray", STRING, string(b"caf\xe9")),
        pair("a.small", ARRAY, array(INT32, 2, u32(1) + u32(2))),
        pair("a.none", ARRAY, array(FLOAT32, 0, b"")),
        pair("a.large", ARRAY, array(FLOAT32, 2000, bytes(8000))),
        pair("a.strings", ARRAY, array(STRING, 2, string("x") + string(""))),
    ]
    header = read_header(_write(tmp_path / "values.gguf", gguf(pairs, version=u32(2))))
    assert header.version == 2
    assert header.metadata == {
        "general.architecture": "llama",
        "a.u8": 255,
        "a.i32": -1,
        "a.u64": 2**64 - 1,
        "a.true": True,
        "a.text": "größe",
        "a.stray": "caf\N{REPLACEMENT CHARACTER}",
        "a.small": (1, 2),
        "a.none": (),
        "a.large": Omitted("float32", 2000),
        "a.strings": Omitted("string", 2),
    }


def test_a_huge_string_is_skipped_not_kept(tmp_path: Path) -> None:
    pairs = [ARCHITECTURE, pair("a.huge", STRING, string(bytes(9 << 20)))]
    header = _read_within_bounds(
        _write(tmp_path / "huge.gguf", gguf(pairs)), max_peak_bytes=2 << 20
    )
    assert header is not None
    assert header.metadata["a.huge"] == Omitted("byte", 9 << 20)


def test_quantization_without_a_file_type_is_that_of_most_bytes(tmp_path: Path) -> None:
    tensors = [tensor("w", [32, 4], Q8_0), tensor("b", [4], offset=160)]
    header = read_header(_write(tmp_path / "x.gguf", gguf(tensors=tensors, data=bytes(176))))
    assert header.quantization == "Q8_0"


def test_a_setting_of_the_wrong_type_is_refused_by_name(tmp_path: Path) -> None:
    pairs = [ARCHITECTURE, pair("llama.block_count", STRING, string("many"))]
    header = read_header(_write(tmp_path / "x.gguf", gguf(pairs)))
    with pytest.raises(ModelFileError, match=r"llama\.block_count: expected a non-negative int"):
        _ = header.num_layers


def test_tensor_types_are_those_of_llama_cpp() -> None:
    library = llama_cpp.llama_cpp._lib
    library.ggml_blck_size.restype = llama_cpp.llama_cpp.ctypes.c_int64
    library.ggml_type_size.restype = llama_cpp.llama_cpp.ctypes.c_size_t
    library.ggml_type_name.restype = llama_cpp.llama_cpp.ctypes.c_char_p
    for number in range(len(TENSOR_TYPES) + len(REMOVED_TENSOR_TYPES)):
        sizes = library.ggml_blck_size(number), library.ggml_type_size(number)
        if number in REMOVED_TENSOR_TYPES:
            assert sizes == (0, 0)
        else:
            ours = TENSOR_TYPES[number]
            assert (ours.block_len, ours.block_bytes) == sizes
            assert ours.name == library.ggml_type_name(number).decode()


# --- refusals -----------------------------------------------------------------------------------

TWO = [tensor("a", [8]), tensor("b", [8], offset=32)]
REFUSED = {
    "empty": (b"", "magic at byte 0: expected 4 more bytes, found 0"),
    "not gguf": (gguf(magic=b"GGML"), "magic at byte 0: .* found b'GGML'"),
    "version 1": (gguf(version=u32(1)), "version at byte 4: expected 2 or 3, found 1, which"),
    "version 4": (gguf(version=u32(4)), "expected 2 or 3, found 4"),
    "big-endian": (gguf(version=b"\0\0\0\3"), "found 3 in big-endian order, which is not supp"),
    "no counts": (gguf()[:12], "number of tensors at byte 8: expected 8 more bytes, found 4"),
    "too many pairs": (gguf(num_pairs=5000), "number of keys at byte 16: expected at most 4096"),
    "absent pairs": (gguf(num_pairs=100), "number of keys .* what fits in the 45 bytes left"),
    "too many tensors": (gguf(num_tensors=2**63), "number of tensors .* at most 65536"),
    "absent tensors": (gguf(num_tensors=60), "number of tensors .* what fits in the"),
    "one pair short": (gguf(num_pairs=2), "length of key 2 of 2 at byte 69: expected 8 more"),
    "empty key": (
        gguf([pair("", UINT64, u64(0))]),
        "length of key 1 of 1 at byte 24: .* at least 1",
    ),
    "long key": (gguf([pair("k" * 65_536, UINT8, b"\0")]), "expected at most 65535, found 65536"),
    "key past the end": (gguf([string("k", length=60_000) + bytes(9)]), "fits in the 10 bytes"),
    "key not text": (gguf([pair(b"\xff\xfe", UINT8, b"\0")]), "key 1 of 1 .* expected UTF-8"),
    "key twice": (gguf([ARCHITECTURE] * 2), "key 2 of 2 .* found 'general.architecture' again"),
    "value type": (gguf([pair("k", 13, b"\0")]), "type of k at byte 33: expected 0 to 12, found"),
    "value missing": (gguf([pair("k", UINT64, b"\0" * 7)]), "k at byte 37: expected 8 more bytes"),
    "bool of 2": (gguf([pair("k", BOOL, b"\2")]), "k at byte 37: expected bools of 0 or 1"),
    "string length": (gguf([pair("k", STRING, string("x", length=2**63))]), "length of k .* found"),
    "array type": (gguf([pair("k", ARRAY, array(99, 1, b"\0"))]), "elements of k .* found 99"),
    "nested array": (gguf([pair("k", ARRAY, array(ARRAY, 1, b"\0" * 12))]), "no nested array"),
    "array length": (gguf([pair("k", ARRAY, array(INT32, 2**62, b"\0"))]), "at most 1073741824"),
    "array missing": (gguf([pair("k", ARRAY, array(INT32, 9, b"\0" * 35))]), "fits in the 35 byt"),
    "array of strings": (
        gguf([pair("k", ARRAY, array(STRING, 2**40, b"\0" * 99))]),
        "length of k .* at most 4194304",
    ),
    "string in array": (
        gguf([pair("k", ARRAY, array(STRING, 2, string("x") + string("y", length=2**64 - 1)))]),
        "k at byte 67: expected to end inside the file, found 18446744073709551614 bytes past",
    ),
    "last string cut": (
        gguf([pair("k", ARRAY, array(STRING, 2, string("x" * 20) + b"\0" * 7))]),
        "k at byte 77: expected 8 more bytes, found 7",
    ),
    "alignment of 0": (
        gguf([pair("general.alignment", UINT32, u32(0))]),
        "general.alignment .* expected a power of two, found 0",
    ),
    "alignment of 33": (gguf([pair("general.alignment", UINT32, u32(33))]), "power of two"),
    "alignment as text": (gguf([pair("general.alignment", STRING, string("x"))]), "power of two"),
    "unnamed tensor": (gguf(tensors=[tensor("", [8])]), "length of name of tensor 1 .* at least 1"),
    "long tensor name": (gguf(tensors=[tensor("n" * 64, [8])]), "at most 63, found 64"),
    "tensor twice": (gguf(tensors=[TWO[0]] * 2, data=bytes(99)), "tensor 2 of 2 .* 'a' again"),
    "no dimensions": (gguf(tensors=[tensor("a", [])], data=bytes(99)), "1 to 4 dimensions, found"),
    "5 dimensions": (gguf(tensors=[tensor("a", [1] * 5)]), "1 to 4 dimensions, found 5"),
    "2^32-1 dimensions": (gguf(tensors=[tensor("a", [1], num_dims=2**32 - 1)]), "1 to 4 dimens"),
    "empty dimension": (gguf(tensors=[tensor("a", [8, 0])]), "shape of tensor a .* no empty dim"),
    "overflow": (gguf(tensors=[tensor("a", [2**40, 2**40])]), "at most 9223372036854775807 elem"),
    "removed type": (gguf(tensors=[tensor("a", [32], 31)]), "found 31 .removed: Q4_0_4_4; use Q4"),
    "unknown type": (gguf(tensors=[tensor("a", [32], 43)]), "a ggml type, found 43 .unknown"),
    "part of a block": (gguf(tensors=[tensor("a", [33], Q8_0)]), "q8_0 blocks of 32, found rows"),
    "misaligned": (gguf(tensors=[tensor("a", [8], offset=8)], data=bytes(99)), "aligned to 32, f"),
    "overlap": (
        gguf(tensors=[tensor("a", [16]), tensor("b", [8], offset=32)], data=bytes(99)),
        "data of tensor b .* expected offset 64, found 32 .overlaps the tensor before",
    ),
    "gap": (
        gguf(tensors=[tensor("a", [8]), tensor("b", [8], offset=64)], data=bytes(99)),
        "data of tensor b .* expected offset 32, found 64 .leaves a gap",
    ),
    "truncated data": (
        gguf(tensors=TWO, data=bytes(63)),
        r"data of tensor b .* to end at byte 224, found a file of 223 bytes .truncated",
    ),
    "tensor beyond any file": (
        gguf(tensors=[tensor("a", [2**60])]),
        "data of tensor a .*truncated",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_where_and_why(case: str, tmp_path: Path) -> None:
    content, reason = REFUSED[case]
    path = _write(tmp_path / "bad.gguf", content)
    with pytest.raises(ModelFileError, match=reason) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_two_good_tensors_are_accepted(tmp_path: Path) -> None:
    header = read_header(_write(tmp_path / "x.gguf", gguf(tensors=TWO, data=bytes(64))))
    assert [(t.name, t.shape, t.offset, t.size_bytes) for t in header.tensors] == [
        ("a", (8,), 0, 32),
        ("b", (8,), 32, 32),
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("absent.gguf", "cannot be read: No such file"),
        (".", "expected a regular file"),
        ("pipe", "expected a regular file"),
        ("x.gguf/y", "cannot be read: Not a directory"),
        ("nul\0byte", "not a possible path"),
        ("n" * 5000, "cannot be read: File name too long"),
    ],
)
def test_unreadable_paths(path: str, reason: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would block for ever
    _write(tmp_path / "x.gguf", b"")
    with pytest.raises(ModelFileError, match=reason):
        read_header(tmp_path / path)


def test_hostile_names_cannot_forge_or_flood_a_log(tmp_path: Path) -> None:
    for key in ("k\nERROR all is lost", "k" * 60_000):
        content = gguf([pair(key, 99, b"")], data=bytes(64))
        with pytest.raises(ModelFileError) as caught:
            read_header(_write(tmp_path / "x.gguf", content))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(tmp_path)) + 500


# --- split models -------------------------------------------------------------------------------


def _part(no: int, count: int, name: str, num_tensors: int | None = None) -> bytes:
    pairs = [pair("split.no", UINT32, u32(no)), pair("split.count", UINT32, u32(count))]
    if num_tensors is not None:
        pairs.append(pair("split.tensors.count", INT32, u32(num_tensors)))
    if no == 0:
        pairs.append(ARCHITECTURE)
    return gguf(pairs, [tensor(name, [8])], bytes(32))


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    names = [f"big-0000{no}-of-00003.gguf" for no in (1, 2, 3)]
    return [_write(tmp_path / name, _part(no, 3, f"t{no}", 3)) for no, name in enumerate(names)]


def test_a_split_model_is_read_whole_from_any_part(split: list[Path]) -> None:
    for path in split:
        assert split_paths(path) == split
        model = read_model(path)
        assert [part.path for part in model.parts] == [str(part) for part in split]
        assert model.path == split[0]
        assert (model.num_tensors, model.header.split_num_tensors) == (3, 3)
        assert model.size_bytes == sum(part.stat().st_size for part in split)


def test_missing_parts_are_named(split: list[Path]) -> None:
    split[1].unlink()
    with pytest.raises(ModelFileError, match=r"1 of 3 parts are missing: big-00002-of-00003\.gguf"):
        read_model(split[0])


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (_part(2, 3, "t1"), "expected split.no 1 and split.count 3, found 2 and 3"),
        (_part(1, 2, "t1"), "expected split.no 1 and split.count 3, found 1 and 2"),
        (_part(1, 3, "t0"), "tensor t0 is in an earlier part too"),
        (b"GGUF", "version at byte 4"),
        (gguf([pair("split.no", UINT32, u32(1)), pair("split.count", UINT32, u32(3))]), "found 2"),
    ],
)
def test_parts_that_do_not_belong_together(split: list[Path], part: bytes, reason: str) -> None:
    split[1].write_bytes(part)
    with pytest.raises(ModelFileError, match=reason):
        read_model(split[0])


def test_a_part_under_another_name_is_refused(split: list[Path]) -> None:
    renamed = split[0].rename(split[0].with_name("big.gguf"))
    with pytest.raises(ModelFileError, match="the file name is not that of a part of 3"):
        read_model(renamed)


@pytest.mark.parametrize("name", ["x-00004-of-00003.gguf", "x-00000-of-00003.gguf"])
def test_impossible_part_numbers(name: str) -> None:
    with pytest.raises(ModelFileError, match="file name: "):
        split_paths(Path(name))


@pytest.mark.parametrize("name", ["x.gguf", "x-1-of-3.gguf", "x-00001-of-00003.bin"])
def test_a_name_without_a_part_number_is_one_file(name: str) -> None:
    assert split_paths(Path(name)) == [Path(name)]


# --- what may be served -------------------------------------------------------------------------


def _model(*pairs: bytes) -> bytes:
    return gguf(pairs, [tensor("a", [8])], bytes(32))


TOKENS = pair("tokenizer.ggml.tokens", ARRAY, array(STRING, 2, string("x") * 2))
NOT_SERVABLE = {
    "no architecture": (_model(), "general.architecture: expected a name"),
    "adapter": (_model(ARCHITECTURE, pair("general.type", STRING, string("adapter"))), "'adapter'"),
    "no tensors": (gguf(), "found no tensor"),
    "few scores": (
        _model(
            ARCHITECTURE, TOKENS, pair("tokenizer.ggml.scores", ARRAY, array(FLOAT32, 1, u32(0)))
        ),
        "tokenizer.ggml.scores: expected one for each of 2 tokens, found 1",
    ),
}


@pytest.mark.parametrize("case", NOT_SERVABLE)
def test_files_that_are_no_model(case: str, tmp_path: Path) -> None:
    content, reason = NOT_SERVABLE[case]
    path = _write(tmp_path / "x.gguf", content)
    read_header(path)
    with pytest.raises(ModelFileError, match=reason):
        read_model(path)


# --- mutations ----------------------------------------------------------------------------------


def _read_within_bounds(path: Path, *, max_peak_bytes: int = MAX_PEAK_BYTES) -> Header | None:
    """Read under the caps on time and memory; None when the file is refused, as it may be."""
    reason = ""
    tracemalloc.start()
    start = time.process_time()
    try:
        return read_header(path)
    except ModelFileError as error:
        reason = str(error)
        return None
    finally:
        elapsed, peak_bytes = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert elapsed < MAX_SECONDS
        assert peak_bytes < max_peak_bytes
        assert not reason or re.search(r"at byte \d+: expected ", reason)


_LYING_NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 400),
)
_REPLACEMENTS = st.one_of(
    st.binary(min_size=1, max_size=1),
    st.binary(min_size=4, max_size=16),
    _LYING_NUMBERS.map(u64),
    st.integers(0, 45).map(u32),
)
_EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), _REPLACEMENTS), max_size=4)
_FUZZ = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    return write_llama(path, layers=1, embedding=32, feed_forward=32, vocab=259).read_bytes()


@pytest.fixture(scope="module")
def real_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real model's header, followed by a hole as large as its weights."""
    path = tmp_path_factory.mktemp("real") / "head.gguf"
    with open(MODEL, "rb") as file:
        path.write_bytes(file.read(read_header(MODEL).data_offset))
    os.truncate(path, MODEL.stat().st_size)
    yield path
    path.unlink()


@_FUZZ
@given(edits=_EDITS, cut=st.floats(0, 1), insert=st.binary(max_size=9))
def test_a_mutated_small_file(
    small: bytes, tmp_path: Path, edits: list[tuple[float, bytes]], cut: float, insert: bytes
) -> None:
    content = bytearray(small)
    for where, replacement in edits:
        start = int(where * len(content))
        content[start : start + len(replacement)] = replacement
    at = int(cut * len(content))
    _read_within_bounds(_write(tmp_path / "cut.gguf", bytes(content[:at])))
    _read_within_bounds(_write(tmp_path / "edited.gguf", bytes(content)))
    content[at:at] = insert
    _read_within_bounds(_write(tmp_path / "shifted.gguf", bytes(content)))


# Where the small file's own structure is: counts, keys, types and lengths, not the weights.
@_FUZZ
@given(where=st.integers(0, 900), replacement=_REPLACEMENTS)
def test_a_lie_in_the_first_kilobyte(
    small: bytes, tmp_path: Path, where: int, replacement: bytes
) -> None:
    content = bytearray(small)
    content[where : where + len(replacement)] = replacement
    _read_within_bounds(_write(tmp_path / "lie.gguf", bytes(content)))


def _interesting_offset(where: float, header_bytes: int) -> int:
    """A third each for the keys before the vocabulary, for the tensors, and for anywhere."""
    if where < 1 / 3:
        return int(where * 3 * 2048)
    if where < 2 / 3:
        return header_bytes - 1 - int((where - 1 / 3) * 3 * 20_000)
    return int((where - 2 / 3) * 3 * header_bytes)


@settings(_FUZZ, max_examples=80)
@given(edits=_EDITS)
def test_a_mutated_real_header(real_head: Path, edits: list[tuple[float, bytes]]) -> None:
    header_bytes = 1_785_664  # up to the first tensor's data
    with open(real_head, "r+b") as file:
        undo = []
        for where, replacement in edits:
            start = _interesting_offset(where, header_bytes)
            file.seek(start)
            undo.append((start, file.read(len(replacement))))
            file.seek(start)
            file.write(replacement)
        file.flush()
        try:
            _read_within_bounds(real_head)
        finally:
            for start, original in reversed(undo):
                file.seek(start)
                file.write(original)


@settings(_FUZZ, max_examples=300)
@given(content=st.binary(max_size=400))
def test_anything_after_a_good_start(content: bytes, tmp_path: Path) -> None:
    _read_within_bounds(_write(tmp_path / "any.gguf", b"GGUF" + u32(3) + content))


def test_the_worst_vocabulary_is_walked_in_time(tmp_path: Path) -> None:
    """A hole reads as empty strings: the most steps for the fewest bytes on disk."""
    count = 1 << 22
    path = tmp_path / "hole.gguf"
    head = pair("k", ARRAY, array(STRING, count, b""))
    path.write_bytes(gguf([head], num_pairs=1))
    os.truncate(path, path.stat().st_size + 8 * count)
    start = time.process_time()
    header = read_header(path)  # not under tracemalloc, which slows such a loop twentyfold
    assert time.process_time() - start < MAX_SECONDS
    assert header.metadata == {"k": Omitted("string", count)}
