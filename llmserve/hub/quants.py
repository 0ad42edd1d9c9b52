"""Which of a repository's files are models, how they belong together, and which one to take.

Pure: works on file names and sizes, the same for a listing of the hub and for a directory on disk.
Repositories have no common layout. Seen in the wild, all read here:

    Model-Q4_K_M.gguf   model.q4_k_m.gguf   Model.i1-IQ4_XS.gguf   Model-UD-Q4_K_XL.gguf
    Q4_K_M/Model-Q4_K_M-00001-of-00003.gguf      BF16/Model-00001-of-00002.gguf
    mmproj-F16.gguf   imatrix.gguf   mtp-Model-Q8_0.gguf       (no models: parts of one)
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from msgspec import Struct

from llmserve.config.hub_ref import HubRef
from llmserve.config.units import human
from llmserve.errors import ModelFileError

DEFAULT_QUANT = "Q4_K_M"  # the best-known balance of quality and size
MIN_BITS = 4  # below it, small models lose too much to be a default

# A quantization stands between separators, so that the Q3 of "Qwen3" is none.
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:[IT]?Q\d(?:_[A-Z0-9]+)*|BF16|F16|FP16|F32|FP32|(?:MX|NV)FP4(?:_MOE)?))"
    r"(?=$|[-.])",
    re.IGNORECASE,
)
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.IGNORECASE)
_NOT_A_MODEL = re.compile(r"(?:^|[-._])(?:mmproj|imatrix|mtp)(?:$|[-._])", re.IGNORECASE)


class RepoFile(Struct, frozen=True):
    path: str  # inside the repository, with forward slashes
    size_bytes: int
    sha256: str | None = None  # None: not known (a file on disk, or one kept outside LFS)


class Weights(Struct, frozen=True):
    """One loadable model: a single file, or all parts of a split one in their order."""

    quant: str | None  # upper case, e.g. "Q4_K_M", "UD-Q4_K_XL"; None: the name does not say
    files: tuple[RepoFile, ...]
    num_parts: int  # as the names say; `files` may be fewer

    @property
    def is_complete(self) -> bool:
        return len(self.files) == self.num_parts

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def first(self) -> RepoFile:
        """The file to load: llama.cpp finds the other parts by itself."""
        return self.files[0]

    @property
    def bits(self) -> int | None:
        """Nominal bits of one weight."""
        return _bits(self.quant) if self.quant else None


def group(files: Iterable[RepoFile]) -> tuple[Weights, ...]:
    """The models among `files`, smallest first. Files that are no model are left out."""
    sets: defaultdict[tuple[str, int], list[tuple[int, RepoFile]]] = defaultdict(list)
    for file in files:
        if _is_model(file.path):
            stem, number, total = split_part(file.path)
            sets[stem, total].append((number, file))
    weights = [
        Weights(
            quant=quant_of(stem),
            files=tuple(file for _, file in sorted(parts, key=lambda part: part[0])),
            num_parts=total,
        )
        for (stem, total), parts in sets.items()
    ]
    return tuple(sorted(weights, key=lambda one: (one.size_bytes, one.first.path)))


def choose(ref: HubRef, models: Sequence[Weights]) -> Weights:
    """The one that `ref` means. Raises `ModelFileError` that lists what there is.

    With neither file nor quantization: `DEFAULT_QUANT`, else the smallest of at least
    `MIN_BITS`, else the only one.
    """
    if not models:
        raise ModelFileError(f"{ref.repo} has no .gguf model; look for a repository that has")
    if ref.file:
        found = [one for one in models if ref.file in (file.path for file in one.files)]
    elif ref.quant:
        found = _with_quant(ref.quant, models)
    else:
        found = _by_default(models)
    if not found:
        raise ModelFileError(f"{ref.repo} has no {_wanted(ref)}; it has {describe(models)}")
    if len(found) > 1:
        names = ", ".join(one.first.path for one in found)
        raise ModelFileError(
            f"{ref.repo} has more than one {_wanted(ref)}; name one as file: {names}"
        )
    if not found[0].is_complete:
        has = f"only {len(found[0].files)} of its {found[0].num_parts} parts"
        raise ModelFileError(f"{ref.repo}: {found[0].first.path} is incomplete: there are {has}")
    return found[0]


def describe(models: Sequence[Weights]) -> str:
    """The models in one line, for an error message."""
    return ", ".join(f"{one.quant or one.first.path} ({human(one.size_bytes)})" for one in models)


def quant_of(path: str) -> str | None:
    """The quantization that a path without extension and part number names, upper case.

    The file's own name first, then its directory. The last one counts: `Q8-model-Q4_0` is Q4_0.
    """
    for part in reversed(path.split("/")[-2:]):
        if found := _QUANT.findall(part):
            return str(found[-1]).upper()
    return None


def split_part(path: str) -> tuple[str, int, int]:
    """`x-00002-of-00003.gguf` -> ("x", 2, 3); a file that is not split is part 1 of 1."""
    stem = path[: -len(".gguf")]
    part = _PART.fullmatch(stem)
    return (part[1], int(part[2]), int(part[3])) if part else (stem, 1, 1)


def _is_model(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return name.endswith(".gguf") and not _NOT_A_MODEL.search(name.removesuffix(".gguf"))


def _bits(quant: str) -> int:
    kind = quant.removeprefix("UD-")
    if kind.startswith(("MXFP4", "NVFP4")):
        return 4
    digits = re.search(r"\d+", kind)
    assert digits, "every pattern of _QUANT has a number"
    return int(digits[0])


def _with_quant(quant: str, models: Sequence[Weights]) -> list[Weights]:
    """Those of exactly this quantization, else those that only add the prefix UD-."""
    wanted = quant.upper()
    exact = [one for one in models if one.quant == wanted]
    return exact or [one for one in models if one.quant == f"UD-{wanted}"]


def _by_default(models: Sequence[Weights]) -> list[Weights]:
    if len(models) == 1:
        return list(models)
    enough = [one for one in models if one.bits and one.bits >= MIN_BITS and one.is_complete]
    return _with_quant(DEFAULT_QUANT, models) or enough[:1]


def _wanted(ref: HubRef) -> str:
    if ref.file:
        return f"file {ref.file!r}"
    return f"quantization {ref.quant or DEFAULT_QUANT}"
