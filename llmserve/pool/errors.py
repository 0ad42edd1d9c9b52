"""What a request is told that cannot have its model now."""

import logging
import math
from collections.abc import Iterable

from llmserve.errors import (
    InsufficientMemoryError,
    LlmserveError,
    ModelLoadingError,
    ModelQuarantinedError,
    ModelUnavailableError,
    as_llmserve_error,
)
from llmserve.pool.model import Model, State

log = logging.getLogger(__name__)


def still_loading(model: Model, now_s: float) -> ModelLoadingError:
    """`now_s` is on the monotonic clock."""
    name = model.spec.name
    doing = f" ({model.progress})" if model.state is State.LOADING else ""
    pause_s = max(0.0, model.restarts.not_before_s - now_s)
    return ModelLoadingError(
        f"model {name!r} is still loading{doing}; try again", retry_after_s=5 + math.ceil(pause_s)
    )


def quarantined(model: Model) -> ModelQuarantinedError:
    name = model.spec.name
    return ModelQuarantinedError(
        f"model {name!r} is quarantined: its process crashed {model.restarts.num_in_row} times in a"
        f" row without answering anything ({model.crash_message}); GET /models shows its last"
        f" output. Replace its file, change [models.{name}] and reload, or"
        f" POST /models/{name}/load to try again"
    )


def insufficient(
    model: Model, residents: Iterable[Model], budget_bytes: int
) -> InsufficientMemoryError:
    names = ", ".join(f"{m.spec.name} {m.size_bytes / 1e6:,.0f} MB" for m in residents)
    return InsufficientMemoryError(
        f"model {model.spec.name!r} needs {model.size_bytes / 1e6:,.0f} MB and the memory"
        f" budget is {budget_bytes / 1e6:,.0f} MB; resident: {names or 'nothing'}; set a smaller"
        " context_length or choose a smaller quantization"
    )


def as_unavailable(error: BaseException) -> LlmserveError:
    """What ended a load, as the 503 that its requests get."""
    if isinstance(error, LlmserveError) and error.status == 503:
        return error
    if not isinstance(error, LlmserveError):
        log.exception("a bug ended a load", exc_info=error)
    return ModelUnavailableError(as_llmserve_error(error).message)
