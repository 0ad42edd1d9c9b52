import pytest

from llmserve.auth.keys import Key, is_name, is_usable, new_secret, sha256


def test_a_new_key_has_256_bits_and_goes_into_a_header() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(is_usable(secret) for secret in secrets)
    # 43 characters of 6 bits each.
    assert {len(secret.removeprefix("sk-llmserve-")) for secret in secrets} == {43}


def test_nothing_shows_a_key_or_its_hash() -> None:
    key = Key(sha256(b"secret"))
    assert key.sha256 not in f"{key!r} {key} {[key]}"


def test_a_namespace_is_of_one_key_or_of_who_has_the_same_name() -> None:
    one, other = Key(sha256(b"1")), Key(sha256(b"2"))
    assert one.namespace != other.namespace
    assert one.namespace == Key(sha256(b"1"), admin=True).namespace
    assert one.sha256[:16] not in one.namespace  # it may be on disk
    team = Key(sha256(b"1"), cache_namespace="team")
    assert team.namespace == Key(sha256(b"2"), cache_namespace="team").namespace
    assert Key(sha256(b"1"), cache_namespace="x").namespace != team.namespace


def test_no_shared_namespace_is_that_of_a_key_or_of_a_server_without_keys() -> None:
    key = Key(sha256(b"1"))
    thief = Key(sha256(b"2"), cache_namespace=key.namespace.removeprefix("key:"))
    assert thief.namespace not in (key.namespace, "")


@pytest.mark.parametrize("text", ["alice", "a", "Team-2_b", "0", "x" * 64])
def test_names(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize("text", ["", "-a", "a b", "a.b", "ä", "x" * 65, 'a"', "a\n"])
def test_what_is_no_name(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize("text", ["", "a b", "a\n", "schlüssel", "a\x7f"])
def test_what_no_header_can_have(text: str) -> None:
    assert not is_usable(text)
