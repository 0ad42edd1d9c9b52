"""Parked states on disk, behind those in memory, so that a restarted server is warm.

A file holds one piece of a prefix: a header with all tokens up to its end, and the state. It is
written beside and renamed into place, readable by its owner only. Its name has the fingerprint of
what computed it (model file, build, cache types); both parts have a digest. Whatever is wrong with
a file makes it a miss, and the file is removed.

Threads: the worker's thread calls; files are read and written by two threads of this module's own,
so that no step waits for a disk.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from filelock import FileLock, Timeout
from msgspec import Struct

from llmserve.engine.kvcache.host_store import Parking
from llmserve.engine.runtime import State
from llmserve.engine.thread import ModelThread

log = logging.getLogger(__name__)

LOCK_WAIT_S = 3.0  # for another process to end, whose server was killed
_MAGIC = b"llmserve-prefix-1\n"
_FIXED = struct.Struct(f"<{len(_MAGIC)}sI32s32s")  # magic, header length, digests of both parts
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class _Header(Struct, frozen=True):
    fingerprint: str
    namespace: str
    start: int  # the tokens whose cells are in the file: from here to the last one
    tokens: bytes  # int32, from the beginning of the sequence
    state_bytes: int


class StateFile(NamedTuple):
    path: Path
    nbytes: int  # of the state


class Piece(NamedTuple):
    """A state as it came back: the cells of `tokens[start:]`."""

    namespace: str
    tokens: list[int]
    start: int
    state: State


class DiskOptions(Struct, frozen=True):
    """Where a model keeps states, how many bytes of them, and the `fingerprint` of today's."""

    folder: Path
    budget_bytes: int
    fingerprint: str
    max_unwritten_bytes: int = 128 << 20  # what memory may hold only because the disk is slow


def fingerprint(files: Iterable[Path], *settings: str) -> str:
    """What a state depends on: the model's files, and whatever else `settings` says.

    Of each file: size, time of change, and samples all over it, which together take no time.
    """
    digest = hashlib.sha256("\n".join(settings).encode())
    for path in files:
        stat = path.stat()
        digest.update(f"\n{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with path.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(stat.st_size * index // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


class DiskStore:
    """Bounded like `Parking`, whose books it keeps for files."""

    def __init__(self, options: DiskOptions, *, can_cut: bool) -> None:
        """Takes in what an earlier run left in the folder.

        That is this model's alone. Raises `OSError`, also if another process is using it.
        """
        self._folder = options.folder
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _locked(options.folder)
        self._fingerprint = options.fingerprint
        self._max_unwritten_bytes = options.max_unwritten_bytes
        self._books = Parking[StateFile](
            options.budget_bytes, can_cut=can_cut, on_drop=self._remove
        )
        self._unwritten: dict[Path, tuple[_Header, State]] = {}  # read from here until then
        self._reader = ModelThread("prefix-reader")
        self._writer = ModelThread("prefix-writer")
        self._take_in()

    def close(self) -> None:
        """Write what is still to be written, and end the threads."""
        for thread in (self._reader, self._writer):
            thread.shutdown()
            thread.join()
        self._lock.release()

    @property
    def unwritten_bytes(self) -> int:
        return sum(state.nbytes for _, state in list(self._unwritten.values()))

    # -- writing ------------------------------------------------------------------------------

    def keep(self, namespace: str, tokens: Sequence[int], start: int, state: State) -> None:
        """Write `state` of `tokens[start:]` some time soon, if it is news."""
        if self.unwritten_bytes + state.nbytes > self._max_unwritten_bytes:
            return  # the disk does not follow; the next time, then
        tokens = list(tokens)
        file = StateFile(self._folder / f"{secrets.token_hex(16)}.kv", state.nbytes)
        if self._books.add(namespace, tokens, start, file):
            header = _Header(
                fingerprint=self._fingerprint,
                namespace=namespace,
                start=start,
                tokens=np.array(tokens, dtype=np.int32).tobytes(),
                state_bytes=state.nbytes,
            )
            self._unwritten[file.path] = header, state
            self._writer.submit(self._write, file, header, state)

    def _write(self, file: StateFile, header: _Header, state: State) -> None:
        try:
            _write_file(file.path, header, state)
        except OSError as error:
            log.warning("a prefix cannot be written to %s: %s", file.path, error)
        finally:
            del self._unwritten[file.path]

    def retain(self, namespace: str, prompts: Iterable[Sequence[int]]) -> None:
        """Remove all that is no beginning of one of `prompts`."""
        kept = {
            match.node
            for tokens in prompts
            for match in self._books.tree.match(namespace, tokens, len(tokens))
        }
        for node in list(self._books.tree):  # parents first
            if node not in kept:
                self._books.discard(node)

    def _remove(self, file: StateFile) -> None:
        self._writer.submit(file.path.unlink, missing_ok=True)  # after it was written

    # -- reading ------------------------------------------------------------------------------

    def find(self, namespace: str, tokens: Sequence[int], limit: int) -> int:
        """How many of `tokens[:limit]` can be read."""
        path = self._books.tree.match(namespace, tokens, limit)
        if self._books.can_cut:
            return path[-1].end if path else 0
        whole = [m.end for m in path if m.node.payload is not None and m.end == m.node.end]
        return max(whole, default=0)

    def read(
        self,
        namespace: str,
        tokens: Sequence[int],
        start: int,
        end: int,
        on_read: Callable[[list[Piece], StateFile | None], None],
    ) -> None:
        """Give what there is of `tokens[start:end]` to `on_read`, in the reader's thread.

        The pieces come in order and without gaps, up to a file that is unusable, which is named.
        """
        path = self._books.tree.match(namespace, tokens, end)
        self._books.touch([match.node for match in path])
        files: dict[StateFile, None] = {}
        for node, at in path if self._books.can_cut else path[-1:]:
            if node.payload is not None and at > start:
                files[node.payload.state] = None
        self._reader.submit(self._read, list(files), on_read)

    def _read(
        self, files: list[StateFile], on_read: Callable[[list[Piece], StateFile | None], None]
    ) -> None:
        pieces: list[Piece] = []
        for file in files:
            try:
                pieces.append(self._piece(file.path))
            except Exception as error:  # whatever it is, an answer is waited for
                log.info("%s is not a usable prefix: %s", file.path, error)
                on_read(pieces, file)
                return
        on_read(pieces, None)

    def forget(self, namespace: str, tokens: Sequence[int], file: StateFile) -> None:
        """`read` has found `file` unusable."""
        path = self._books.tree.match(namespace, tokens, len(tokens))
        nodes = [m.node for m in path if m.node.payload and m.node.payload.state == file]
        if nodes:  # the first one: what needs it goes with it
            self._books.discard(nodes[0])

    def _piece(self, path: Path) -> Piece:
        header, state = self._unwritten.get(path) or _read_file(path, with_state=True)
        self._check(header)
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used are the oldest after a restart too
        return Piece(header.namespace, _tokens(header), header.start, state)

    def _check(self, header: _Header) -> None:
        if header.fingerprint != self._fingerprint:
            raise _UnusableError("another model, build or cache type computed it")

    # -- what an earlier run has left ---------------------------------------------------------

    def _take_in(self) -> None:
        begin_s = time.monotonic()
        found: list[tuple[float, Path, _Header]] = []
        for path in self._folder.iterdir():
            try:
                if path.suffix != ".kv":
                    raise _UnusableError("not a finished file")
                header, _ = _read_file(path, with_state=False)
                self._check(header)
                found.append((path.stat().st_mtime, path, header))
            except (OSError, _UnusableError, msgspec.MsgspecError) as error:
                log.info("%s: removed: %s", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
        found.sort(key=lambda each: each[0])  # the least recently used first
        num_bytes = sum(header.state_bytes for _, _, header in found)
        while num_bytes > self._books.budget_bytes:
            _, path, header = found.pop(0)
            num_bytes -= header.state_bytes
            self._remove(StateFile(path, header.state_bytes))
        self._note(found)
        if found:
            log.info("%d prefixes on disk after %.2f s", len(found), time.monotonic() - begin_s)

    def _note(self, found: list[tuple[float, Path, _Header]]) -> None:
        """Take files into the books, as if they had been written and used in this order."""
        for _, path, header in sorted(found, key=lambda each: len(each[2].tokens)):
            file = StateFile(path, header.state_bytes)
            if not self._books.add(header.namespace, _tokens(header), header.start, file):
                self._remove(file)  # what it goes on from is not there
        for _, _, header in found:
            tokens = _tokens(header)
            known = self._books.tree.match(header.namespace, tokens, len(tokens))
            self._books.touch([match.node for match in known])

    def check_integrity(self) -> None:
        """Assert that the books balance; for tests."""
        self._books.check_integrity()


class _UnusableError(Exception):
    pass


def _locked(folder: Path) -> FileLock:
    """Two servers would remove each other's files. However the process ends, its lock ends too."""
    # No model's folder begins with a dot; in the folder itself it would be one file more to know.
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), mode=0o600)
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout as error:
        raise OSError(f"another process is using {folder}") from error
    return lock


def _tokens(header: _Header) -> list[int]:
    tokens: list[int] = np.frombuffer(header.tokens, dtype=np.int32).tolist()
    return tokens


def _write_file(path: Path, header: _Header, state: State) -> None:
    encoded = msgspec.msgpack.encode(header)
    data = np.ascontiguousarray(state).data
    digests = (hashlib.sha256(encoded).digest(), hashlib.sha256(data).digest())
    beside = path.with_suffix(".part")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_FIXED.pack(_MAGIC, len(encoded), *digests))
            file.write(encoded)
            file.write(data)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _read_file(path: Path, *, with_state: bool) -> tuple[_Header, State]:
    """Raises `_UnusableError`, `OSError` or what msgspec raises."""
    with path.open("rb") as file:
        fixed = file.read(_FIXED.size)
        if len(fixed) < _FIXED.size or not fixed.startswith(_MAGIC):
            raise _UnusableError("not one of these files")
        _, header_len, header_digest, state_digest = _FIXED.unpack(fixed)
        encoded = file.read(header_len)
        if hashlib.sha256(encoded).digest() != header_digest:
            raise _UnusableError("its header is damaged")
        header = msgspec.msgpack.decode(encoded, type=_Header)
        expected = _FIXED.size + header_len + header.state_bytes
        if os.fstat(file.fileno()).st_size != expected:
            raise _UnusableError("it is not complete")
        if not with_state:
            return header, np.empty(0, dtype=np.uint8)
        state = np.fromfile(file, dtype=np.uint8)
    if hashlib.sha256(state.data).digest() != state_digest:
        raise _UnusableError("its state is damaged")
    return header, state
