"""The model hub: what a repository has, and one of its files into the hub's cache.

The only module that talks to the hub, and the only place where errors of huggingface_hub, of the
connection and of the disk become ours (`_translated`). Import it lazily: a server that finds its
models on disk needs none of it.

Every request goes through a client of `guard.py`, which knows where a download may lead.
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
from huggingface_hub import (
    HfApi,
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# Documented as public, though no __all__ says so.
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]
from msgspec import Struct

from llmserve.config.hub_ref import DEFAULT_REVISION, HubRef, check_repo_path
from llmserve.config.units import human
from llmserve.errors import HubError, HubUnreachableError
from llmserve.hub.cache import default_cache_dir, repo_path
from llmserve.hub.download import TransferError, download
from llmserve.hub.progress import Progress
from llmserve.hub.quants import RepoFile
from llmserve.hub.redirects import guard_library, guarded_client

API_TIMEOUT_S = 20.0

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # becomes a file name


class Listing(Struct, frozen=True):
    """A repository at one commit."""

    commit: str
    files: tuple[RepoFile, ...]


class Hub:
    """One hub and one cache. Not given: those of the environment (HF_ENDPOINT, HF_HOME, …).

    HF_TOKEN and HF_HUB_OFFLINE are read by the library.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        cache_dir: Path | None = None,
        disk_free: Callable[[Path], int] | None = None,
    ) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.cache_dir = cache_dir or default_cache_dir()
        self._disk_free = disk_free or _disk_free
        self._api = HfApi(endpoint=self.endpoint)
        guard_library(self.endpoint)

    def list_files(self, ref: HubRef) -> Listing:
        """What `ref`'s repository has at its revision. Raises `HubError`."""
        with self._translated(ref):
            try:
                info = self._api.model_info(
                    ref.repo,
                    revision=ref.revision or DEFAULT_REVISION,
                    files_metadata=True,
                    timeout=API_TIMEOUT_S,
                )
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise HubError(f"{self.endpoint} does not answer like a hub") from error
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise HubError(f"{self.endpoint} does not answer like a hub: it names no commit")
        files = tuple(
            RepoFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None)
            for one in info.siblings or ()
            if check_repo_path(one.rfilename)
        )
        return Listing(info.sha, files)

    def missing_bytes(self, ref: HubRef, commit: str, file: RepoFile) -> int:
        """How much of `file` a download would have to fetch."""
        if self.cached_path(ref, commit, file).is_file():
            return 0
        partial = self._partial(self._blob(ref, file.sha256)) if file.sha256 else None
        have = partial.stat().st_size if partial and partial.is_file() else 0
        return max(0, file.size_bytes - have)

    def check_space(self, need_bytes: int) -> None:
        """Refuse what the disk cannot take, before anything is fetched. Raises `HubError`."""
        free_bytes = self._disk_free(self.cache_dir)
        if need_bytes > free_bytes:
            raise HubError(
                f"not enough disk space: the download needs {human(need_bytes)}, but"
                f" {human(free_bytes)} are free at {self.cache_dir}; free some, or set HF_HOME"
                " to a directory on another disk"
            )

    def download(
        self, ref: HubRef, listing: Listing, file: RepoFile, label: str, progress: Progress
    ) -> Path:
        """The path of `file` in the cache, fetched and verified if need be. Raises `HubError`."""
        with self._translated(ref, file.path):
            path = self.cached_path(ref, listing.commit, file)
            if path.is_file():
                self._verify(path.resolve(), file.size_bytes, ref.sha256 or file.sha256, file.path)
                return path
            head = self._head(ref, listing.commit, file)
            self._fetch_blob(ref, listing, file, head, label, progress)
            # Only now is the file seen. The library makes the links, so that the layout
            # of the cache stays its own business; the bytes are there, so it fetches nothing.
            made = hf_hub_download(
                ref.repo,
                file.path,
                revision=ref.revision or DEFAULT_REVISION,
                cache_dir=self.cache_dir,
                endpoint=self.endpoint,
            )
        if Path(made) != path:
            raise HubError(f"{ref.repo} was changed during the download; run it again")
        return path

    def cached_path(self, ref: HubRef, commit: str, file: RepoFile) -> Path:
        """Where the cache has, or would have, `file`."""
        return repo_path(ref.repo, self.cache_dir) / "snapshots" / commit / file.path

    def _head(self, ref: HubRef, commit: str, file: RepoFile) -> HfFileMetadata:
        url = hf_hub_url(ref.repo, file.path, revision=commit, endpoint=self.endpoint)
        head = get_hf_file_metadata(url, timeout=API_TIMEOUT_S, endpoint=self.endpoint)
        if not head.etag or not _ETAG.fullmatch(head.etag):
            raise HubError(f"{self.endpoint} does not answer like a hub: ETag {head.etag!r}")
        return head

    def _fetch_blob(
        self,
        ref: HubRef,
        listing: Listing,
        file: RepoFile,
        head: HfFileMetadata,
        label: str,
        progress: Progress,
    ) -> None:
        """The bytes into `blobs/<etag>`, complete and verified, by one process at a time."""
        assert head.etag
        blob = self._blob(ref, head.etag)
        partial = self._partial(blob)
        blob.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(ref.repo, file.path, revision=listing.commit, endpoint=self.endpoint)
        size_bytes = head.size or file.size_bytes or None
        with _locked(self._lock(ref, head.etag), progress):
            if blob.exists():  # another process was faster
                return
            have = partial.stat().st_size if partial.exists() else 0
            progress.start(label, size_bytes, have)
            try:
                with guarded_client(self.endpoint) as client:
                    download(client, url, build_hf_headers(), partial, size_bytes, progress)
            finally:
                progress.finish()
            self._verify(partial, size_bytes, ref.sha256 or file.sha256, file.path)
            partial.replace(blob)

    def _verify(self, path: Path, size_bytes: int | None, sha256: str | None, name: str) -> None:
        """Remove a file that is not what it should be. Raises `HubError`."""
        wrong = None
        if size_bytes and path.stat().st_size != size_bytes:
            wrong = f"{path.stat().st_size:,} bytes instead of {size_bytes:,}"
        elif sha256 and (found := _sha256(path)) != sha256:
            wrong = f"sha256 {found} instead of {sha256}"
        if wrong:
            path.unlink()
            raise HubError(f"{name} is damaged ({wrong}) and was removed; run it again")

    def _blob(self, ref: HubRef, etag: str) -> Path:
        return repo_path(ref.repo, self.cache_dir) / "blobs" / etag

    def _partial(self, blob: Path) -> Path:
        # The suffix by which the tools that clean the cache know an unfinished file.
        return blob.with_name(f"{blob.name}.incomplete")

    def _lock(self, ref: HubRef, etag: str) -> Path:
        """The lock that huggingface_hub itself takes for this blob."""
        name = repo_path(ref.repo, self.cache_dir).name
        return self.cache_dir / ".locks" / name / f"{etag}.lock"

    @contextmanager
    def _translated(self, ref: HubRef, file: str | None = None) -> Iterator[None]:
        """Foreign errors -> `HubError`, each with what to do about it."""
        page = f"{self.endpoint}/{ref.repo}"
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise HubUnreachableError(
                f"{ref.text} cannot be fetched: HF_HUB_OFFLINE is set; unset it and run again"
            ) from error
        except GatedRepoError as error:
            raise HubError(_gated(ref.repo, page, error)) from error
        except RevisionNotFoundError as error:
            has = ", ".join(self._revisions(ref.repo)) or "none that we may see"
            raise HubError(f"{ref.repo} has no revision {ref.revision!r}; it has {has}") from error
        except RemoteEntryNotFoundError as error:
            raise HubError(f"{ref.repo} has no file {file!r}") from error
        except HfHubHTTPError as error:
            raise HubError(_refused(ref.repo, page, error)) from error
        except (TransferError, LocalEntryNotFoundError, httpx2.HTTPError) as error:
            raise HubUnreachableError(
                f"cannot reach {self.endpoint} ({error}); check the network and any proxy, then"
                " run it again: a download goes on where it stopped"
            ) from error
        except OSError as error:
            raise HubError(self._disk_trouble(error)) from error

    def _revisions(self, repo: str) -> list[str]:
        """Branches and tags; for an error message, so no error of its own."""
        with suppress(Exception):
            refs = self._api.list_repo_refs(repo)
            return [one.name for one in (*refs.branches, *refs.tags)]
        return []

    def _disk_trouble(self, error: OSError) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = human(self._disk_free(self.cache_dir))
            return (
                f"the disk is full ({free} free at {self.cache_dir}): free some space and run it"
                " again, the download goes on where it stopped; or set HF_HOME to another disk"
            )
        return f"cannot write to the cache {self.cache_dir}: {error.strerror or error}; set HF_HOME"


def _gated(repo: str, page: str, error: HfHubHTTPError) -> str:
    if "authorization" in error.response.request.headers:
        return f"{repo} is gated, and your HF_TOKEN has no access yet: ask for it at {page}"
    return f"{repo} is gated: accept its licence at {page}, then set HF_TOKEN to your access token"


def _refused(repo: str, page: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return f"there is no repository {repo} ({page}), or it is private: then set HF_TOKEN"
    if status == 403:
        return f"the hub refuses access to {page}: check the permissions of your HF_TOKEN"
    if status == 429:
        return "the hub limits the rate of your requests; wait a little, or set HF_TOKEN"
    return f"the hub answered {status} for {page}; try again later"


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(path, timeout=0.1))
        except TimeoutError:  # filelock's own is one
            progress.note("another process is downloading this file: waiting for it")
            stack.enter_context(WeakFileLock(path))
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_free(path: Path) -> int:
    """Free bytes where `path` is, or will be created."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
