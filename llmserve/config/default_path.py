"""Which models.toml, where none is named."""

from pathlib import Path

import llmserve
from llmserve.errors import ConfigError

PACKAGE_DIR = Path(llmserve.__file__).parent


def default_config_path() -> Path:
    """./models.toml; else the packaged one (beside the package in a checkout)."""
    places = (Path("models.toml"), PACKAGE_DIR / "models.toml", PACKAGE_DIR.parent / "models.toml")
    for place in places:
        if place.is_file():
            return place
    raise ConfigError("models.toml not found; pass --config")
