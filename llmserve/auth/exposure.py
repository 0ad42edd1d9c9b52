"""Whether a server that asks for no key may listen where it is to listen.

Most servers of this kind that are found open on the internet were exposed by accident.
"""

import ipaddress
import logging

from llmserve.errors import ConfigError

log = logging.getLogger(__name__)


def check_exposure(address: str, *, has_keys: bool, is_insecure_meant: bool) -> None:
    """`address` is what the socket is bound to: an IP address, never a name.

    Raises `ConfigError` if others can reach it, nobody is asked for a key, and nobody said that
    this is meant.
    """
    if has_keys and is_insecure_meant:
        raise ConfigError("there are API keys, and --insecure-no-auth too: leave one of them out")
    if has_keys or _is_loopback(address):
        return
    if not is_insecure_meant:
        raise ConfigError(
            f"whoever can reach {address} could use this server, for there is no API key: set"
            " LLMSERVE_API_KEYS, or api_keys_file in models.toml (llmserve keys new NAME --add"
            " FILE), or listen on 127.0.0.1; --insecure-no-auth starts it all the same"
        )
    log.warning("whoever can reach %s can use this server: there is no API key", address)


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])  # without an interface's name
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
