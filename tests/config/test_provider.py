"""`[models.NAME]` with `remote`: what loads, and what each refusal says."""

from pathlib import Path

import pytest

from llmserve.config.load import load_config
from llmserve.config.provider import Provider, Retry, is_private
from llmserve.config.schema import Config
from llmserve.errors import ConfigError

CLOUD = '[models.cloud]\nremote = "https://provider.example/v1"\n'
LOCAL = '[models.local]\npath = "x"\n'


def load(directory: Path, text: str) -> Config:
    path = directory / "models.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_all_keys(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [models.cloud]
        remote = ["https://a.example/v1/", "http://10.0.0.2:8080/v1"]
        protocol = "openai"
        remote_model = "big-model"
        api_key_env = "PROVIDER_KEY"
        headers = { x-team = "a", x-other = "b" }
        timeout = "30s"
        max_concurrency = 8
        max_queue = 0
        retry = { attempts = 5, max_wait = "20s" }
        extra_parameters = ["top_k", "min_p"]
        allow_insecure = true
        aliases = ["default"]
        default_mode = "chat"
        fallback = ["small"]

        [models.local]
        path = "x.gguf"
        aliases = ["small"]
        """,
    )
    cloud, local = config.models
    assert cloud.remote
    assert cloud.remote == Provider(
        urls=("https://a.example/v1", "http://10.0.0.2:8080/v1"),
        remote_model="big-model",
        api_key_env="PROVIDER_KEY",
        headers=cloud.remote.headers,
        timeout=cloud.remote.timeout,
        retry=Retry(attempts=5, max_wait=cloud.remote.retry.max_wait),
        extra_parameters=("top_k", "min_p"),
        allow_insecure=True,
    )
    assert dict(cloud.remote.headers) == {"x-team": "a", "x-other": "b"}
    assert (float(cloud.remote.timeout), float(cloud.remote.retry.max_wait)) == (30, 20)
    assert (cloud.max_concurrency, cloud.max_queue) == (8, 0)
    assert cloud.source == "remote https://a.example/v1, http://10.0.0.2:8080/v1"
    assert hash(cloud) == hash(config.default)
    assert config.chain(cloud) == [cloud, local]
    assert config.chain(local) == [local]
    assert local.remote is None


def test_defaults(tmp_path: Path) -> None:
    (cloud,) = load(tmp_path, CLOUD).models
    assert cloud.remote
    assert cloud.remote == Provider(urls=("https://provider.example/v1",))
    assert cloud.remote.retry.attempts == 3


def test_stand_ins_of_stand_ins_come_after_them_and_nobody_twice(tmp_path: Path) -> None:
    text = ""
    for name, fallback in {"a": ["b", "c"], "b": ["d"], "c": ["d", "e"], "d": [], "e": []}.items():
        text += f'[models.{name}]\npath = "{name}"\nfallback = {fallback}\n'
    config = load(tmp_path, text)
    assert [spec.name for spec in config.chain(config.models[0])] == ["a", "b", "d", "c", "e"]


REFUSALS = [
    # addresses
    ('remote = ""', ["remote: '' is not a valid address", "https://"]),
    ("remote = []", ["remote: no address"]),
    ("remote = 1", ["remote: give an address"]),
    ('remote = ["https://a.example", 1]', ["remote: give an address"]),
    ('remote = ["https://a.example", "https://a.example/"]', ["remote: has an address twice"]),
    ('remote = "provider.example/v1"', ["is not a valid address; write it like 'https://"]),
    ('remote = "ftp://a.example"', ["'ftp://a.example' is not a valid address"]),
    ('remote = "https://a.example:99999"', ["is not a valid address", "ort"]),
    ('remote = "https://[::1"', ["is not a valid address", "IPv6"]),
    ('remote = "https://a.example/v1?x=1"', ["leave out what follows ?"]),
    ('remote = "https://a.example/a b"', ["spaces"]),
    ('remote = "https://me:secret-1@a.example"', ["user name or password", "api_key_env"]),
    # encryption
    ('remote = "http://provider.example/v1"', ["unencrypted", "https", "allow_insecure = true"]),
    ('remote = "http://8.8.8.8/v1"', ["unencrypted"]),
    ('remote = ["https://a.example", "http://b.example"]', ["'http://b.example' would send"]),
    # keys of the provider
    ('protocol = "grpc"', ["cloud.protocol: ", "'grpc'", "openai, anthropic"]),
    ('api_key_env = "secret-1"', ["cloud.api_key_env: is not the name", "into that variable"]),
    ("timeout = 5", ["cloud.timeout: 5 is not a valid duration"]),
    ('timeout = "0s"', ["cloud.timeout: must be more than 0"]),
    ("retry = { attempts = 0 }", ["cloud.retry.attempts: ", ">= 1"]),
    ("retry = { atempts = 2 }", ["cloud.retry: unknown key 'atempts'", "did you mean attempts?"]),
    ('headers = "x"', ["cloud.headers: Expected a table of strings"]),
    ("headers = { x = 1 }", ["cloud.headers: Expected a table of strings"]),
    ('headers = { "x y" = "1" }', ["cloud.headers: 'x y' is not a valid header"]),
    (
        'headers = { x = "a\\r\\nb: secret-1" }',
        ["cloud.headers: 'x' is not a valid header, or its value"],
    ),
    ('headers = { Authorization = "secret-1" }', ["'Authorization' is a key", "api_key_env"]),
    ('headers = { X-Api-Key = "secret-1" }', ["'X-Api-Key' is a key", "api_key_env"]),
    ('headers = { host = "x" }', ["'host' is set by llmserve"]),
    ('extra_parameters = ["top_q"]', ["cloud.extra_parameters[0]: ", "'top_q'", "top_k, min_p"]),
    (
        'protocol = "anthropic"\nextra_parameters = ["top_k"]',
        ["cloud.extra_parameters: only goes with protocol 'openai'"],
    ),
    ("remote_mode = 1", ["unknown key 'remote_mode'", "did you mean remote_model?"]),
    # keys of local models
    ("threads = 2", ["cloud.threads: does not go with remote; leave it out"]),
    ('keep_alive = "5m"', ["cloud.keep_alive: does not go with remote"]),
    ("context_length = 100", ["cloud.context_length: does not go with remote"]),
    ('path = "x"', ["models.cloud: has path and remote; give exactly one of"]),
    # fallback
    ('fallback = ["nobody"]', ["no model 'nobody'; there are: cloud, local, small"]),
    ('fallback = ["cloud"]', ["cloud.fallback: leads back to itself (cloud -> cloud); remove"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), REFUSALS)
def test_a_refusal_names_file_key_and_fix_and_never_a_key(
    tmp_path: Path, line: str, words: list[str]
) -> None:
    own = "" if line.startswith("remote ") else 'remote = "https://provider.example/v1"\n'
    text = f'{LOCAL}aliases = ["small"]\n[models.cloud]\n{own}{line}'
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = caught.value.message
    assert message.startswith(f"{tmp_path / 'models.toml'}: models.cloud")
    for word in words:
        assert word in message
    assert "secret-1" not in message


@pytest.mark.parametrize("key", ["protocol", "remote_model", "api_key_env", "retry", "timeout"])
def test_keys_of_a_provider_need_one(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.local\.{key}: only goes with remote"):
        load(tmp_path, f'{LOCAL}{key} = "x"')


def test_a_cycle_of_fallbacks_through_aliases_and_local_models(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"local\.fallback: .*\(local -> cloud -> local\)"):
        load(tmp_path, f'{LOCAL}fallback = ["c"]\n{CLOUD}aliases = ["c"]\nfallback = ["local"]')


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True),
        ("api.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("192.168.1.1", True),
        ("172.31.0.1", True),
        ("fd00::1", True),
        ("172.32.0.1", False),
        ("8.8.8.8", False),
        ("2001:4860::1", False),
        ("nas.local", False),
        ("localhost.example", False),
        ("0x7f.1", False),
    ],
)
def test_private_hosts(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_http_to_a_private_address_needs_no_permission(tmp_path: Path) -> None:
    for url in ("http://localhost:1/v1", "http://[::1]:8080", "http://192.168.0.7/v1"):
        assert load(tmp_path, f'[models.a]\nremote = "{url}"').models[0].remote
    insecure = '[models.a]\nremote = "http://nas.local/v1"\nallow_insecure = true'
    assert load(tmp_path, insecure).models[0].remote
