"""`LLM(model, **config)` -> Config, and the model of it that is meant.

The model is one of models.toml, which `config` may change, or one that it does not have: a file, a
repository of the hub, or whatever `config` names. Errors name the key, the value and the fix.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from llmserve.config.default_path import default_config_path
from llmserve.config.hub_ref import BadRefError, HubRef, parse_ref
from llmserve.config.load import convert_table, make_config, parse_toml
from llmserve.config.provider import KEYS as PROVIDER_KEYS
from llmserve.config.schema import Config, ModelSpec, ServerConfig
from llmserve.errors import ConfigError, ModelNotFoundError
from llmserve.wire.validation import clipped

Table: TypeAlias = dict[str, Any]

SERVER_KEYS = (
    *("memory_budget", "isolation", "auto_download", "prefix_cache_dir", "prefix_cache_disk"),
    *("load_wait_s", "request_timeout"),
)
MODEL_KEYS = (*(key for key in ModelSpec.__struct_fields__ if key != "name"), *PROVIDER_KEYS)
_SOURCES = ("path", "package", "hf", "remote")
_PATHS = ("path", "prefix_cache_dir")  # relative to the working directory, not to models.toml

# A program waits for the load and for a slot, however long its list of prompts is.
_SERVER_DEFAULTS: Table = {"load_wait_s": 86_400}
_MODEL_DEFAULTS: Table = {"max_queue": 100_000, "max_queue_tokens": 1_000_000_000}


def choose_model(
    model: str | Path | None, config_file: Path | None, given: Mapping[str, Any]
) -> tuple[Config, ModelSpec]:
    """Reads models.toml. Raises `ConfigError`, and `ModelNotFoundError` for an unknown name."""
    given = {key: _checked(key, value) for key, value in given.items()}
    path = (config_file or default_config_path()).absolute()
    raw = parse_toml(path)
    known = make_config(path, raw)
    name, tables = _choose(model, known, raw["models"], given)
    server = {**_SERVER_DEFAULTS, **raw.get("server", {})}
    if tables is not raw["models"]:
        server["auto_download"] = True  # it was named, so it is wanted
    server |= {key: value for key, value in given.items() if key in SERVER_KEYS}
    table = tables[name] | {key: value for key, value in given.items() if key in MODEL_KEYS}
    if "remote" not in table:
        table = _MODEL_DEFAULTS | table
    config = make_config(path, {"server": server, "models": {**tables, name: table}})
    return config, config.names[name]


def _checked(key: str, value: Any) -> Any:
    """The value as models.toml would have it. Raises `ConfigError`."""
    source = f"LLM({key}={clipped(repr(value))})"
    if key not in (*SERVER_KEYS, *MODEL_KEYS):
        raise ConfigError(f"{source}: {_unknown(key)}")
    if key in _PATHS and isinstance(value, str | Path) and not str(value).startswith("~"):
        value = str(Path(value).absolute())
    if key not in PROVIDER_KEYS and (key, value) != ("memory_budget", "auto"):
        kind = ServerConfig if key in SERVER_KEYS else ModelSpec
        convert_table(source, "", {key: value}, kind)
    return value


def _unknown(key: str) -> str:
    if key in ServerConfig.__struct_fields__:
        return "only goes with a server, which this is not; leave it out"
    known = (*MODEL_KEYS, *SERVER_KEYS)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"


def _choose(
    model: str | Path | None, known: Config, tables: dict[str, Table], given: Table
) -> tuple[str, dict[str, Table]]:
    """The name of the model, and the tables that have it: those of models.toml, or a new one."""
    has_source = any(key in given for key in _SOURCES)
    if model is None and not has_source:
        return known.default.name, tables
    if isinstance(model, str) and model in known.names:
        return known.names[model].name, tables
    if has_source:
        return (name := str(model or "default")), {name: {}}
    if isinstance(model, Path) or (model and _is_file_name(model)):
        return (name := _name_of(Path(model))), {name: {"path": _checked("path", model)}}
    ref = _ref(str(model), known)
    keys = {"hf": ref.text, "file": ref.file, "revision": ref.revision, "sha256": ref.sha256}
    return ref.text, {ref.text: {key: value for key, value in keys.items() if value is not None}}


def _is_file_name(text: str) -> bool:
    return text.lower().endswith(".gguf") and "://" not in text


def _name_of(path: Path) -> str:
    """Of the model in a file: what of its name can be that of a model."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "model"


def _ref(text: str, known: Config) -> HubRef:
    try:
        return parse_ref(text)
    except BadRefError as error:
        names = ", ".join(sorted(known.names))
        on_hub = f"; and on the hub {error.reason}" if "/" in text else ""
        message = f"no model {text!r}; there are: {names}{on_hub}"
        raise ModelNotFoundError(message, param="model") from error
