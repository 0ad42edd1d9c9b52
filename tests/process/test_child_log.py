"""What the process of a model tells of its bugs."""

import asyncio
import contextvars
import logging

from llmserve.process.child import Child, _ToServer
from llmserve.process.messages import FromChild, LogRecord
from llmserve.telemetry.request_record import RequestRecord, set_current

CANARY = "canary-90ce"


class Recorder(Child):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[FromChild] = []

    def send(self, message: FromChild) -> None:
        self.sent.append(message)


def bug_of(*, in_request: bool) -> LogRecord:
    """What the server is told of one."""

    async def main() -> FromChild:
        child = Recorder()
        log = logging.Logger("llmserve.engine.test")
        log.addHandler(_ToServer(child, asyncio.get_running_loop()))
        if in_request:
            set_current(RequestRecord(""))
        try:
            raise ValueError(CANARY)
        except ValueError:
            log.exception("a bug ended %s", "it")
        await asyncio.sleep(0)
        (only,) = child.sent
        return only

    message = contextvars.Context().run(asyncio.run, main())
    assert isinstance(message, LogRecord)
    return message


def test_in_a_request_nothing_that_may_quote_it() -> None:
    message = bug_of(in_request=True)
    assert message.text == "a bug ended it"
    assert CANARY not in message.exception
    assert "ValueError" in message.exception
    assert "test_child_log.py" in message.exception


def test_elsewhere_all_of_it() -> None:
    assert bug_of(in_request=False).exception.endswith(f"ValueError: {CANARY}")
