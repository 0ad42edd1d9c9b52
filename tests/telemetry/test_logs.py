"""What lines look like: one each, valid, without control characters or the words of exceptions."""

import io
import json
import logging
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.telemetry import logs
from llmserve.telemetry.request_record import RequestRecord, set_current

SECRET = "canary-5d1f"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Output:
    """A logger and what a handler of ours made of its lines."""

    def __init__(self, log_format: logs.LogFormat, stream: io.StringIO | None = None) -> None:
        self.stream = stream or io.StringIO()
        self.log = logging.Logger("llmserve.test")
        self.log.addHandler(logs.make_handler(self.stream, log_format))

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().removesuffix("\n").split("\n")

    @property
    def last(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lines[-1])
        return found


@pytest.fixture
def record() -> Iterator[RequestRecord]:
    record = RequestRecord("req_1")
    set_current(record)
    yield record
    set_current(None)


def fail(cause: Exception | None = None) -> None:
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise KeyError(SECRET) from (cause or error)
    except KeyError as error:
        error.add_note(SECRET)
        raise


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("text", io.StringIO(), False),
    ],
)
def test_the_format_is_as_asked_or_as_suits_the_stream(
    log_format: logs.LogFormat, stream: io.StringIO, is_json: bool
) -> None:
    output = Output(log_format, stream)
    output.log.info("listening on %s", "http://127.0.0.1:1")
    assert output.lines[0].startswith("{") is is_json
    assert "listening on http://127.0.0.1:1" in output.lines[0]


def test_a_line_in_json() -> None:
    output = Output("json")
    output.log.warning("hello %d", 1, extra={"fields": {"status": 200, "route": "/a"}})
    line = output.last
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "warning", "logger": "llmserve.test", "event": "hello 1", "status": 200,
        "route": "/a",
    }  # fmt: skip


def test_colours_are_for_terminals_only() -> None:
    for stream, has_colours in ((io.StringIO(), False), (Terminal(), True)):
        output = Output("text", stream)
        output.log.info("hello", extra={"fields": {"a": 1}})
        assert ("\x1b[" in output.lines[0]) is has_colours


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_line_of_a_request_has_its_ids(log_format: logs.LogFormat, record: RequestRecord) -> None:
    output = Output(log_format)
    output.log.info("one")
    record.trace_id = "abc"
    output.log.info("two")
    set_current(None)
    output.log.info("three")
    assert [("req_1" in line, "abc" in line) for line in output.lines] == [
        (True, False),
        (True, True),
        (False, False),
    ]


@given(st.text(alphabet=st.characters()), st.text(alphabet=st.characters()))
def test_whatever_is_logged_is_one_line(message: str, value: str) -> None:
    for log_format in ("json", "text"):
        output = Output(log_format)
        output.log.info("%s", message, extra={"fields": {"model": value}})
        (line,) = output.stream.getvalue().splitlines()
        assert not {unicodedata.category(char) for char in line} & {"Cc", "Zl", "Zp", "Cs"}
        line.encode()


def test_json_gives_back_what_was_logged() -> None:
    output = Output("json")
    output.log.info("a\nb\x1b[31m\u2028é", extra={"fields": {"model": 'x"\n\ud800'}})
    assert output.last["event"] == "a\nb\x1b[31m\u2028é"
    assert output.last["model"] == 'x"\n\ud800'


def test_huge_values_are_cut() -> None:
    output = Output("json")
    output.log.info("%s", "a" * 1_000_000, extra={"fields": {"model": "b" * 1_000_000}})
    assert output.last["event"] == "a" * 2000 + "…"
    assert output.last["model"] == "b" * 2000 + "…"


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_within_a_request_an_exception_tells_its_place_only(
    log_format: logs.LogFormat, record: RequestRecord
) -> None:
    output = Output(log_format)
    for cause in (None, ExceptionGroup(SECRET, [OSError(SECRET), OSError(SECRET)])):
        with pytest.raises(KeyError):
            fail(cause)
        try:
            fail(cause)
        except KeyError:
            output.log.exception("a bug")
    text = output.stream.getvalue()
    assert SECRET not in text
    assert all(word in text for word in ("KeyError", "ValueError", "OSError", "test_logs.py"))
    if log_format == "text":
        others = [line for line in output.lines if "a bug" not in line]
        assert all(line.startswith("    ") for line in others), "no line looks like a new one"


def test_elsewhere_it_tells_what_was_wrong() -> None:
    output = Output("json")
    try:
        fail()
    except KeyError:
        output.log.exception("a bug")
    assert output.last["exception"].endswith(f"builtins.KeyError: '{SECRET}'")


def test_and_where_prompts_may_be_logged(record: RequestRecord) -> None:
    record.keeps_text = True
    output = Output("json")
    try:
        fail()
    except KeyError:
        output.log.exception("a bug")
    assert SECRET in output.last["exception"]


def test_asyncio_and_uvicorn_run_requests_too() -> None:
    for name in ("asyncio", "uvicorn.error"):
        output = Output("json")
        output.log.name = name
        try:
            fail()
        except KeyError as error:
            message = f"Task exception was never retrieved\nfuture: <Task exception={error!r}>"
            output.log.error(message if name == "asyncio" else "Exception in ASGI", exc_info=True)
        assert SECRET not in output.stream.getvalue()
        assert "KeyError" in output.last["exception"]


def test_an_exception_that_caused_itself_ends() -> None:
    output = Output("json")
    error = ValueError("x")
    error.__cause__ = error
    output.log.error("odd", exc_info=error)
    assert len(output.last["exception"]) <= 8000


def test_set_up_has_all_loggers_write_to_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    stream, level = io.StringIO(), root.level
    try:
        logs.set_up("info", "json", stream)
        logging.getLogger("llmserve.a").info("one")
        logging.getLogger("llmserve.a").debug("not this one")
        logging.getLogger("httpx2").info("nor this")
        assert json.loads(stream.getvalue())["event"] == "one"
    finally:
        root.setLevel(level)
        logging.captureWarnings(False)
        logging.getLogger("httpx2").setLevel(logging.NOTSET)
