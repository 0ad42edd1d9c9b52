import socket

import pytest

from llmserve.api.server import listen
from llmserve.errors import ConfigError


def test_accepted_connections_do_not_delay_small_answers() -> None:
    with listen("127.0.0.1", 0) as listener:
        # asyncio sets TCP_NODELAY where it sees this protocol.
        assert listener.proto == socket.IPPROTO_TCP


def test_a_client_that_vanishes_is_noticed() -> None:
    with listen("127.0.0.1", 0) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_an_address_in_use_is_told_with_the_fix() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: .*in use; choose another --host"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["256.256.256.256", "no such host", "a" * 300, "192.0.2.1", "::z"])
def test_an_address_that_cannot_be_is_told(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen(host, 0)


def test_a_socket_that_cannot_listen_is_closed() -> None:
    with pytest.raises(ConfigError):
        listen("192.0.2.1", 0)  # a leak would be a ResourceWarning, which is an error


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ipv6() -> None:
    with listen("::1", 0) as listener:
        assert listener.getsockname()[0] == "::1"
