"""A model hub for the tests: a real HTTP server on the loopback, to stand behind HF_ENDPOINT.

It answers what huggingface_hub asks for a download: the description of a repository with sizes and
hashes, HEAD and GET of its files with Range, and the errors with the headers by which the library
tells them apart. It can be told to misbehave, and remembers every request.
"""

import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK_BYTES = 16 << 10


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubServer:
    """What it serves, how it misbehaves (by path inside a repository), what it saw."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", "v1")
    gated: set[str] = field(default_factory=set)  # repositories
    cut_after: dict[str, int] = field(default_factory=dict)  # break the next GET there, once
    hang_after: dict[str, int] = field(default_factory=dict)  # stop the next GET there, for good
    sends: dict[str, bytes] = field(default_factory=dict)  # other bytes than announced
    redirects: dict[str, str] = field(default_factory=dict)
    no_ranges: bool = False  # answer a Range with everything
    hold_for_heads: int = 0  # no GET goes on before so many HEADs were seen
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._enough_heads = asyncio.Event()

    def gets(self, path: str) -> list[Seen]:
        """The downloads of one file."""
        return [one for one in self.seen if one.method == "GET" and one.path.endswith(path)]

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/models/{owner}/{name}/revision/{revision:path}", self._describe),
                Route("/api/models/{owner}/{name}/refs", self._refs),
                Route("/{owner}/{name}/resolve/{revision}/{path:path}", self._file),
            ]
        )

    def _note(self, request: Request) -> str:
        headers = request.headers
        method, path = request.method, request.url.path
        self.seen.append(Seen(method, path, headers.get("range"), headers.get("authorization")))
        return "{owner}/{name}".format_map(request.path_params)

    async def _describe(self, request: Request) -> Response:
        repo = self._note(request)
        if repo not in self.repos:
            return _error(401, "RepoNotFound")  # what the hub says to who shows no token
        if request.path_params["revision"] not in (*self.revisions, COMMIT):
            return _error(404, "RevisionNotFound")
        siblings = [_sibling(path, content) for path, content in self.repos[repo].items()]
        return JSONResponse({"id": repo, "sha": COMMIT, "siblings": siblings})

    async def _refs(self, request: Request) -> Response:
        self._note(request)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": COMMIT}
            for name in self.revisions
        ]
        return JSONResponse({"branches": branches, "tags": [], "converts": []})

    async def _file(self, request: Request) -> Response:
        repo, path = self._note(request), request.path_params["path"]
        if repo in self.gated:
            return _error(403 if request.headers.get("authorization") else 401, "GatedRepo")
        content = self.repos[repo].get(path)
        if content is None:
            return _error(404, "EntryNotFound")
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{_sha256(content)}"',
            "X-Linked-Etag": f'"{_sha256(content)}"',
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        if path in self.redirects:
            return RedirectResponse(self.redirects[path], 302, headers)
        if request.method == "HEAD":
            if sum(one.method == "HEAD" for one in self.seen) >= self.hold_for_heads:
                self._enough_heads.set()
            return Response(headers={**headers, "Content-Length": str(len(content))})
        return self._content(path, content, headers, request.headers.get("range"))

    def _content(
        self, path: str, content: bytes, headers: dict[str, str], asked: str | None
    ) -> Response:
        body, status = self.sends.get(path, content), 200
        if asked and not self.no_ranges:
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            body, status = body[first:], 206
        headers["Content-Length"] = str(len(body))
        return StreamingResponse(self._stream(path, body), status, headers)

    async def _stream(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        cut, hang = self.cut_after.pop(path, None), self.hang_after.pop(path, None)
        if self.hold_for_heads:
            await self._enough_heads.wait()
        limit = cut if cut is not None else hang if hang is not None else len(body)
        for first in range(0, limit, CHUNK_BYTES):
            yield body[first : min(first + CHUNK_BYTES, limit)]
        if cut is not None:
            raise ConnectionResetError("as told")  # uvicorn then drops the connection
        if hang is not None:
            await asyncio.Event().wait()  # until the client goes away


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """A `HubServer` on a free port of the loopback, until the block ends."""
    hub = HubServer()
    listener = socket.create_server(("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(uvicorn.Config(hub.app(), log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert server.is_up.wait(30)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


def _sibling(path: str, content: bytes) -> dict[str, object]:
    size, sha256 = len(content), _sha256(content)
    lfs = {"size": size, "sha256": sha256, "pointerSize": 134}
    return {"rfilename": path, "size": size, "blobId": "0" * 40, "lfs": lfs}


def _error(status: int, code: str) -> Response:
    return Response(status_code=status, headers={"X-Error-Code": code, "X-Error-Message": code})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
