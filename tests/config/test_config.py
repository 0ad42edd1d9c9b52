"""models.toml: what loads, and that every refusal names the file, the key and the fix."""

from pathlib import Path

import pytest

from llmserve.config.load import load_config
from llmserve.config.schema import Config
from llmserve.core import Mode
from llmserve.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


def load(directory: Path, text: str) -> Config:
    path = directory / "models.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_the_repositorys_own_models_toml_loads() -> None:
    config = load_config(REPOSITORY / "models.toml")
    assert config.names["fine-tuned-llm-model"] is config.default
    assert config.default.name == "smollm2"
    assert config.server.host == "127.0.0.1"


def test_all_keys(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [server]
        host = "::1"
        port = 9000
        max_body_bytes = 4096
        load_wait_s = 5
        shutdown_grace_s = 0
        keep_alive_s = 0.5

        [models.local]
        path = "weights/my.gguf"
        aliases = ["mine", "a.b_c:d/e-f"]
        context_length = 4096
        max_concurrency = 8
        max_queue = 0
        max_queue_tokens = 5000
        queue_timeout = "30s"
        target_itl = "80ms"
        threads = 2
        default_mode = "chat"

        [models.packaged]
        package = "dist"
        file = "dist/x.gguf"
        """,
    )
    assert config.path == tmp_path / "models.toml"
    assert (config.server.host, config.server.port) == ("::1", 9000)
    assert config.server.load_wait_s == 5.0
    local, packaged = config.models
    assert (local.name, packaged.name) == ("local", "packaged")
    assert local.aliases == ("mine", "a.b_c:d/e-f")
    assert (local.context_length, local.max_concurrency, local.max_queue) == (4096, 8, 0)
    assert (local.max_queue_tokens, local.queue_timeout, local.target_itl) == (5000, 30.0, 0.08)
    assert (packaged.queue_timeout, packaged.target_itl) == (None, 0.15)
    assert (local.threads, local.default_mode) == (2, Mode.CHAT)
    assert (packaged.package, packaged.file, packaged.path) == ("dist", "dist/x.gguf", None)
    assert set(config.names) == {"local", "packaged", "mine", "a.b_c:d/e-f"}
    assert config.names["mine"] is local
    assert config.default is local
    assert local.source == f"path {tmp_path / 'weights/my.gguf'}"
    assert packaged.source == "package dist"


def test_a_path_is_relative_to_the_file_wherever_the_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/models.toml").write_text('[models.a]\npath = "w/x.gguf"')
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("conf/models.toml"))
    assert config.path == tmp_path / "conf/models.toml"
    assert config.models[0].path == tmp_path / "conf/w/x.gguf"


def test_absolute_and_home_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load(
        tmp_path, '[models.a]\npath = "/opt/x.gguf"\n[models.b]\npath = "~/models/x.gguf"'
    )
    assert [spec.path for spec in config.models] == [
        Path("/opt/x.gguf"),
        tmp_path / "home/models/x.gguf",
    ]


def test_the_default_is_the_model_called_default_else_the_first(tmp_path: Path) -> None:
    two = '[models.a]\npath = "a"\n[models.b]\npath = "b"\n'
    assert load(tmp_path, two).default.name == "a"
    assert load(tmp_path, two + 'aliases = ["default"]').default.name == "b"
    assert load(tmp_path, two + '[models.default]\npath = "c"').default.name == "default"


MODEL = '[models.a]\npath = "x"\n'

REFUSALS = [
    # the file; the words that its message must have: the key first, then the fix
    ("", ["no model", "add a [models.NAME] table"]),
    ("[server]\n", ["no model", "[models.NAME]"]),
    ("[models.a", ["not valid TOML", "declaration"]),
    # unknown keys
    ("[model.a]\n" + MODEL, ["unknown key 'model'", "did you mean models?"]),
    ("[server]\nprot = 1\n" + MODEL, ["server: unknown key 'prot'", "did you mean port?"]),
    (MODEL + "threds = 1", ["models.a: unknown key 'threds'", "did you mean threads?"]),
    (MODEL + "zzz = 1", ["models.a: unknown key 'zzz'", "known keys:", "context_length"]),
    ("[server]\nzzz = 1\n" + MODEL, ["server: unknown key 'zzz'", "known keys:", "port"]),
    (MODEL + 'name = "b"', ["models.a: unknown key 'name'", "table"]),
    (MODEL + 'name = ""', ["models.a: unknown key 'name'"]),
    # wrong types and ranges
    ('[server]\nport = "80"\n' + MODEL, ["server.port: ", "`int`", "`str`"]),
    ("[server]\nport = 65536\n" + MODEL, ["server.port: ", "65535"]),
    ("[server]\nload_wait_s = nan\n" + MODEL, ["server.load_wait_s: ", ">= 0"]),
    ("[server]\nload_wait_s = inf\n" + MODEL, ["server.load_wait_s: ", "86400"]),
    ("[server]\nkeep_alive_s = 0\n" + MODEL, ["server.keep_alive_s: ", "> 0"]),
    ('[server]\nhost = ""\n' + MODEL, ["server.host: ", "length >= 1"]),
    (
        '[server]\nallowed_hosts = ["http://a"]\n' + MODEL,
        ["server.allowed_hosts[0]", "'http://a' is not a valid host name", "such as 'llm.example'"],
    ),
    (
        '[server]\nallowed_origins = ["a.example"]\n' + MODEL,
        [
            "server.allowed_origins[0]",
            "'a.example' is not a valid origin",
            "such as 'https://app.example'",
        ],
    ),
    ('[server]\nidle_timeout = "0s"\n' + MODEL, ["server.idle_timeout: ", "above 0", "'30s'"]),
    ("[server]\nmax_connections = 0\n" + MODEL, ["server.max_connections: ", ">= 1"]),
    ("server = 1\n" + MODEL, ["server: ", "`int`"]),
    ("models = 1", ["models: ", "`int`"]),
    ("[models]\na = 1", ["models.a: ", "`int`"]),
    ("[models.a]\npath = 1", ["models.a.path: ", "`str", "`int`"]),
    ('[models.a]\npath = ""', ["models.a.path: ", "length >= 1"]),
    (MODEL + 'aliases = "b"', ["models.a.aliases: ", "`array`", "`str`"]),
    (MODEL + 'aliases = ["b", 1]', ["models.a.aliases[1]: ", "`str`", "`int`"]),
    (MODEL + "context_length = 0", ["models.a.context_length: ", ">= 1"]),
    (MODEL + "max_concurrency = 256", ["models.a.max_concurrency: ", "<= 255"]),
    (MODEL + "max_queue = 1.5", ["models.a.max_queue: ", "`int`", "`float`"]),
    (MODEL + "max_queue_tokens = 0", ["models.a.max_queue_tokens: ", ">= 1"]),
    (MODEL + "queue_timeout = 30", ["models.a.queue_timeout", "30", "such as '10m'"]),
    (MODEL + 'target_itl = "0.1"', ["models.a.target_itl", "'0.1' is not a valid duration"]),
    (MODEL + "threads = true", ["models.a.threads: ", "`int", "`bool`"]),
    (
        MODEL + 'default_mode = "instuct"',
        ["models.a.default_mode: ", "'instuct'", "completion, instruct, chat"],
    ),
    # sources
    ("[models.a]\n", ["models.a: has no source", "give exactly one of package, path"]),
    (MODEL + 'package = "p"', ["models.a: has package and path", "give exactly one of"]),
    ('[models.a]\npackage = "p"', ["models.a.file: missing", "inside the package"]),
    ('[models.a]\npackage = ""\nfile = "f"', ["models.a.package: ", "length >= 1"]),
    ('[models.a]\npackage = "p"\nfile = ""', ["models.a.file: ", "length >= 1"]),
    (MODEL + 'file = "f"', ["models.a.file: only goes with package"]),
    ('[models.a]\nfile = "f"', ["models.a: has no source"]),
    ('[models.a]\npath = "~no-such-user/x"', ["models.a.path: ", "home directory"]),
    # names
    ('[models."a b"]\npath = "x"', ["models.a b: 'a b' is not a valid model name", "use letters"]),
    ('[models."../x"]\npath = "x"', ["'../x' is not a valid model name"]),
    (MODEL + 'aliases = [""]', ["models.a: '' is not a valid model name"]),
    (MODEL + 'aliases = ["b", "b"]', ["models.a.aliases: 'b' is already a name of 'a'", "remove"]),
    (MODEL + 'aliases = ["a"]', ["models.a.aliases: 'a' is already a name of 'a'"]),
    (
        MODEL + 'aliases = ["c"]\n[models.b]\npath = "y"\naliases = ["c"]',
        ["models.b.aliases: 'c' is already a name of 'a'", "remove it from one of them"],
    ),
    (
        MODEL + 'aliases = ["b"]\n[models.b]\npath = "y"',
        ["models.a.aliases: 'b' is already a name of 'b'"],
    ),
]


@pytest.mark.parametrize(("text", "words"), REFUSALS)
def test_a_refusal_names_file_key_and_fix(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = caught.value.message
    assert message.startswith(f"{tmp_path / 'models.toml'}: ")
    for word in words:
        assert word in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read: No such file"):
        load_config(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "models.toml")
