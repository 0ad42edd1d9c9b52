import stat
from pathlib import Path

import pytest

from llmserve.auth.key_file import KeySources, append_key, find_sources, parse_variable, read_file
from llmserve.auth.keys import Key, new_secret, sha256
from llmserve.config.schema import ServerConfig
from llmserve.errors import ConfigError

SECRET = "sk-0123456789abcdef0123"
OTHER = "sk-other-0123456789abcd"
HASH = sha256(SECRET.encode())
ALL = f"""
[keys.alice]
sha256 = "{HASH}"
max_concurrency = 4
requests_per_minute = 60
tokens_per_minute = 20_000
models = ["m"]
cache_namespace = "team"
admin = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.touch(0o600)
    return path


# -- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", [f"{SECRET},{OTHER}", f"\n{SECRET} ,\n\n {OTHER}\n"])
def test_bare_keys_have_names_by_their_place(text: str) -> None:
    keys = parse_variable("KEYS", text)
    assert [(name, key.sha256) for name, key in keys.items()] == [
        ("key1", HASH),
        ("key2", sha256(OTHER.encode())),
    ]


def test_keys_with_names() -> None:
    keys = parse_variable("KEYS", f"alice={SECRET}, {OTHER}")
    assert list(keys) == ["alice", "key2"]
    assert keys["alice"].sha256 == HASH


def test_they_may_do_everything() -> None:
    assert parse_variable("KEYS", SECRET) == {"key1": Key(HASH, admin=True)}


@pytest.mark.parametrize("secret", ["MDEyMzQ1Njc4OWFiY2RlZg==", "MDEyMzQ1Njc4OWFiY2RlZgo="])
def test_the_padding_of_a_key_is_part_of_it(secret: str) -> None:
    assert parse_variable("KEYS", secret)["key1"].sha256 == sha256(secret.encode())
    assert parse_variable("KEYS", f"a={secret}")["a"].sha256 == sha256(secret.encode())


@pytest.mark.parametrize("text", ["", " ", ",\n,"])
def test_an_empty_variable_is_none(text: str) -> None:
    assert parse_variable("KEYS", text) == {}
    assert find_sources(ServerConfig(), {"LLMSERVE_API_KEYS": text}).is_empty


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{SECRET} {SECRET}", "key 1: has a space"),
        (f"a={OTHER}, {SECRET}ü", "key 2: has a space or another character"),
        (f"not a name={SECRET}", "key 1: before = is not a valid name"),
        (f"a={SECRET},a={OTHER}", "key 2: a is the name of another"),
        (f"a={SECRET},b={SECRET}", "a and b are the same key"),
    ],
)
def test_a_broken_variable(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_variable("KEYS", text)
    assert problem in caught.value.message
    assert caught.value.message.startswith("KEYS: ")
    assert SECRET not in caught.value.message


def test_a_key_that_can_be_guessed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    parse_variable("KEYS", f"{SECRET},hunter2")
    assert "KEYS: key 2 is short enough to be guessed" in caplog.text
    assert "hunter2" not in caplog.text
    assert len(caplog.records) == 1


def test_another_variable() -> None:
    server = ServerConfig(api_keys_env="MY_KEYS")
    environment = {"MY_KEYS": SECRET, "LLMSERVE_API_KEYS": OTHER}
    (key,) = find_sources(server, environment).given.values()
    assert key.sha256 == HASH


def test_a_variable_that_is_named_must_be_there() -> None:
    # Some write the key itself there.
    with pytest.raises(ConfigError, match="api_keys_env") as caught:
        find_sources(ServerConfig(api_keys_env=SECRET), {"LLMSERVE_API_KEYS": OTHER})
    assert SECRET not in caught.value.message


# -- the file ------------------------------------------------------------------------------------


def test_everything_that_an_entry_can_have(file: Path) -> None:
    file.write_text(ALL)
    assert read_file(file) == {"alice": Key(HASH, 4, 60, 20_000, ("m",), "team", True)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x", "not valid TOML"),
        ("[key.a]", "unknown key 'key'; did you mean keys?"),
        ("keys = 1", "keys: Expected `object`, got `int`"),
        ("[keys.a]", "keys.a: Object missing required field `sha256`"),
        (f'[keys.a]\nsha256 = "{SECRET}"', "keys.a.sha256: Expected `str` matching"),
        (f'[keys.a]\nkey = "{SECRET}"', "keys.a: unknown key 'key'; known keys: sha256"),
        (f'[keys.a]\nsha256 = "{HASH}"\nmax_concurency = 1', "did you mean max_concurrency?"),
        (f'[keys.a]\nsha256 = "{HASH}"\ntokens_per_minute = 0', "keys.a.tokens_per_minute: "),
        (f'[keys.a]\nsha256 = "{HASH}"\ncache_namespace = "a b"', "keys.a.cache_namespace: "),
        (f'[keys."a b"]\nsha256 = "{HASH}"', "'a b' is not a valid name"),
        (f'[keys.a]\nsha256 = "{HASH}"\n[keys.b]\nsha256 = "{HASH}"', "a and b are the same key"),
    ],
)
def test_a_broken_file(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_file(file)
    assert problem in caught.value.message
    assert caught.value.message.startswith(f"{file}: ")
    assert SECRET not in caught.value.message


def test_both_sources(file: Path) -> None:
    file.write_text(ALL)
    sources = find_sources(ServerConfig(api_keys_file=file), {"LLMSERVE_API_KEYS": OTHER})
    assert list(sources.read({"m"})) == ["key1", "alice"]


@pytest.mark.parametrize(
    ("given", "text", "problem"),
    [
        ("", "", "no key; add one with `llmserve keys new NAME --add"),
        (f"alice={OTHER}", ALL, "keys.alice: a key of the environment has that name"),
        (f"bob={SECRET}", ALL, "bob and alice are the same key"),
        ("", ALL.replace('"m"', '"gone"'), "keys.alice.models: there is no model 'gone'"),
    ],
)
def test_what_does_not_go_together(file: Path, given: str, text: str, problem: str) -> None:
    file.write_text(text)
    sources = find_sources(ServerConfig(api_keys_file=file), {"LLMSERVE_API_KEYS": given})
    assert not sources.is_empty
    with pytest.raises(ConfigError, match=f"{file}: .*") as caught:
        sources.read({"m"})
    assert problem in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        KeySources(file=tmp_path / "none.toml").read({})


@pytest.mark.parametrize(("mode", "is_told"), [(0o600, False), (0o640, True), (0o622, True)])
def test_a_file_that_others_can_read_is_told(
    file: Path, mode: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(ALL)
    file.chmod(mode)
    KeySources(file=file).read({"m"})
    assert (f"chmod 600 {file}" in caplog.text) is is_told


# -- adding to it --------------------------------------------------------------------------------


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append_key(path, "alice", Key(HASH))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_file(path) == {"alice": Key(HASH)}


def test_what_is_there_stays(file: Path) -> None:
    file.write_text("# mine\r\n" + ALL.replace("\n", "\r\n"), newline="")
    before = file.read_bytes()
    append_key(file, "bob", Key(sha256(new_secret().encode())))
    assert file.read_bytes().startswith(before + b"\r\n[keys.bob]\r\nsha256 = ")
    assert list(read_file(file)) == ["alice", "bob"]


def test_every_suggestion_of_an_entry_is_right(file: Path) -> None:
    append_key(file, "alice", Key(HASH))
    file.write_text(file.read_text().replace("\n# ", "\n"))
    assert read_file(file) == {"alice": Key(HASH, 4, 60, 20_000, ("default",), "team", True)}


def test_a_name_that_is_taken(file: Path) -> None:
    file.write_text(ALL)
    with pytest.raises(ConfigError, match="'alice' is there already"):
        append_key(file, "alice", Key(sha256(OTHER.encode())))
    assert file.read_text() == ALL


def test_a_broken_file_is_not_added_to(file: Path) -> None:
    file.write_text("[keys.a]\n")
    with pytest.raises(ConfigError, match=r"keys\.a: Object missing"):
        append_key(file, "bob", Key(HASH))
    assert file.read_text() == "[keys.a]\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none" / "keys.toml"
    with pytest.raises(ConfigError, match=f"{path}: cannot be changed: No such file"):
        append_key(path, "alice", Key(HASH))
