from typing import Any

import pytest

from llmserve.auth.key_file import KeySources
from llmserve.auth.keyring import Grant, Keyring
from llmserve.auth.keys import Key, sha256
from llmserve.errors import AuthenticationError, RateLimitError

ALICE, BOB = Key(sha256(b"alice's")), Key(sha256(b"bob's"), admin=True)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make(clock: Clock | None = None, **keys: Key) -> Keyring:
    return Keyring(KeySources(keys), keys, clock or Clock())


def limited(clock: Clock, **limits: Any) -> Grant:
    return make(clock, alice=Key(sha256(b"x"), **limits)).find(b"x")


def test_everybody_has_the_grant_of_the_own_key() -> None:
    keyring = make(alice=ALICE, bob=BOB)
    assert not keyring.is_open
    assert keyring.find(b"alice's").key is ALICE
    assert keyring.find(b"bob's").name == "bob"


@pytest.mark.parametrize("shown", [b"", b"alice", b"alice's ", b"\xff", ALICE.sha256.encode()])
def test_nothing_else_opens(shown: bytes) -> None:
    with pytest.raises(AuthenticationError) as caught:
        make(alice=ALICE).find(shown)
    assert not shown or shown.decode("latin-1") not in caught.value.message


def test_without_sources_it_is_open() -> None:
    assert Keyring().is_open


def test_a_grant_outlives_changes_of_its_key() -> None:
    clock = Clock()
    keyring = make(clock, alice=Key(sha256(b"1"), tokens_per_minute=60))
    grant = keyring.find(b"1")
    with grant.admitted():
        grant.charge(50)
        keyring.replace({"alice": Key(sha256(b"2"), tokens_per_minute=600), "bob": BOB})
        assert keyring.find(b"2") is grant
        assert grant.num_active == 1
        assert (b"x-ratelimit-remaining-tokens", b"550") in grant.rate_headers()
    for gone in (b"1", b"alice's"):
        with pytest.raises(AuthenticationError):
            keyring.find(gone)


def test_a_removed_key_opens_no_more_but_its_requests_end_well() -> None:
    keyring = make(alice=ALICE, bob=BOB)
    grant = keyring.find(b"alice's")
    with grant.admitted():
        keyring.replace({"bob": BOB})
        with pytest.raises(AuthenticationError):
            keyring.find(b"alice's")
    assert grant.num_active == 0


def test_so_many_at_a_time() -> None:
    grant = limited(Clock(), max_concurrency=2)
    with grant.admitted(), grant.admitted():
        with pytest.raises(RateLimitError, match="2 at a time") as caught, grant.admitted():
            pass
        assert caught.value.retry_after_s == 1
    with pytest.raises(ZeroDivisionError), grant.admitted():
        _ = 1 / 0
    assert grant.num_active == 0


def test_so_many_requests_a_minute() -> None:
    clock = Clock()
    grant = limited(clock, requests_per_minute=2)
    for _ in range(2):
        with grant.admitted():
            pass
    with pytest.raises(RateLimitError, match="2 requests a minute") as caught, grant.admitted():
        pass
    assert caught.value.retry_after_s == 30
    assert grant.num_active == 0
    clock.now_s += 30
    with grant.admitted():
        pass


def test_so_many_tokens_a_minute() -> None:
    clock = Clock()
    grant = limited(clock, tokens_per_minute=60)
    with grant.admitted():
        grant.charge(100)  # it goes on, as nobody could foresee that
        grant.charge(0)
    with pytest.raises(RateLimitError, match="60 tokens a minute") as caught, grant.admitted():
        pass
    assert caught.value.retry_after_s == 41
    clock.now_s += 41
    with grant.admitted():
        pass


def test_a_refused_request_is_no_request() -> None:
    grant = limited(Clock(), tokens_per_minute=10, requests_per_minute=5)
    grant.charge(20)
    with pytest.raises(RateLimitError), grant.admitted():
        pass
    assert (b"x-ratelimit-remaining-requests", b"5") in grant.rate_headers()


def test_headers_are_of_the_limits_that_there_are() -> None:
    assert limited(Clock(), max_concurrency=2).rate_headers() == []
    grant = limited(Clock(), tokens_per_minute=60)
    grant.charge(90)
    assert grant.rate_headers() == [
        (b"x-ratelimit-limit-tokens", b"60"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", b"90.000s"),
    ]
