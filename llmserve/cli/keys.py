"""`llmserve keys`: API keys for those who may ask this server."""

from pathlib import Path

import click

from llmserve.auth.key_file import append_key, render_entry
from llmserve.auth.keys import Key, is_name, new_secret, sha256


@click.group()
def keys() -> None:
    """Make API keys for those who may ask this server."""


@keys.command()
@click.argument("name")
@click.option(
    "--add",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append it to this file, the api_keys_file of models.toml; made if there is none.",
)
def new(name: str, path: Path | None) -> None:
    """Make a key called NAME, and print it: this once, for only its hash is kept.

    The key alone goes to standard output, what is said about it to standard error.

    \b
    Examples:
      llmserve keys new alice --add keys.toml     prints the key, adds the rest
      llmserve keys new alice                     prints both
      export LLMSERVE_API_KEYS="$(llmserve keys new me)"
    """
    if not is_name(name):
        raise click.BadParameter(
            f"{name!r} is not a valid name: use up to 64 letters, digits, _ and -",
            param_hint="NAME",
        )
    secret = new_secret()
    key = Key(sha256(secret.encode()))
    if path is not None:
        append_key(path, name, key)
    click.echo(secret)
    if path is None:
        told = f"\nFor the api_keys_file of models.toml:\n\n{render_entry(name, key)}"
    else:
        told = (
            f"{path} has its hash, and what it can be limited to. A running server reads it again"
            " at POST /models/reload or SIGHUP."
        )
    click.echo(told, err=True)
