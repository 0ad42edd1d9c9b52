"""What a load tells while it runs."""

import asyncio
import logging

import pytest

from llmserve.pool.progress import FIRST_LINE_S, DownloadProgress, Progress, told


def test_what_is_done_of_what_is_being_done() -> None:
    load = Progress()
    load.begin("downloading")
    assert str(load) == "downloading"
    assert load.update(0.456)
    assert str(load) == "downloading, 46%"
    load.begin("loading")
    assert (load.doing, load.fraction) == ("loading", 0)
    load.is_cancelled = True
    assert not load.update(0.1)


def test_a_download_is_logged_and_seen_from_where_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    load = Progress()
    download = DownloadProgress("qwen", load)
    download.note("owner/repo: Q4_K_M")
    download.start("x.gguf", 8_000_000, 2_000_000)
    assert (load.doing, load.fraction) == ("downloading", 0.25)
    download.advance(4_000_000)
    assert load.fraction == 0.75
    download.advance(-6_000_000)  # to be fetched again
    assert load.fraction == 0
    download.advance(8_000_000)
    download.finish()
    assert caplog.messages == [
        "qwen: owner/repo: Q4_K_M",
        "qwen: downloading x.gguf, 8.0 MB, going on at 2.0 MB",
        "qwen: 8.0 MB are on disk",
    ]


def test_a_download_of_unknown_size() -> None:
    load = Progress()
    download = DownloadProgress("qwen", load)
    download.start("x.gguf", None, 0)
    download.advance(10)
    assert (load.doing, load.fraction) == ("downloading", 0)


def test_a_download_that_was_told_to_give_up_ends() -> None:
    load = Progress()
    download = DownloadProgress("qwen", load)
    download.start("x.gguf", 100, 0)
    load.is_cancelled = True
    with pytest.raises(asyncio.CancelledError):
        download.advance(10)


@pytest.mark.anyio
async def test_a_long_load_is_told_about_ever_less_often(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    waits: list[float] = []
    loop = asyncio.get_running_loop()
    real = loop.call_later
    done = asyncio.Event()

    def at_once(wait_s: float, *call: object) -> asyncio.TimerHandle:
        waits.append(wait_s)
        if len(waits) == 7:
            done.set()
            return real(3600, lambda: None)
        return real(0, *call)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", at_once)
    load = Progress()
    load.begin("loading")
    load.update(0.5)
    with told("qwen", load, FIRST_LINE_S):
        await done.wait()
    assert waits == [5, 10, 20, 40, 60, 60, 60]
    assert caplog.messages == ["qwen: loading, 50%, 0 s so far"] * 6


@pytest.mark.anyio
async def test_a_short_load_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with told("qwen", Progress(), 3600):
        pass
    timers = [
        handle
        for handle in asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        if not handle.cancelled()
    ]
    assert not timers
    assert not caplog.messages
