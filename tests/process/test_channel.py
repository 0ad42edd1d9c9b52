"""Frames in any pieces, and what is none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.core import Delta, Request
from llmserve.process import channel
from llmserve.process.channel import ChannelError, Incoming, Outgoing
from llmserve.process.messages import FromChild, Generate, Reply, Result, ToChild

messages = st.one_of(
    st.builds(Result, st.integers(0, 99), st.text()),
    st.builds(Result, st.integers(0, 99), st.lists(st.integers(0, 1 << 31))),
    st.builds(Reply, st.integers(0, 99), st.builds(Delta, st.text())),
)


def incoming(kind: Any = FromChild) -> Incoming[Any]:
    return Incoming(kind)


@given(st.lists(messages), st.lists(st.integers(1, 50)))
def test_any_pieces_give_the_same_messages(sent: list[Any], sizes: list[int]) -> None:
    outgoing, received = Outgoing(), incoming()
    for message in sent:
        outgoing.push(message)
    data = outgoing.flush()
    found: list[Any] = []
    assert outgoing.flush() == b""
    for size in sizes:
        found += received.push(data[:size])
        data = data[size:]
    found += received.push(data)
    assert found == sent


def test_what_cannot_be_said_leaves_the_rest_as_it_is() -> None:
    outgoing = Outgoing()
    outgoing.push(Result(1, "before"))
    for value in (1 << 70, "\udc80", object()):
        with pytest.raises(ChannelError):
            outgoing.push(Generate(2, Request(template_variables={"x": value})))
    outgoing.push(Result(3, "after"))
    assert list(incoming().push(outgoing.flush())) == [Result(1, "before"), Result(3, "after")]


def test_a_frame_is_bounded_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    outgoing = Outgoing()
    outgoing.push(Result(1, "x" * 2000))
    data = outgoing.flush()
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 1000)
    with pytest.raises(ChannelError, match="more than 1000"):
        outgoing.push(Result(1, "x" * 2000))
    assert outgoing.flush() == b""
    with pytest.raises(ChannelError, match="a frame of"):
        list(incoming().push(data[:4]))


@pytest.mark.parametrize("body", [b"\xc1", b"\x81\xa4type\xa4None", b"\x93\x01\x02\x03", b""])
def test_nonsense_is_an_error(body: bytes) -> None:
    with pytest.raises(ChannelError, match="no message"):
        list(incoming().push(len(body).to_bytes(4, "little") + body))


def test_messages_of_the_other_direction_are_nonsense() -> None:
    outgoing = Outgoing()
    outgoing.push(Result(1, "x"))
    with pytest.raises(ChannelError, match="no message"):
        list(incoming(ToChild).push(outgoing.flush()))
