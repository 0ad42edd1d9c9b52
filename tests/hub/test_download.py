"""The loop around one download, against a scripted server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from llmserve.hub.download import MAX_ATTEMPTS, TransferError, download
from llmserve.hub.progress import Silent

CONTENT = bytes(range(256)) * 40
URL = "http://hub/file"

Answer = Callable[[httpx2.Request], httpx2.Response]


class Broken(httpx2.SyncByteStream):
    """A body that ends in a broken connection."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self.content
        raise httpx2.ReadError("connection reset")


class Counting(Silent):
    def __init__(self) -> None:
        self.num_bytes = 0

    def advance(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes


class Fetch:
    """Runs `download` against one answer after the other; keeps what happened."""

    def __init__(self, partial: Path, *answers: Answer) -> None:
        self.partial = partial
        self.ranges: list[str | None] = []
        self.waits: list[float] = []
        self.progress = Counting()
        self._answers = iter(answers)

    def run(self, size_bytes: int | None = len(CONTENT)) -> bytes:
        with httpx2.Client(transport=httpx2.MockTransport(self._answer)) as client:
            download(
                client,
                URL,
                {},
                self.partial,
                size_bytes,
                self.progress,
                wait=self.waits.append,
            )
        return self.partial.read_bytes()

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.ranges.append(request.headers.get("range"))
        return next(self._answers)(request)


def whole(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, content=CONTENT)


def rest(request: httpx2.Request) -> httpx2.Response:
    first = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
    return httpx2.Response(206, content=CONTENT[first:])


def cut(num_bytes: int) -> Answer:
    def answer(request: httpx2.Request) -> httpx2.Response:
        first = int((request.headers.get("range") or "bytes=0-")[6:-1])
        body = Broken(CONTENT[first : first + num_bytes])
        return httpx2.Response(206 if first else 200, stream=body)

    return answer


def refuse(_: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("connection refused")


def status(code: int) -> Answer:
    return lambda request: httpx2.Response(code, request=request)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "x.incomplete"


def test_goes_on_from_each_break(partial: Path) -> None:
    fetch = Fetch(partial, cut(1000), cut(500), rest)
    assert fetch.run() == CONTENT
    assert fetch.ranges == [None, "bytes=1000-", "bytes=1500-"]
    assert fetch.waits == [0, 0]  # each attempt brought something
    assert fetch.progress.num_bytes == len(CONTENT)


def test_goes_on_from_an_earlier_process(partial: Path) -> None:
    partial.write_bytes(CONTENT[:777])
    fetch = Fetch(partial, rest)
    assert fetch.run() == CONTENT
    assert fetch.ranges == ["bytes=777-"]


def test_asks_for_nothing_when_everything_is_there(partial: Path) -> None:
    partial.write_bytes(CONTENT)
    assert Fetch(partial).run() == CONTENT


def test_starts_again_when_the_server_ignores_the_range(partial: Path) -> None:
    partial.write_bytes(b"x" * 777)
    fetch = Fetch(partial, whole)
    assert fetch.run() == CONTENT
    assert fetch.progress.num_bytes == len(CONTENT) - 777


@pytest.mark.parametrize("size_bytes", [None, len(CONTENT)])
def test_starts_again_over_what_cannot_be_a_part(partial: Path, size_bytes: int | None) -> None:
    partial.write_bytes(b"x" * (len(CONTENT) + 1))
    fetch = Fetch(partial, whole)
    assert fetch.run(size_bytes) == CONTENT
    assert fetch.ranges == [None]


def test_gives_up_after_attempts_that_bring_nothing_and_keeps_what_came(partial: Path) -> None:
    fetch = Fetch(partial, cut(1000), *[refuse] * MAX_ATTEMPTS)
    with pytest.raises(TransferError, match="connection refused"):
        fetch.run()
    assert partial.read_bytes() == CONTENT[:1000]
    assert fetch.waits == [0, 1, 2, 4, 8]


def test_waits_out_a_busy_server(partial: Path) -> None:
    fetch = Fetch(partial, status(503), status(429), whole)
    assert fetch.run() == CONTENT
    assert fetch.waits == [0, 1]


def test_no_second_attempt_at_what_will_not_change(partial: Path) -> None:
    with pytest.raises(HfHubHTTPError):
        Fetch(partial, status(403)).run()


def test_a_file_that_ends_early_without_an_error(partial: Path) -> None:
    def nothing(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=b"")

    with pytest.raises(TransferError, match="too early"):
        Fetch(partial, nothing).run()
