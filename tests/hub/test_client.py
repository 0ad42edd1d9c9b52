"""Downloads from a real HTTP server into a real cache, in this process."""

import hashlib
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from llmserve.config.hub_ref import HubRef
from llmserve.errors import HubError, HubUnreachableError, ModelFileError
from llmserve.gguf.header import read_model
from llmserve.hub import cache
from llmserve.hub.client import Hub
from llmserve.hub.locate import fetch
from llmserve.hub.progress import Silent
from tests.fake_hub import COMMIT, HubServer
from tests.hub.conftest import FILE, REPO, Fetch

REF = HubRef(REPO)


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def partials(cache_dir: Path) -> list[Path]:
    return list(cache_dir.rglob("*.incomplete"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TestFetch:
    def test_brings_the_file_into_the_librarys_cache(
        self, fetch_it: Fetch, cache_dir: Path, model_bytes: bytes
    ) -> None:
        fetched = fetch_it(REF)
        assert fetched.path.read_bytes() == model_bytes
        repo_dir = cache_dir / "models--owner--tiny-GGUF"
        assert fetched.path == repo_dir / "snapshots" / COMMIT / FILE
        assert (repo_dir / "refs" / "main").read_text() == COMMIT
        assert fetched.path.resolve() == repo_dir / "blobs" / sha256(model_bytes)
        assert not partials(cache_dir)
        read_model(fetched.path)

    def test_a_second_run_fetches_nothing(self, fetch_it: Fetch, server: HubServer) -> None:
        assert fetch_it(REF).path == fetch_it(REF).path
        assert len(server.gets(FILE)) == 1

    def test_says_what_it_chose(self, server: HubServer, cache_dir: Path) -> None:
        notes = Notes()
        fetch(REF, hub=Hub(endpoint=server.url), progress=notes)
        assert notes.texts[0].startswith(f"{REPO}: Q4_K_M ({FILE}), ")

    def test_all_parts_of_a_split_model(
        self, fetch_it: Fetch, server: HubServer, model_bytes: bytes
    ) -> None:
        parts = {f"Q4_0/T-Q4_0-0000{i}-of-00002.gguf": model_bytes + bytes([i]) for i in (1, 2)}
        server.repos[REPO] = parts
        fetched = fetch_it(REF)
        assert fetched.path.name == "T-Q4_0-00001-of-00002.gguf"
        assert [file.read_bytes() for file in fetched.files] == list(parts.values())

    def test_sends_the_token_to_the_hub(
        self, fetch_it: Fetch, server: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        fetch_it(REF)
        assert {one.authorization for one in server.seen} == {"Bearer hf_secret"}

    def test_a_pinned_commit(self, fetch_it: Fetch, cache_dir: Path) -> None:
        ref = HubRef(REPO, revision=COMMIT)
        assert fetch_it(ref).path == cache.find(ref)[0]


class TestInterruption:
    def test_goes_on_within_one_run(
        self, fetch_it: Fetch, server: HubServer, model_bytes: bytes
    ) -> None:
        half = len(model_bytes) // 2
        server.cut_after[FILE] = half
        assert fetch_it(REF).path.read_bytes() == model_bytes
        first, second = server.gets(FILE)
        assert (first.range, second.range) == (None, f"bytes={half}-")

    def test_a_server_without_ranges(
        self, fetch_it: Fetch, server: HubServer, model_bytes: bytes
    ) -> None:
        server.cut_after[FILE] = 1000
        server.no_ranges = True
        assert fetch_it(REF).path.read_bytes() == model_bytes

    def test_finished_parts_are_not_fetched_again(
        self, fetch_it: Fetch, server: HubServer, model_bytes: bytes
    ) -> None:
        one, two = (f"T-Q4_0-0000{i}-of-00002.gguf" for i in (1, 2))
        server.repos[REPO] = {one: model_bytes, two: model_bytes + b"2"}
        server.sends[two] = bytes(len(model_bytes) + 1)
        with pytest.raises(HubError):
            fetch_it(REF)
        del server.sends[two]
        fetch_it(REF)
        assert len(server.gets(one)) == 1


def test_waits_for_another_process_that_downloads_the_file(
    server: HubServer, cache_dir: Path, model_bytes: bytes
) -> None:
    """The lock is the library's own, so its other users wait for us and we for them."""
    directory = cache_dir / ".locks" / "models--owner--tiny-GGUF"
    directory.mkdir(parents=True)
    blob = cache_dir / "models--owner--tiny-GGUF" / "blobs" / sha256(model_bytes)
    other = FileLock(directory / f"{blob.name}.lock")

    class Other(Silent):
        """The other process: done as soon as we say that we wait."""

        def note(self, text: str) -> None:
            if "another process" in text:
                blob.write_bytes(model_bytes)
                other.release()

    other.acquire()
    fetched = fetch(REF, hub=Hub(endpoint=server.url), progress=Other())
    assert fetched.path.read_bytes() == model_bytes
    assert not server.gets(FILE)


class TestVerification:
    def test_bytes_that_differ_from_the_hubs_sha256_are_removed(
        self, fetch_it: Fetch, server: HubServer, cache_dir: Path, model_bytes: bytes
    ) -> None:
        server.sends[FILE] = bytes(len(model_bytes))
        with pytest.raises(HubError, match=r"Tiny-Q4_K_M\.gguf is damaged \(sha256 .*removed"):
            fetch_it(REF)
        assert not partials(cache_dir)
        assert not list(cache_dir.rglob(FILE))  # nobody ever saw the file
        server.sends.clear()
        assert fetch_it(REF).path.read_bytes() == model_bytes

    def test_another_sha256_than_asked_for_is_refused_before_the_download(
        self, fetch_it: Fetch, server: HubServer
    ) -> None:
        with pytest.raises(HubError, match="on the hub has sha256"):
            fetch_it(HubRef(REPO, sha256="ab" * 32))
        assert not server.gets(FILE)

    def test_the_sha256_asked_for(self, fetch_it: Fetch, model_bytes: bytes) -> None:
        fetch_it(HubRef(REPO, sha256=sha256(model_bytes)))

    def test_one_sha256_for_several_files(self, fetch_it: Fetch, server: HubServer) -> None:
        server.repos[REPO] = {f"T-Q4_0-0000{i}-of-00002.gguf": b"x" for i in (1, 2)}
        with pytest.raises(HubError, match="2 files, so one sha256 cannot fit"):
            fetch_it(HubRef(REPO, sha256="ab" * 32))

    def test_a_file_that_was_damaged_on_disk_is_found_and_removed(
        self, fetch_it: Fetch, model_bytes: bytes
    ) -> None:
        path = fetch_it(REF).path
        path.resolve().write_bytes(bytes(len(model_bytes)))
        with pytest.raises(HubError, match="damaged"):
            fetch_it(REF)
        assert fetch_it(REF).path.read_bytes() == model_bytes


class TestWhatExists:
    def test_no_such_repository(self, fetch_it: Fetch) -> None:
        with pytest.raises(HubError, match=r"no repository owner/none .* or it is private"):
            fetch_it(HubRef("owner/none"))

    def test_no_such_revision(self, fetch_it: Fetch) -> None:
        with pytest.raises(HubError, match="no revision 'v9'; it has main, v1"):
            fetch_it(HubRef(REPO, revision="v9"))

    def test_no_such_file(self, fetch_it: Fetch) -> None:
        with pytest.raises(ModelFileError, match=r"no file 'x\.gguf'; it has Q4_K_M"):
            fetch_it(HubRef(REPO, file="x.gguf"))

    def test_no_such_quantization(self, fetch_it: Fetch) -> None:
        with pytest.raises(ModelFileError, match="no quantization Q8_0; it has Q4_K_M"):
            fetch_it(HubRef(REPO, quant="Q8_0"))

    def test_a_gated_repository_without_a_token(self, fetch_it: Fetch, server: HubServer) -> None:
        server.gated.add(REPO)
        with pytest.raises(HubError, match=f"accept its licence at {server.url}/{REPO}, then set"):
            fetch_it(REF)

    def test_a_gated_repository_with_a_token_that_may_not(
        self, fetch_it: Fetch, server: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        server.gated.add(REPO)
        with pytest.raises(HubError, match="HF_TOKEN has no access yet"):
            fetch_it(REF)

    def test_files_that_would_climb_out_of_the_cache_are_not_listed(
        self, fetch_it: Fetch, server: HubServer
    ) -> None:
        server.repos[REPO] = {"../../evil-Q4_K_M.gguf": b"x", "/etc/evil-Q4_K_M.gguf": b"x"}
        with pytest.raises(ModelFileError, match=r"has no \.gguf model"):
            fetch_it(REF)


class TestDisk:
    def test_too_little_space_is_refused_with_both_numbers(
        self, server: HubServer, cache_dir: Path
    ) -> None:
        hub = Hub(endpoint=server.url, disk_free=lambda _: 1000)
        with pytest.raises(HubError, match=r"needs \d+ kB, but 1\.0 kB are free"):
            fetch(REF, hub=hub)
        assert not server.gets(FILE)

    def test_what_is_there_already_needs_no_space(
        self, server: HubServer, cache_dir: Path, model_bytes: bytes
    ) -> None:
        blobs = cache_dir / "models--owner--tiny-GGUF" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{sha256(model_bytes)}.incomplete").write_bytes(model_bytes[:-1000])
        assert fetch(REF, hub=Hub(endpoint=server.url, disk_free=lambda _: 1000)).path.is_file()

    @pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
    def test_a_disk_that_fills_up_underway(
        self, fetch_it: Fetch, cache_dir: Path, model_bytes: bytes
    ) -> None:
        blobs = cache_dir / "models--owner--tiny-GGUF" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{sha256(model_bytes)}.incomplete").symlink_to("/dev/full")
        with pytest.raises(HubError, match="the disk is full"):
            fetch_it(REF)

    def test_a_cache_that_cannot_be_written(self, fetch_it: Fetch, cache_dir: Path) -> None:
        cache_dir.write_text("a file where a directory should be")
        with pytest.raises(HubError, match="cannot write to the cache"):
            fetch_it(REF)


class TestNetwork:
    def test_no_connection_and_nothing_on_disk(self, cache_dir: Path) -> None:
        with pytest.raises(HubUnreachableError, match="cannot reach http://127"):
            fetch(REF, hub=Hub(endpoint="http://127.0.0.1:9"))

    def test_no_connection_but_a_file_on_disk(self, fetch_it: Fetch, cache_dir: Path) -> None:
        path, notes = fetch_it(REF).path, Notes()
        fetched = fetch(REF, hub=Hub(endpoint="http://127.0.0.1:9"), progress=notes)
        assert fetched.path == path
        assert "using what is on disk" in notes.texts[0]

    @pytest.mark.parametrize(
        "target",
        [
            "http://169.254.169.254/latest/meta-data",
            "http://127.0.0.1:1/x",
            "https://evil.example/x",
            "ftp://huggingface.co/x",
        ],
    )
    def test_a_redirect_away_from_the_hub_is_refused(
        self, fetch_it: Fetch, server: HubServer, cache_dir: Path, target: str
    ) -> None:
        server.redirects[FILE] = target
        with pytest.raises(HubError, match="not a host of the hub: refused"):
            fetch_it(REF)

    def test_a_redirect_within_the_hub_is_followed(
        self, fetch_it: Fetch, server: HubServer, model_bytes: bytes
    ) -> None:
        server.repos["owner/moved"] = {FILE: model_bytes}
        server.redirects[FILE] = f"{server.url}/{REPO}/resolve/main/elsewhere.gguf"
        server.repos[REPO]["elsewhere.gguf"] = model_bytes
        assert fetch_it(HubRef(REPO, file=FILE)).path.read_bytes() == model_bytes
