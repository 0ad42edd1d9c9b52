"""An exception for the log: like Python's own, but without what may quote a request."""

import traceback
from collections.abc import Iterator

from llmserve.telemetry.request_record import current_record

_MAX_LEN = 8000
_MAX_DEPTH = 8
# They log the exceptions of whatever they run, at times when no request is current.
_RUNNERS = ("asyncio", "uvicorn.error")


def outline(error: BaseException, logger_name: str) -> str:
    """Within a request only types and places, unless the operator wants to see prompts."""
    record = current_record()
    may_quote = record is not None or logger_name in _RUNNERS
    is_told = not may_quote or bool(record and record.keeps_text)
    return "".join(_lines(error, is_told=is_told))[-_MAX_LEN:]


def _lines(error: BaseException, *, is_told: bool, depth: int = 0) -> Iterator[str]:
    """The cause first."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth < _MAX_DEPTH:
        yield from _lines(cause, is_told=is_told, depth=depth + 1)
        yield "\n\nwhich led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    words = str(error) if is_told else "(not logged: it may quote the request)"
    yield f"{type(error).__module__}.{type(error).__qualname__}: {words}"
    if isinstance(error, BaseExceptionGroup) and depth < _MAX_DEPTH:
        for each in error.exceptions:
            yield "\n\none of them:\n\n"
            yield from _lines(each, is_told=is_told, depth=depth + 1)
