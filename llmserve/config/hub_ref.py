"""A model on the hub, as people write it -> `HubRef`. Pure; nothing is looked up.

What passes here may become part of a path and of a URL, so everything that could climb out of a
directory is refused here, once, for models.toml and for the command line alike.
"""

import re
from urllib.parse import unquote

from msgspec import Struct

DEFAULT_REVISION = "main"

_HUB_URL = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
_IN_REPO_PAGE = re.compile(r"([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+)")
_REPO_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REPO_LEN = 96  # the hub's own limit


class BadRefError(ValueError):
    """`key` (hf, file, revision or sha256) is wrong: `reason` says how to write it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


class HubRef(Struct, frozen=True):
    """Which file(s) of which repository. At most one of `quant` and `file`."""

    repo: str  # "owner/name"
    quant: str | None = None  # None with no file: see `quants.choose`
    file: str | None = None  # path inside the repository
    revision: str | None = None  # branch, tag or commit; None: the newest of `main`
    sha256: str | None = None  # of the one file, 64 lower-case hex digits

    @property
    def text(self) -> str:
        """As it is written in models.toml."""
        return f"{self.repo}:{self.quant}" if self.quant else self.repo


def make_ref(
    hf: str, *, file: str | None = None, revision: str | None = None, sha256: str | None = None
) -> HubRef:
    """`hf` is "owner/repo" or "owner/repo:QUANT". Raises `BadRefError`."""
    repo, colon, quant = hf.partition(":")
    _check_repo(repo)
    if colon and not _QUANT.fullmatch(quant):
        raise BadRefError("hf", f"{quant!r} is not a valid quantization; write owner/repo:Q4_K_M")
    if quant and file is not None:
        raise BadRefError("file", f"hf already names the quantization {quant!r}; give one of both")
    if file is not None:
        _check_file(file)
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise BadRefError("revision", f"{revision!r} is not a valid branch, tag or commit")
    sha256 = sha256.lower() if sha256 is not None else None
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise BadRefError("sha256", f"{sha256!r} is not 64 hexadecimal digits")
    return HubRef(repo, quant or None, file, revision, sha256)


def parse_ref(
    text: str, *, file: str | None = None, revision: str | None = None, sha256: str | None = None
) -> HubRef:
    """What a person pastes: also the address of a repository or of a file on its web pages.

    Raises `BadRefError`.
    """
    address = _HUB_URL.match(text)
    if address:
        text = text[address.end() :].partition("?")[0].partition("#")[0].rstrip("/")
        if page := _IN_REPO_PAGE.fullmatch(text):
            text = page[1]
            revision = revision or unquote(page[2])
            file = file or unquote(page[3])
        else:
            text = text.partition("/tree/")[0]
    return make_ref(text, file=file, revision=revision, sha256=sha256)


def check_repo_path(path: str) -> bool:
    """Whether `path` stays inside the directory it is put into."""
    parts = path.split("/")
    return "\\" not in path and "\0" not in path and not any(p in ("", ".", "..") for p in parts)


def _check_repo(repo: str) -> None:
    owner, _, name = repo.partition("/")
    well_formed = _REPO_PART.fullmatch(owner) and _REPO_PART.fullmatch(name)
    if not well_formed or "--" in repo or ".." in repo or len(repo) > _MAX_REPO_LEN:
        raise BadRefError("hf", f"{repo!r} is not a valid repository; write owner/repo")


def _check_file(file: str) -> None:
    if not check_repo_path(file):
        raise BadRefError("file", f"{file!r} is not a valid path inside a repository")
    if not file.lower().endswith(".gguf"):
        raise BadRefError("file", f"{file!r} is no .gguf file")
