"""Where the hub's cache keeps a model's files. Only reads the disk; never the network.

The layout is huggingface_hub's documented one, shared with other tools:

    <cache>/models--owner--repo/refs/main                     the commit that main was
                               /snapshots/<commit>/x.gguf     -> ../../blobs/<hash>
                               /blobs/<hash>                  the bytes
                               /blobs/<hash>.incomplete       the bytes so far
"""

from collections.abc import Iterator
from pathlib import Path

from llmserve.config.hub_ref import DEFAULT_REVISION, HubRef
from llmserve.errors import ModelFileError
from llmserve.hub.quants import RepoFile, choose, group


def default_cache_dir() -> Path:
    """From HF_HUB_CACHE, HF_HOME or XDG_CACHE_HOME, as huggingface_hub reads them."""
    from huggingface_hub import constants  # 10 ms that only a catalog with hub models pays

    return Path(constants.HF_HUB_CACHE)


def find(ref: HubRef, cache_dir: Path | None = None) -> tuple[Path, ...]:
    """The files of `ref` on disk, the one to load first; empty if any is missing.

    Without a pinned revision, a file that an earlier download left under an older commit of the
    repository counts too: fetching one quantization must not make another one disappear.
    """
    repo_dir = repo_path(ref.repo, cache_dir or default_cache_dir())
    for snapshot in _snapshots(repo_dir, ref.revision):
        complete = [one for one in group(_gguf_files(snapshot)) if one.is_complete]
        try:
            weights = choose(ref, complete)
        except ModelFileError:
            continue
        return tuple(snapshot / file.path for file in weights.files)
    return ()


def repo_path(repo: str, cache_dir: Path) -> Path:
    """The directory of one repository (huggingface_hub's `repo_folder_name`)."""
    return cache_dir / "--".join(("models", *repo.split("/")))


def _snapshots(repo_dir: Path, revision: str | None) -> Iterator[Path]:
    """Directories that hold files of `revision`, the best one first."""
    snapshots = repo_dir / "snapshots"
    wanted = revision or DEFAULT_REVISION
    try:
        current = (repo_dir / "refs" / wanted).read_text().strip()
    except OSError:
        current = wanted  # a commit is its own directory
    yield snapshots / current
    if revision is None and snapshots.is_dir():
        others = (one for one in snapshots.iterdir() if one.name != current)
        yield from sorted(others, key=lambda one: one.stat().st_mtime, reverse=True)


def _gguf_files(snapshot: Path) -> Iterator[RepoFile]:
    for path in sorted(snapshot.rglob("*.gguf")):
        if path.is_file():  # not a link whose blob was deleted
            yield RepoFile(path.relative_to(snapshot).as_posix(), path.stat().st_size)
