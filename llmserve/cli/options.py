"""What several commands share: which models.toml, and how to load it."""

from collections.abc import Mapping
from pathlib import Path

import click

from llmserve.config.default_path import default_config_path
from llmserve.config.load import load_config
from llmserve.config.schema import Config

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="LLMSERVE_CONFIG",
    show_envvar=True,
    help="models.toml to use. Default: ./models.toml, else the one that came with llmserve.",
)


def load(path: Path | None) -> Config:
    """The configuration at `path`, or at the default place. Raises `ConfigError`."""
    return load_config(path or default_config_path())


def cache_dir(environment: Mapping[str, str]) -> Path | None:
    """Where this user's programs keep what they can make again; None if there is no such place."""
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # as its specification says
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            return None
    return base / "llmserve"
