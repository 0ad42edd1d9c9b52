"""Adding an entry to models.toml, or to another file of its kind.

The file belongs to a person: what is there stays as it is, byte for byte, and the entry goes to
its end. It is replaced in one step, and only by a file that loads.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tomlkit

from llmserve.config.hub_ref import HubRef
from llmserve.config.load import load_config
from llmserve.config.schema import Config
from llmserve.errors import ConfigError


def check_free(config: Config, name: str) -> None:
    """Refuse a name that `config` has. Raises `ConfigError`."""
    if name in config.names:
        owner = config.names[name].name
        of = f"an alias of {owner!r}" if owner != name else "there"
        raise ConfigError(f"{config.path}: {name!r} is {of} already; choose another name")


def append_model(config: Config, name: str, ref: HubRef, *, comment: str, commit: str) -> None:
    """Append `[models.NAME]` for `ref` to the file of `config`. Raises `ConfigError`.

    `comment` says what the entry is; `commit` is what its revision was, offered as a pin.
    """
    check_free(config, name)
    entry = render_entry(name, ref, comment=comment, commit=commit)
    append_entry(config.path, entry, check=load_config)


def render_entry(name: str, ref: HubRef, *, comment: str, commit: str) -> str:
    """The entry as text; tomlkit quotes what needs it."""
    table = tomlkit.table()
    table.add("hf", ref.text)
    table["hf"].comment(comment)
    for key in ("file", "revision", "sha256"):
        if value := getattr(ref, key):
            table.add(key, value)
    if ref.revision is None:
        table.add(tomlkit.comment(f'revision = "{commit}"  # pins what was downloaded'))
    table.add(tomlkit.comment("context_length = 8192  # longest prompt + answer of one request"))
    table.add(tomlkit.comment("max_concurrency = 16  # requests generated at the same time"))
    document = tomlkit.document()
    models = tomlkit.table(is_super_table=True)
    models.add(name, table)
    document.add("models", models)
    return tomlkit.dumps(document)


def append_entry(path: Path, entry: str, *, check: Callable[[Path], object]) -> None:
    """Append `entry` to `path`, unless `check` of the result raises a `ConfigError`.

    A new file is for its owner alone.
    """
    target = path.resolve()  # through a link, to the file itself
    try:
        old = target.read_bytes() if target.exists() else b""
        newline = b"\r\n" if b"\r\n" in old else b"\n"
        gap = newline if old.endswith(b"\n") else newline * 2
        content = (old + gap if old else b"") + entry.encode().replace(b"\n", newline)
        try:
            _replace(target, content, check)
        except ConfigError as error:
            raise ConfigError(error.message.replace(str(target), str(path))) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be changed: {error.strerror}") from error


def _replace(path: Path, content: bytes, check: Callable[[Path], object]) -> None:
    """Write beside `path`, `check` that, rename."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        try:
            check(Path(temporary))
        except ConfigError as error:
            reason = error.message.replace(temporary, str(path))
            raise ConfigError(f"nothing was added: {reason}") from error
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
