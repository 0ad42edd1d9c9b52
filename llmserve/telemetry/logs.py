"""What log lines look like, whichever logger writes them: the one place that knows structlog.

- Modules log through `logging`; structlog renders what arrives. Further facts of a line come as
  `extra={"fields": {...}}`.
- A line that a request caused has its id.
- One line stays one line, and none has control characters: JSON escapes them, text does here.
- What an exception says may quote the request; see `outline`.
"""

import logging
import re
import sys
from typing import Literal, TextIO, TypeAlias

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from llmserve.telemetry.request_record import MAX_TEXT_LEN, current_record
from llmserve.telemetry.traceback import outline

LogFormat: TypeAlias = Literal["auto", "json", "text"]

_HEAD = ("timestamp", "level", "logger", "event")
# C0, DEL and C1; what ends a line or turns it around in Unicode; halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def set_up(level: str, log_format: LogFormat = "auto", stream: TextIO | None = None) -> None:
    """All loggers of the process write to `stream`, standard error unless given.

    `auto` is text on a terminal and JSON elsewhere.
    """
    handler = make_handler(stream or sys.stderr, log_format)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if level == "info":  # a line for every request to a provider or the hub
        logging.getLogger("httpx2").setLevel(logging.WARNING)


def make_handler(stream: TextIO, log_format: LogFormat) -> logging.Handler:
    is_terminal = stream.isatty()
    is_text = is_terminal if log_format == "auto" else log_format == "text"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(is_text=is_text, has_colors=is_terminal))
    return handler


def _formatter(*, is_text: bool, has_colors: bool) -> logging.Formatter:
    renderers: list[Processor]
    if is_text:
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(
            colors=has_colors, exception_formatter=plain, sort_keys=False, pad_event_to=0
        )
        renderers = [_escape, renderer]
    else:
        renderers = [structlog.processors.JSONRenderer()]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
        ],
        processors=[_add_facts, _tell_exception, _cut, *renderers],
    )


def _add_facts(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """In their order: when, what, whose, and the rest."""
    source = event.pop("_record")
    del event["_from_structlog"]
    if source.name == "asyncio":  # the lines that follow show objects, exceptions among them
        event["event"] = event["event"].partition("\n")[0]
    line = {key: event.pop(key) for key in _HEAD}
    if record := current_record():
        line["request_id"] = record.request_id
        if record.trace_id:
            line["trace_id"] = record.trace_id
    return {**line, **getattr(source, "fields", {}), **event}


def _tell_exception(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    exc_info = event.pop("exc_info", None)
    if isinstance(exc_info, tuple) and exc_info[1]:
        event["exception"] = outline(exc_info[1], event["logger"])
    return event


def _cut(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > MAX_TEXT_LEN and key != "exception":
            event[key] = value[:MAX_TEXT_LEN] + "…"
    return event


def _escape(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """For a terminal; the lines of a traceback are indented, so that none looks like another."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(f"    {_printable(line)}" for line in value.split("\n"))
        elif isinstance(value, str):
            event[key] = _printable(value)
    return event


def _printable(text: str) -> str:
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
