"""Where keys come from: an environment variable, and a file with their hashes."""

import logging
import os
import re
import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from llmserve.auth.keys import SHORT_LEN, Key, is_name, is_usable, sha256
from llmserve.config.edit import append_entry
from llmserve.config.load import convert_table, parse_toml
from llmserve.config.schema import ServerConfig
from llmserve.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "LLMSERVE_API_KEYS"

_NAMED = re.compile(r"([^=]+)=([^=].*)")  # not the padding of a bare key in base64


class KeySources(Struct, frozen=True):
    """`given` is of the environment and stays; `file` is read again at every reload."""

    given: dict[str, Key] = {}
    file: Path | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no keys are wanted at all."""
        return not self.given and self.file is None

    def read(self, models: Container[str]) -> dict[str, Key]:
        """All keys by their names. Raises `ConfigError`; `models` are the names that exist."""
        if self.file is None:
            return self.given
        keys = read_file(self.file)
        if not keys:
            raise ConfigError(
                f"{self.file}: no key; add one with `llmserve keys new NAME --add {self.file}`, or"
                " leave out api_keys_file"
            )
        _warn_of_readers(self.file)
        _check_models(self.file, keys, models)
        for name in self.given:
            if name in keys:
                raise ConfigError(
                    f"{self.file}: keys.{name}: a key of the environment has that name; rename one"
                )
        keys = self.given | keys
        _check_unique(str(self.file), keys)
        return keys


def find_sources(server: ServerConfig, environment: Mapping[str, str]) -> KeySources:
    """Raises `ConfigError`, never with a key in it."""
    variable = server.api_keys_env or VARIABLE
    given = parse_variable(variable, environment.get(variable, ""))
    if server.api_keys_env and not given:  # its value is not shown: some write the key there
        raise ConfigError(
            "server.api_keys_env: the environment variable that it names has no key; set it, or"
            " leave out api_keys_env"
        )
    return KeySources(given, server.api_keys_file)


def parse_variable(variable: str, text: str) -> dict[str, Key]:
    """Keys, or NAME=KEY, between commas or lines. They may do everything.

    Raises `ConfigError`.
    """
    keys: dict[str, Key] = {}
    entries = [entry.strip() for entry in re.split(r"[,\n]", text)]
    for number, entry in enumerate(filter(None, entries), start=1):
        where = f"{variable}: key {number}"
        named = _NAMED.fullmatch(entry)
        name, secret = (named[1].strip(), named[2].strip()) if named else (f"key{number}", entry)
        if named and not is_name(name):
            # Not shown: it may be the beginning of a key.
            raise ConfigError(
                f"{where}: before = is not a valid name: use letters, digits, _ and -"
            )
        if not is_usable(secret):
            raise ConfigError(f"{where}: has a space or another character that no header can have")
        if name in keys:
            raise ConfigError(f"{where}: {name} is the name of another one too")
        if len(secret) < SHORT_LEN:
            log.warning("%s is short enough to be guessed; `llmserve keys new` makes one", where)
        keys[name] = Key(sha256(secret.encode()), admin=True)
    _check_unique(variable, keys)
    return keys


class _File(Struct, forbid_unknown_fields=True):
    keys: dict[str, Any] = {}  # converted one by one, so that an error can name its table


def read_file(path: Path) -> dict[str, Key]:
    """The tables `[keys.NAME]` of `path`. Raises `ConfigError`."""
    file = convert_table(path, "", parse_toml(path), _File)
    keys: dict[str, Key] = {}
    for name, table in file.keys.items():
        if not is_name(name):
            raise ConfigError(
                f"{path}: keys: {name!r} is not a valid name: use letters, digits, _ and -"
            )
        keys[name] = convert_table(path, f"keys.{name}", table, Key)
    _check_unique(str(path), keys)
    return keys


def append_key(path: Path, name: str, key: Key) -> None:
    """Add `[keys.NAME]` to `path`, which is made if need be. Raises `ConfigError`."""
    if path.exists():
        if name in read_file(path):
            raise ConfigError(f"{path}: {name!r} is there already; choose another name")
        _warn_of_readers(path)
    append_entry(path, render_entry(name, key), check=read_file)


def render_entry(name: str, key: Key) -> str:
    """The table of a new key, with what it can be limited to."""
    comments = (
        "max_concurrency = 4          # requests at the same time",
        "requests_per_minute = 60",
        "tokens_per_minute = 20_000   # of prompts and answers",
        'models = ["default"]         # and no others',
        'cache_namespace = "team"     # known prefixes are shared with keys that have the same',
        "admin = true                 # may load, unload, reload and see the metrics",
    )
    head = f'[keys.{name}]\nsha256 = "{key.sha256}"\n'
    return head + "".join(f"# {comment}\n" for comment in comments)


def _check_unique(where: str, keys: Mapping[str, Key]) -> None:
    names: dict[str, str] = {}
    for name, key in keys.items():
        other = names.setdefault(key.sha256, name)
        if other != name:
            raise ConfigError(f"{where}: {other} and {name} are the same key; remove one of them")


def _check_models(path: Path, keys: Mapping[str, Key], models: Container[str]) -> None:
    for name, key in keys.items():
        for model in key.models or ():
            if model not in models:
                raise ConfigError(f"{path}: keys.{name}.models: there is no model {model!r}")


def _warn_of_readers(path: Path) -> None:
    """Hashes are not keys, but a reader of the file knows the names, and a writer is in."""
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("%s can be read or written by others: chmod 600 %s", path, path)
