"""Messages over a stream of bytes: a length of four bytes, then so much msgpack.

`Outgoing` and `Incoming` do no I/O. `Connection` puts them on an asyncio transport: all that is
sent in one turn of the loop leaves in one write, so that a step of a model wakes the other side
up once.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

Received = TypeVar("Received")

MAX_FRAME_BYTES = 1 << 30  # as much as the largest body that a config can allow
_HEAD_BYTES = 4


class ChannelError(Exception):
    """The other side sent an invalid message, or the message cannot be sent."""


class Outgoing:
    """Messages in, bytes out: push, then flush."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def push(self, message: Struct) -> None:
        """Raises `ChannelError` for what msgpack cannot say, and for a frame that is too long."""
        start = len(self._buffer)
        self._buffer += bytes(_HEAD_BYTES)
        try:
            self._encoder.encode_into(message, self._buffer, start + _HEAD_BYTES)
            size = len(self._buffer) - start - _HEAD_BYTES
            if size > MAX_FRAME_BYTES:
                raise ChannelError(f"has {size} bytes, more than {MAX_FRAME_BYTES}")
        except UnicodeEncodeError as error:
            del self._buffer[start:]
            raise ChannelError("is not valid Unicode: it has half of a surrogate pair") from error
        except (OverflowError, RecursionError, TypeError) as error:
            del self._buffer[start:]
            raise ChannelError(f"cannot be handed on: {error}") from error
        except ChannelError:
            del self._buffer[start:]
            raise
        self._buffer[start : start + _HEAD_BYTES] = size.to_bytes(_HEAD_BYTES, "little")

    def flush(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data


class Incoming(Generic[Received]):
    """Bytes in, messages out."""

    def __init__(self, kind: type[Received]) -> None:
        """`kind` may be a union of Structs with tags."""
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def push(self, data: bytes) -> Iterator[Received]:
        """The messages that are whole now. Raises `ChannelError`; nothing is of use then."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEAD_BYTES:
            begin = start + _HEAD_BYTES
            size = int.from_bytes(self._buffer[start:begin], "little")
            if size > MAX_FRAME_BYTES:
                raise ChannelError(f"a frame of {size} bytes")
            if len(self._buffer) - begin < size:
                break
            start = begin + size
            try:
                with memoryview(self._buffer) as view:
                    message = self._decoder.decode(view[begin:start])
            except (msgspec.MsgspecError, RecursionError) as error:
                raise ChannelError(f"no message: {error}") from error
            yield message
        del self._buffer[:start]


class Connection(asyncio.Protocol, Generic[Received]):
    """One end. `on_message` is called for each message, `on_lost` once, when the other is gone."""

    def __init__(
        self,
        kind: type[Received],
        on_message: Callable[[Received], None],
        on_lost: Callable[[ChannelError | None], None],
    ) -> None:
        """`on_lost` gets the reason if the other side sent nonsense."""
        self._incoming = Incoming(kind)
        self._outgoing = Outgoing()
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._error: ChannelError | None = None
        self._is_flushing = False
        self._loop = asyncio.get_running_loop()

    def send(self, message: Struct) -> None:
        """Soon; dropped, if the other side is gone. Raises `ChannelError`."""
        self._outgoing.push(message)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send now what there is to send, or once there is a connection."""
        self._is_flushing = False
        if self._transport is None:
            return
        data = self._outgoing.flush()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Once all is written. `on_lost` is called then."""
        self.flush()
        if self._transport:
            self._transport.close()

    # -- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._error:
            return
        try:
            for message in self._incoming.push(data):
                self._on_message(message)
        except ChannelError as error:
            self._error = error
            assert self._transport
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost(self._error)
