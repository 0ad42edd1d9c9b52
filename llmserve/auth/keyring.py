"""The keys of a running server: which request shows which, and what each has used.

Also whether a server without keys may listen where it is to listen: most servers of this kind
that are found open on the internet were exposed by accident. Lives on the event loop.
"""

import hmac
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from llmserve.auth.key_file import KeySources
from llmserve.auth.keys import Key, sha256
from llmserve.auth.rate_limit import Bucket
from llmserve.errors import AuthenticationError, ConfigError, RateLimitError

log = logging.getLogger(__name__)

Clock = Callable[[], float]
HeaderList = list[tuple[bytes, bytes]]


class Grant:
    """What one key may do, and what it does. It outlives changes of the key, and its removal."""

    def __init__(self, name: str, key: Key, clock: Clock) -> None:
        self.name = name
        self.num_active = 0
        self._clock = clock
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.change(key)

    def change(self, key: Key) -> None:
        """The same name with other limits, or another key: what it used stays used."""
        self.key = key
        self.namespace = key.namespace
        now_s = self._clock()
        self._requests = _resized(self._requests, key.requests_per_minute, now_s)
        self._tokens = _resized(self._tokens, key.tokens_per_minute, now_s)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One request, from its first byte to its last. Raises `RateLimitError`."""
        self._check_limits()
        if self._requests:
            self._requests.take(1, self._clock())
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1

    def charge(self, num_tokens: int) -> None:
        if self._tokens and num_tokens:
            self._tokens.take(num_tokens, self._clock())

    def rate_headers(self) -> HeaderList:
        """As OpenAI's, of the limits that there are."""
        headers: HeaderList = []
        now_s = self._clock()
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket:
                values = {
                    "limit": str(bucket.per_minute),
                    "remaining": str(max(0, math.floor(bucket.level(now_s)))),
                    "reset": f"{bucket.full_in_s(now_s):.3f}s",
                }
                headers += [
                    (f"x-ratelimit-{kind}-{what}".encode(), value.encode())
                    for kind, value in values.items()
                ]
        return headers

    def _check_limits(self) -> None:
        most = self.key.max_concurrency
        if most is not None and self.num_active >= most:
            raise RateLimitError(
                f"this key has {self.num_active} requests running; it may have {most} at a time",
                retry_after_s=1,
            )
        now_s = self._clock()
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket and (wait_s := bucket.wait_s(now_s)):
                retry_after_s = math.ceil(wait_s)
                raise RateLimitError(
                    f"this key has used up its {bucket.per_minute} {what} a minute; try again in"
                    f" {retry_after_s} s",
                    retry_after_s=retry_after_s,
                )


def _resized(bucket: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now_s)
    bucket.resize(per_minute, now_s)
    return bucket


class Keyring:
    """All keys. Without any the server is open to all."""

    def __init__(
        self,
        sources: KeySources = KeySources(),  # noqa: B008 - frozen
        keys: Mapping[str, Key] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """`keys` are what `sources` has."""
        self.sources = sources
        self._clock = clock
        self._grants: dict[str, Grant] = {}  # by the name of the key
        self._by_hash: dict[str, Grant] = {}
        self.replace(keys or {})

    @property
    def is_open(self) -> bool:
        return self.sources.is_empty

    def replace(self, keys: Mapping[str, Key]) -> None:
        """These are all keys from now on. Running requests are not disturbed."""
        if keys:
            log.info("API keys: %s", ", ".join(keys))
        for name, key in keys.items():
            if name in self._grants:
                self._grants[name].change(key)
            else:
                self._grants[name] = Grant(name, key, self._clock)
        self._grants = {name: self._grants[name] for name in keys}
        self._by_hash = {grant.key.sha256: grant for grant in self._grants.values()}

    def find(self, secret: bytes) -> Grant:
        """The grant of the key `secret`. Raises `AuthenticationError`.

        How long the look-up takes depends on the hash of what was shown. To learn from that, one
        would need keys whose hashes begin as one likes, and would learn a hash, not a key.
        """
        shown = sha256(secret)
        grant = self._by_hash.get(shown)
        if grant is None or not hmac.compare_digest(grant.key.sha256, shown):
            raise AuthenticationError("this API key is not valid here")
        return grant


def check_exposure(address: str, *, has_keys: bool, is_insecure_meant: bool) -> None:
    """`address` is what the socket is bound to: an IP address, never a name.

    Raises `ConfigError` if others can reach it, no key is asked for, and nothing says that
    this is meant.
    """
    if has_keys and is_insecure_meant:
        raise ConfigError("there are API keys, and --insecure-no-auth too: leave one of them out")
    if has_keys or _is_loopback(address):
        return
    if not is_insecure_meant:
        raise ConfigError(
            f"anyone who can reach {address} could use this server, because it has no API key: set"
            " LLMSERVE_API_KEYS, or api_keys_file in models.toml (llmserve keys new NAME --add"
            " FILE), or listen on 127.0.0.1; --insecure-no-auth starts it all the same"
        )
    log.warning("anyone who can reach %s can use this server: it has no API key", address)


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])  # without an interface's name
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
