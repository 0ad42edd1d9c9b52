"""One resumable HTTP download into a partial file.

Why not `huggingface_hub.hf_hub_download`: since 2.x it writes to a file with a random name and
deletes it when the process fails or is interrupted, so a 5 GB download starts again from zero
(its pull request 4228 gives the reason, network file systems without locks). It also flushes only
every 10 MB, and Xet transfers make their own connections, past our check of the host.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import hf_raise_for_status

from llmserve.hub.progress import Progress

TIMEOUT_S = 30.0  # for the connection, and between two packets
MAX_ATTEMPTS = 6  # in a row that brought nothing
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class TransferError(OSError):
    """The connection failed `MAX_ATTEMPTS` times in a row; what arrived is in the file."""


def download(
    client: httpx2.Client,
    url: str,
    headers: Mapping[str, str],
    partial: Path,
    size_bytes: int | None,
    progress: Progress,
    *,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch what `partial` does not have yet. It may exist; it stays, whatever happens.

    `size_bytes` is the size of the whole file, None if it is unknown. Raises `TransferError`,
    `HfHubHTTPError` (an answer that a retry does not change) and `OSError` (of the disk).
    """
    attempt = 0
    with partial.open("ab") as file:
        if size_bytes is None or file.tell() > size_bytes:
            _empty(file)  # nothing to tell whether it is a part of what we fetch
        while size_bytes is None or file.tell() < size_bytes:
            before = file.tell()
            try:
                _append(client, url, headers, file, progress)
            except _Retry as error:
                attempt = 1 if file.tell() > before else attempt + 1
                if attempt >= MAX_ATTEMPTS:
                    raise TransferError(str(error)) from error
                wait(_back_off_s(attempt))
                continue
            if size_bytes is None:
                return
            if file.tell() <= before:
                raise TransferError("the server ended the file too early")


class _Retry(Exception):  # noqa: N818 (a decision, not an error)
    """This attempt failed in a way that another one may mend."""


def _append(
    client: httpx2.Client,
    url: str,
    headers: Mapping[str, str],
    file: BinaryIO,
    progress: Progress,
) -> None:
    """One request for the rest of the file, from where it ends."""
    have = file.tell()
    asked = {**headers, "Accept-Encoding": "identity"}  # or the range would be of packed bytes
    if have:
        asked["Range"] = f"bytes={have}-"
    try:
        with client.stream("GET", url, headers=asked, timeout=TIMEOUT_S) as response:
            if response.status_code in RETRY_STATUS:
                raise _Retry(f"the server answered {response.status_code}")
            hf_raise_for_status(response)
            if have and response.status_code != 206:  # it sends everything again
                _empty(file)
                progress.advance(-have)
            for chunk in response.iter_bytes():
                file.write(chunk)
                progress.advance(len(chunk))
    except httpx2.TransportError as error:
        raise _Retry(str(error) or type(error).__name__) from error
    finally:
        file.flush()


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _back_off_s(attempt: int) -> float:
    """Seconds before attempt number `attempt` + 1: at once at first, for a connection just cut."""
    return 0.0 if attempt == 1 else float(min(2 ** (attempt - 2), 8))
