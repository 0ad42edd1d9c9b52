"""What operators ask: models and their state, health, metrics. No generation."""

from llmserve.api.admin.health import health, metrics, ready
from llmserve.api.admin.models import list_models, load_model, reload_config, unload_model
from llmserve.api.endpoint import Dialect

ADMIN = Dialect(
    (list_models, reload_config, load_model, unload_model, health, ready, metrics),
)
