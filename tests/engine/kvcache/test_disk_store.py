"""Prefixes on disk: what comes back is what was written, or nothing."""

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core import Finished, SamplingParams
from llmserve.engine.kvcache import disk_store as disk_module
from llmserve.engine.kvcache.disk_store import DiskOptions, DiskStore, Piece, StateFile, fingerprint
from llmserve.engine.messages import Fetched
from llmserve.engine.worker.worker import Worker
from tests.engine.solo import answer_alone
from tests.engine.worker.test_worker import Bench
from tests.fakes import FakeRuntime
from tests.policies import policy

LONG = SamplingParams(temperature=0, ignore_eos=True)
PREFIX = [n % 251 for n in range(300)]


def options(
    folder: Path, *, budget: int = 1 << 20, stamp: str = "this", max_unwritten: int = 1 << 20
) -> DiskOptions:
    return DiskOptions(folder, budget, stamp, max_unwritten)


def open_store(
    folder: Path, *, budget: int = 1 << 20, stamp: str = "this", can_cut: bool = True
) -> DiskStore:
    store = DiskStore(options(folder, budget=budget, stamp=stamp), can_cut=can_cut)
    store.check_integrity()
    return store


def keep(store: DiskStore, tokens: list[int], namespace: str = "", piece: int = 64) -> None:
    """In pieces that hold their own tokens, as bytes."""
    for start in range(0, len(tokens), piece):
        end = min(start + piece, len(tokens))
        store.keep(namespace, tokens[:end], start, np.array(tokens[start:end], dtype=np.uint8))
        store.check_integrity()


def read(store: DiskStore, tokens: list[int], namespace: str = "") -> list[Piece]:
    """Whatever there is; what turns out to be unusable is forgotten."""
    done = threading.Event()
    result: list[tuple[list[Piece], StateFile | None]] = []

    def on_read(pieces: list[Piece], unusable: StateFile | None) -> None:
        result.append((pieces, unusable))
        done.set()

    end = store.find(namespace, tokens, len(tokens))
    store.read(namespace, tokens, 0, end, on_read)
    assert done.wait(10)
    pieces, unusable = result[0]
    if unusable is not None:
        store.forget(namespace, tokens, unusable)
        store.check_integrity()
    return pieces


def joined(pieces: list[Piece]) -> list[int]:
    tokens: list[int] = []
    for piece in pieces:
        assert piece.start <= len(tokens)
        tokens[piece.start :] = piece.state.tolist()
        assert piece.tokens == tokens
    return tokens


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


# -- the store -----------------------------------------------------------------------------------


def test_it_outlives_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, PREFIX)
    keep(store, PREFIX[:100] + [255] * 30)
    keep(store, [7] * 20, namespace="x")
    store.close()
    store = open_store(tmp_path)
    assert joined(read(store, PREFIX)) == PREFIX
    assert store.find("", [*PREFIX[:90], 1], 91) == 90
    assert store.find("", [*PREFIX[:100], 255, 255], 102) == 102
    assert store.find("", [7] * 20, 20) == 0
    assert joined(read(store, [7] * 20, namespace="x")) == [7] * 20
    store.close()


def test_nobody_shares_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes would remove each other's files."""
    monkeypatch.setattr(disk_module, "LOCK_WAIT_S", 0.0)
    store = open_store(tmp_path / "it")
    with pytest.raises(OSError, match="another process is using"):
        open_store(tmp_path / "it")
    store.close()
    open_store(tmp_path / "it").close()


def test_files_are_private_and_whole(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new" / "folder")
    keep(store, PREFIX)
    store.close()
    folder = tmp_path / "new" / "folder"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files_in(folder)} == {0o600}
    assert {path.suffix for path in files_in(folder)} == {".kv"}


def test_least_recently_used_files_go_first(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget=200)
    for n in range(3):
        keep(store, [n] * 60)
    read(store, [0] * 60)
    keep(store, [3] * 60)
    assert [store.find("", [n] * 60, 60) for n in range(4)] == [60, 0, 60, 60]
    store.close()
    assert len(files_in(tmp_path)) == 3


def test_a_new_store_knows_what_was_used_last(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for n in range(4):
        keep(store, [n] * (40 + 5 * n))
    store.close()
    for path in files_in(tmp_path):  # the shortest was used last
        os.utime(path, (0, 10**9 - path.stat().st_size))
    store = open_store(tmp_path, budget=40 + 45 + 50)
    assert [store.find("", [n] * 60, 60) for n in range(4)] == [40, 45, 50, 0]
    keep(store, [7] * 30)
    assert [store.find("", [n] * 60, 60) for n in range(4)] == [40, 45, 0, 0]
    store.close()
    assert len(files_in(tmp_path)) == 3


def test_what_hangs_in_the_air_is_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, PREFIX)
    store.close()
    min(files_in(tmp_path), key=lambda path: path.stat().st_size - 4 * 64).unlink()
    store = open_store(tmp_path)
    store.check_integrity()
    store.close()
    assert len(files_in(tmp_path)) == store.find("", PREFIX, 300) // 64


def test_another_fingerprint_is_a_miss_and_cleans_up(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keep(store, PREFIX)
    store.close()
    store = open_store(tmp_path, stamp="another")
    assert store.find("", PREFIX, 300) == 0
    assert files_in(tmp_path) == []
    store.close()


def test_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "half.part").write_bytes(b"half")
    (tmp_path / "empty.kv").write_bytes(b"")
    (tmp_path / "other.kv").write_bytes(b"something else" * 100)
    store = open_store(tmp_path)
    assert files_in(tmp_path) == []
    store.close()


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_module, "_write_file", fail)
    store = open_store(tmp_path)
    keep(store, PREFIX)
    assert store._writer.submit(lambda: None).result(10) is None
    assert read(store, PREFIX) == []
    assert store.find("", PREFIX, 300) == 0, "and it is forgotten"
    store.close()


def test_a_slow_disk_takes_no_memory(tmp_path: Path) -> None:
    store = DiskStore(options(tmp_path, max_unwritten=130), can_cut=True)
    go_on = threading.Event()
    store._writer.submit(go_on.wait, 10)
    keep(store, PREFIX)
    assert store.unwritten_bytes == 128
    assert joined(read(store, PREFIX)) == PREFIX[:128], "what is not yet written can be read"
    go_on.set()
    store._writer.submit(lambda: None).result(10)
    assert store.unwritten_bytes == 0
    keep(store, PREFIX)
    assert store.find("", PREFIX, 300) >= 256, "what was left out follows the next time"
    store.close()


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_damage_is_a_clean_miss(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A bit flipped, an end cut off, bytes added: in memory of the store or before it opens."""
    folder = tmp_path_factory.mktemp("damage")
    store = open_store(folder)
    keep(store, PREFIX, piece=100)
    store.close()
    opens_later = data.draw(st.booleans())
    store = open_store(folder)
    if opens_later:
        store.close()
    files = sorted(files_in(folder), key=lambda path: path.stat().st_size)
    path = files[data.draw(st.integers(0, 2))]  # larger headers are those of later pieces
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "add", "remove"])):
        case "flip":
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        case "add":
            path.write_bytes(bytes(content) + b"\0")
        case "remove":
            path.unlink()
    if opens_later:
        store = open_store(folder)
    got = joined(read(store, PREFIX))
    assert got == PREFIX[: len(got)]
    assert len(got) in (0, 100, 200), "what comes before the damage is there, and no more"
    assert store.find("", PREFIX, 300) == len(got)
    store.close()


def test_the_fingerprint_sees_files_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(1 << 20))
    os.utime(path, ns=(0, 10**18))
    first = fingerprint([path], "build 1", "f16")
    assert first == fingerprint([path], "build 1", "f16")
    assert first != fingerprint([path], "build 2", "f16")
    content = bytearray(path.read_bytes())
    content[5 << 16] = 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 10**18))
    second = fingerprint([path], "build 1", "f16")
    assert first != second
    os.utime(path, ns=(0, 10**18 + 1))
    assert second != fingerprint([path], "build 1", "f16")


# -- the worker ----------------------------------------------------------------------------------


class DiskBench(Bench):
    """Waits for the disk where the worker would."""

    def __init__(self, folder: Path, *, can_cut: bool = True, stamp: str = "this") -> None:
        runtime = FakeRuntime(
            num_cells=4000, num_slots=4, max_batch=256, max_outputs=16, can_cut=can_cut
        )
        super().__init__(runtime)
        self.worker = Worker(
            runtime,
            self._note,
            prefix_cache_bytes=1 << 20,
            disk=options(folder, stamp=stamp),
            policy=policy(speculation=False),
        )
        self.worker._kv.open()

    def step(self) -> None:
        if self.worker._roster.waiting and self.worker._is_idle:
            command = self.worker._inbox.get(timeout=10)
            assert isinstance(command, Fetched)
            self.worker._handle(command)
        super().step()

    @property
    def is_busy(self) -> bool:
        return super().is_busy or bool(self.worker._roster.waiting)

    def cached(self, request_id: int) -> int:
        end = self.ends[request_id]
        assert isinstance(end, Finished)
        return end.usage.cached_tokens

    def close(self) -> None:
        self.worker._kv.close()


@pytest.mark.parametrize("can_cut", [True, False])
def test_a_restarted_worker_is_warm(tmp_path: Path, can_cut: bool) -> None:
    bench = DiskBench(tmp_path, can_cut=can_cut)
    first = bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    bench.close()
    bench = DiskBench(tmp_path, can_cut=can_cut)
    ids = [bench.submit(PREFIX, 5, sampling=LONG) for _ in range(3)]
    bench.run()
    assert [bench.cached(i) for i in ids] == [299] * 3
    assert sum(bench.runtime.batch_sizes) == 3 * 5
    assert bench.answer(first) == answer_alone(PREFIX, 5, sampling=LONG)
    bench.close()


def test_damage_is_computed_again_and_written_again(tmp_path: Path) -> None:
    bench = DiskBench(tmp_path)
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    bench.close()
    for path in files_in(tmp_path):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for expected in (0, 299):
        bench = DiskBench(tmp_path)
        request_id = bench.submit(PREFIX, 5, sampling=LONG)
        bench.run()
        assert bench.cached(request_id) == expected
        assert bench.answer(request_id) == answer_alone(PREFIX, 5, sampling=LONG)
        bench.close()


def test_who_waits_for_the_disk_can_be_cancelled(tmp_path: Path) -> None:
    bench = DiskBench(tmp_path)
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    bench.close()
    bench = DiskBench(tmp_path)
    waiting, other = bench.submit(PREFIX, 5), bench.submit([1, 2, 3], 5, sampling=LONG)
    bench.worker.cancel(waiting)
    bench.run()
    assert waiting not in bench.ends
    assert bench.answer(other) == answer_alone([1, 2, 3], 5, sampling=LONG)
    bench.close()


def test_others_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    bench = DiskBench(tmp_path)
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    bench.close()
    bench = DiskBench(tmp_path)
    store = bench.worker._kv._disk._store
    assert store is not None
    go_on = threading.Event()
    store._reader.submit(go_on.wait, 10)
    waiting = bench.submit(PREFIX, 5, sampling=LONG)
    other = bench.submit([1, 2, 3], 5, sampling=LONG)
    while other not in bench.ends:
        Bench.step(bench)
    assert waiting not in bench.ends
    go_on.set()
    bench.run()
    assert bench.cached(waiting) == 299
    bench.close()
