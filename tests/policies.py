"""How models share their time, for tests."""

from typing import Any

import msgspec

from llmserve.config.schema import ModelSpec
from llmserve.engine.load_spec import Policy
from llmserve.pool import loader


def policy(**changes: Any) -> Policy:
    """What `models.toml` means where it says nothing, but for `changes`."""
    return msgspec.structs.replace(loader.policy(ModelSpec()), **changes)
