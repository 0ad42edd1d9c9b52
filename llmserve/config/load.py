"""models.toml -> Config, checked whole. The one place that reads it.

Errors name the file, the table, the key and the fix.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Struct

from llmserve.config.fallback import way_back
from llmserve.config.hub_ref import BadRefError
from llmserve.config.provider import KEYS as PROVIDER_KEYS
from llmserve.config.provider import Extra, Provider, Retry, check_provider
from llmserve.config.schema import Config, ConfigChange, Isolation, ModelSpec, ServerConfig
from llmserve.config.units import Duration, Headers, HostName, Origin, Size
from llmserve.core import Mode, Pooling
from llmserve.errors import ConfigError

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
_SOURCES = ("package", "path", "hf", "remote")
_REMOTE_TOO = ("remote", "aliases", "max_concurrency", "max_queue", "default_mode", "fallback")
_TIMEOUTS = (
    *("header_timeout", "body_timeout", "idle_timeout", "write_timeout"),
    "request_timeout",
)
_FILE_KEYS = {"file": ("package", "hf"), "revision": ("hf",), "sha256": ("hf",)}


def compare(old: Config, new: Config) -> ConfigChange:
    """The models that came, went, or are defined otherwise."""
    before = {spec.name: spec for spec in old.models}
    after = {spec.name: spec for spec in new.models}
    return ConfigChange(
        models=list(after),
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        changed=[name for name in after if name in before and before[name] != after[name]],
    )


class _File(Struct, forbid_unknown_fields=True):
    server: ServerConfig = ServerConfig()
    models: dict[str, Any] = {}  # converted one by one, so that an error can name its table


def load_config(path: Path) -> Config:
    """Read and validate `path`. Raises `ConfigError`."""
    path = path.absolute()
    return make_config(path, parse_toml(path))


def make_config(path: Path, raw: dict[str, Any]) -> Config:
    """The tables `raw`, which `path` has. Raises `ConfigError`."""
    server = raw.get("server")
    if isinstance(server, dict) and server.get("memory_budget") == "auto":
        del server["memory_budget"]  # the default, written out
    file = convert_table(path, "", raw, _File)
    for key in ("prefix_cache_dir", "api_keys_file"):
        if (given := getattr(file.server, key)) is not None:
            absolute = _absolute(path, f"{path}: server.{key}", given)
            file.server = msgspec.structs.replace(file.server, **{key: absolute})
    for key in _TIMEOUTS:
        if getattr(file.server, key) == 0:
            raise ConfigError(f"{path}: server.{key}: give a time above 0, such as '30s'")
    models = tuple(_model(path, name, table) for name, table in file.models.items())
    if not models:
        raise ConfigError(f"{path}: no model: add a [models.NAME] table")
    config = Config(path, file.server, models, _index(path, models))
    _check_fallbacks(path, config)
    return config


def parse_toml(path: Path) -> dict[str, Any]:
    """What `path` holds. Raises `ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: arrays or tables are nested too deep") from error


def convert_table(path: Path | str, where: str, raw: object, kind: type[T]) -> T:
    """`raw`, the table at `where` ("": the whole file), as a `kind`. Raises `ConfigError`."""
    try:
        return msgspec.convert(raw, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error), where, kind)}") from error


def _decode(kind: type, value: object) -> object:
    """The types that msgspec does not know; it adds the key to what is raised here."""
    if kind in (Size, Duration, Headers, HostName, Origin):
        return kind.parse(value)
    assert kind is Path
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    if not value:
        raise ValueError("Expected `str` of length >= 1")
    return Path(value)


def _explain(message: str, where: str, kind: type) -> str:
    """msgspec's message with the key first, and the known values where one is unknown."""
    what, _, inner = message.partition(" - at `$")
    inner = inner.rstrip("`")
    key = (where + inner).lstrip(".")
    prefix = f"{key}: " if key else ""
    if what.startswith("Invalid enum value"):
        return f"{prefix}{what}; give one of {', '.join(_values(key))}"
    unknown = re.search(r"unknown field `(.*)`", what)
    if not unknown:
        return prefix + what
    known = _known_keys({".server": ServerConfig, ".retry": Retry}.get(inner, kind))
    close = difflib.get_close_matches(unknown[1], known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
    return f"{prefix}unknown key {unknown[1]!r}; {hint}"


def _values(key: str) -> tuple[str, ...]:
    """What an enumerated key can be."""
    key = re.sub(r"\[\d+\]$", "", key).rpartition(".")[2]
    if key in ("default_mode", "pooling"):
        return tuple(Mode if key == "default_mode" else Pooling)
    if key == "isolation":
        return get_args(Isolation)
    return get_args(Extra if key == "extra_parameters" else get_type_hints(Provider)[key])


def _known_keys(owner: type) -> list[str]:
    if owner in (ModelSpec, Provider):
        own = [key for key in ModelSpec.__struct_fields__ if key not in ("name", "remote")]
        return [*own, *PROVIDER_KEYS]
    assert issubclass(owner, Struct)
    return list(owner.__struct_fields__)


def _model(path: Path, name: str, table: object) -> ModelSpec:
    """`[models.NAME]` as a spec, or a `ConfigError`."""
    if isinstance(table, dict) and "name" in table:
        raise ConfigError(
            f"{path}: models.{name}: unknown key 'name'; the table's own name is the name"
        )
    where = f"models.{name}"
    if not isinstance(table, dict):
        return _complete(path, name, convert_table(path, where, table, ModelSpec))
    spec = convert_table(
        path, where, {k: v for k, v in table.items() if k not in PROVIDER_KEYS}, ModelSpec
    )
    if "remote" in table:
        spec = msgspec.structs.replace(spec, remote=_provider(path, where, table))
    elif strays := [key for key in table if key in PROVIDER_KEYS]:
        raise ConfigError(f"{path}: {where}.{strays[0]}: only goes with remote")
    return _complete(path, name, spec)


def _provider(path: Path, where: str, table: dict[str, Any]) -> Provider:
    for key in table:
        if key not in (*PROVIDER_KEYS, *_REMOTE_TOO, *_SOURCES):
            raise ConfigError(f"{path}: {where}.{key}: does not go with remote; leave it out")
    keys = {key: value for key, value in table.items() if key in PROVIDER_KEYS}
    remote = keys.pop("remote")
    urls = [remote] if isinstance(remote, str) else remote
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise ConfigError(f"{path}: {where}.remote: give an address, or a list of addresses")
    urls = [url.rstrip("/") for url in urls]
    provider = convert_table(path, where, {**keys, "urls": urls}, Provider)
    if problem := check_provider(provider):
        raise ConfigError(f"{path}: {where}.{problem[0]}: {problem[1]}")
    return provider


def _complete(path: Path, name: str, spec: ModelSpec) -> ModelSpec:
    """The spec with its name and an absolute path, or a `ConfigError`."""
    where = f"{path}: models.{name}"
    for word in (name, *spec.aliases):
        if not _NAME.fullmatch(word):
            raise ConfigError(
                f"{where}: {word!r} is not a valid model name: use letters, digits, . _ : / -"
            )
    given = [source for source in _SOURCES if getattr(spec, source) is not None]
    if len(given) != 1:
        has = f"has {' and '.join(given)}" if given else "has no source"
        raise ConfigError(f"{where}: {has}; give exactly one of {', '.join(_SOURCES)}")
    if not spec.stall_timeout:
        raise ConfigError(f"{where}.stall_timeout: 0 would end the model at once; write '2m'")
    _check_file_keys(where, spec, given[0])
    absolute = _absolute(path, f"{where}.path", spec.path) if spec.path else None
    return msgspec.structs.replace(spec, name=name, path=absolute)


def _absolute(config: Path, where: str, path: Path) -> Path:
    """`path`, which is relative to the folder of `config`."""
    try:
        return config.parent / path.expanduser()
    except RuntimeError as error:  # ~user of no account
        raise ConfigError(f"{where}: {error}; write the path out") from error


def _check_file_keys(where: str, spec: ModelSpec, source: str) -> None:
    """The keys that say which file of the source."""
    for key, sources in _FILE_KEYS.items():
        if getattr(spec, key) is not None and source not in sources:
            raise ConfigError(f"{where}.{key}: only goes with {' or '.join(sources)}, not {source}")
    if spec.package and not spec.file:
        raise ConfigError(f"{where}.file: missing; name the .gguf file inside the package")
    try:
        _ = spec.hub  # parses
    except BadRefError as error:
        raise ConfigError(f"{where}.{error.key}: {error.reason}") from error


def _check_fallbacks(path: Path, config: Config) -> None:
    """Raises `ConfigError` for an unknown name, and for a cycle."""
    for spec in config.models:
        for name in spec.fallback:
            if name not in config.names:
                known = ", ".join(sorted(config.names))
                raise ConfigError(
                    f"{path}: models.{spec.name}.fallback: no model {name!r}; there are: {known}"
                )
    for spec in config.models:
        if way := way_back(spec.name, config.stand_ins):
            raise ConfigError(
                f"{path}: models.{spec.name}.fallback: leads back to itself ({' -> '.join(way)});"
                " remove one of them"
            )


def _index(path: Path, models: tuple[ModelSpec, ...]) -> dict[str, ModelSpec]:
    """Every name and alias -> its model."""
    names: dict[str, ModelSpec] = {spec.name: spec for spec in models}
    for spec in models:
        for alias in spec.aliases:
            if alias in names:
                owner = names[alias].name
                raise ConfigError(
                    f"{path}: models.{spec.name}.aliases: {alias!r} is already a name of"
                    f" {owner!r}; remove it from one of them"
                )
            names[alias] = spec
    return names
