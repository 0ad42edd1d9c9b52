"""Every error that llmserve raises on purpose, and the HTTP status each one means.

A class takes from its base what it does not state itself; `code` and `type` are contract, as the
statuses are. Foreign exceptions are translated in one place per library: msgspec in
`wire/validation.py`, llama.cpp's return codes in `engine/llama/call.py`, jinja in
`chat/template.py`, huggingface_hub and the disk it writes to in `hub/client.py`, httpx2 and the
statuses of providers in `remote/errors.py`.
"""

from typing import Any, ClassVar

_MAX_SHOWN_LEN = 400


def sanitized(text: str) -> str:
    """Text that quotes a foreign file, such that it neither floods nor forges a log."""
    if len(text) <= _MAX_SHOWN_LEN and text.isprintable():
        return text
    return ascii(text[:_MAX_SHOWN_LEN])


class LlmserveError(Exception):
    """Base of all errors with a meaning to the caller.

    `status`, `type` and `code` are part of the HTTP contract: `code` is stable and meant for
    programs, the message for people.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init_subclass__(
        cls,
        *,
        status: int | None = None,
        type: str | None = None,  # noqa: A002 - what the contract calls it
        code: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.status = cls.status if status is None else status
        cls.type = cls.type if type is None else type
        cls.code = cls.code if code is None else code

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.log_message = message  # without the words of others, which may quote a request
        self.param = param
        self.retry_after_s = retry_after_s


def as_llmserve_error(error: BaseException) -> LlmserveError:
    """The error as a caller may see it: of a bug, nothing."""
    if isinstance(error, LlmserveError):
        return error
    return LlmserveError("internal error; see the server's log")


def shutting_down(what: str = "the server") -> "ShuttingDownError":
    return ShuttingDownError(f"{what} is shutting down", retry_after_s=5)


# -- the request, and what its sender may do -----------------------------------------------------


class InvalidRequestError(
    LlmserveError, status=400, type="invalid_request_error", code="invalid_request"
):
    """The request is wrong; `param` names the field."""


class AuthenticationError(
    LlmserveError, status=401, type="authentication_error", code="invalid_api_key"
):
    """No API key, or not one of ours."""


class PermissionDeniedError(
    LlmserveError, status=403, type="permission_error", code="permission_denied"
):
    """The key, or the page that asks, may not do this."""


class ModelNotFoundError(LlmserveError, status=404, type="not_found_error", code="model_not_found"):
    """No such model; the message lists those that exist."""


class RequestTimeoutError(LlmserveError, status=408, type="timeout_error", code="request_timeout"):
    """The client takes too long to send."""


class ModelBusyError(LlmserveError, status=409, type="conflict_error", code="model_busy"):
    """The model is in use, so it cannot be unloaded."""


class TooLargeError(LlmserveError, status=413, type="invalid_request_error", code="too_large"):
    """The body is over its limit, or the prompt longer than the context."""


class QueueFullError(LlmserveError, status=429, type="rate_limit_error", code="queue_full"):
    """No place in the queue, or not in one that would do."""


class ProviderLimitError(QueueFullError, code="provider_limit"):
    """The same at a remote provider; the message quotes it."""


class RateLimitError(
    LlmserveError, status=429, type="rate_limit_error", code="rate_limit_exceeded"
):
    """The API key is over one of its limits."""


# -- not now: try again later --------------------------------------------------------------------


class UnavailableError(LlmserveError, status=503, type="unavailable_error", code="unavailable"):
    """Base of what may pass by itself."""


class ModelLoadingError(UnavailableError, code="model_loading"):
    """The model is still being loaded."""


class ModelUnavailableError(UnavailableError, code="model_unavailable"):
    """The model cannot be loaded; the message says why."""


class InsufficientMemoryError(UnavailableError, code="insufficient_memory"):
    """The model does not fit; the message has need and budget."""


class EngineCrashedError(UnavailableError, code="engine_crashed"):
    """The model's process died while it worked on the request."""

    log_lines: tuple[str, ...] = ()  # the last ones of the process


class RequestLostError(EngineCrashedError):
    """It died before it worked on the request: asked again, it may be answered.

    `is_suspect`: the request was being prepared, so that it may itself be the reason.
    """

    is_suspect = False


class ModelQuarantinedError(UnavailableError, code="model_quarantined"):
    """The model's process has died too often; the message has the fix."""


class QueueTimeoutError(UnavailableError, code="queue_timeout"):
    """No slot became free in time."""


class CrowdedError(UnavailableError, code="crowded"):
    """Too many connections, or too much is being sent at once."""


class ShuttingDownError(UnavailableError, code="shutting_down"):
    """The server, or the model's engine, is draining."""


class DeadlineError(LlmserveError, status=504, type="timeout_error", code="deadline_exceeded"):
    """The time that the request may take is over."""


# -- remote providers ----------------------------------------------------------------------------


class ProviderError(LlmserveError, status=502, type="provider_error", code="provider_error"):
    """A remote provider failed, or its answer is broken."""


class ProviderAuthError(ProviderError, code="provider_auth"):
    """The provider does not take the key; the message names its variable."""


class ProviderModelError(ProviderError, code="provider_model"):
    """The provider does not have the model."""


class ProviderUnreachableError(ProviderError, code="provider_unreachable"):
    """No connection, or the address failed too often lately to be tried."""


class ProviderTimeoutError(ProviderError, status=504, code="provider_timeout"):
    """The provider took too long."""


# -- the engine and what it is made from ---------------------------------------------------------


class EngineError(LlmserveError, code="engine_error"):
    """llama.cpp failed; the message says in which call."""


class ConfigError(LlmserveError, status=400, type="invalid_request_error", code="config_error"):
    """models.toml is wrong: at start-up this ends the process, for a reload it is a 400."""


class ModelFileError(LlmserveError, code="model_file_error"):
    """A GGUF file is missing, truncated or inconsistent."""


class HubError(ModelFileError, code="hub_error"):
    """The hub does not provide the file."""


class HubUnreachableError(HubError, code="hub_unreachable"):
    """Offline, or no connection: what is on disk still works."""
