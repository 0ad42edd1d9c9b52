"""Which mode a request has, and which ones do not go with its input."""

import pytest

from llmserve.chat.mode import resolve_mode
from llmserve.core import Message, Mode, Request
from llmserve.errors import InvalidRequestError

MESSAGES = (Message("system", "S"), Message("user", "U"))


@pytest.mark.parametrize(
    ("request_", "default_mode", "has_template", "expected"),
    [
        (Request(prompt="x"), None, True, Mode.INSTRUCT),
        (Request(prompt="x"), None, False, Mode.COMPLETION),
        (Request(prompt="x"), Mode.COMPLETION, True, Mode.COMPLETION),
        (Request(prompt="x"), Mode.INSTRUCT, True, Mode.INSTRUCT),
        (Request(prompt="x"), Mode.CHAT, True, Mode.INSTRUCT),
        (Request(prompt="x"), Mode.CHAT, False, Mode.COMPLETION),
        (Request(prompt="x", mode=Mode.COMPLETION), Mode.INSTRUCT, True, Mode.COMPLETION),
        (Request(prompt="x", mode=Mode.INSTRUCT), Mode.COMPLETION, True, Mode.INSTRUCT),
        (Request(prompt="x", system="s"), None, True, Mode.INSTRUCT),
        (Request(messages=MESSAGES), None, True, Mode.CHAT),
        (Request(messages=MESSAGES), Mode.COMPLETION, True, Mode.CHAT),
        (Request(messages=MESSAGES, mode=Mode.CHAT), None, True, Mode.CHAT),
    ],
)
def test_the_mode(
    request_: Request, default_mode: Mode | None, has_template: bool, expected: Mode
) -> None:
    assert resolve_mode(request_, default_mode, has_template=has_template) is expected


@pytest.mark.parametrize(
    ("request_", "default_mode", "has_template", "param", "words"),
    [
        (Request(prompt="x", mode=Mode.CHAT), None, True, "mode", "needs messages"),
        (Request(messages=MESSAGES, mode=Mode.INSTRUCT), None, True, "mode", "needs prompt"),
        (Request(messages=MESSAGES, mode=Mode.COMPLETION), None, True, "mode", "needs prompt"),
        (Request(messages=MESSAGES, system="s"), None, True, "system", "mode is chat"),
        (
            Request(prompt="x", mode=Mode.COMPLETION, system="s"),
            None,
            True,
            "system",
            "mode is completion",
        ),
        (Request(prompt="x", system="s"), Mode.COMPLETION, True, "system", "mode instruct only"),
        (Request(prompt="x", system="s"), None, False, "system", "mode is completion"),
        (Request(messages=MESSAGES), None, False, "mode", "use mode completion"),
        (Request(prompt="x", mode=Mode.INSTRUCT), None, False, "mode", "no chat template"),
        (Request(prompt="x"), Mode.INSTRUCT, False, "mode", "no chat template"),
    ],
)
def test_a_mode_that_does_not_go_with_the_input(
    request_: Request, default_mode: Mode | None, has_template: bool, param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        resolve_mode(request_, default_mode, has_template=has_template)
    assert caught.value.param == param
