"""The contract of errors: programs act on status, type and code, so none of them may change."""

from collections.abc import Iterator

import pytest

import llmserve.api.server  # noqa: F401 - the modules that have errors of their own
from llmserve.errors import InvalidRequestError, LlmserveError, as_llmserve_error

CONTRACT = {
    "AuthenticationError": (401, "authentication_error", "invalid_api_key"),
    "BodyMemoryError": (503, "unavailable_error", "crowded"),
    "BodyTimeoutError": (408, "timeout_error", "request_timeout"),
    "BodyTooLargeError": (413, "invalid_request_error", "too_large"),
    "ConfigError": (400, "invalid_request_error", "config_error"),
    "CrowdedError": (503, "unavailable_error", "crowded"),
    "DeadlineError": (504, "timeout_error", "deadline_exceeded"),
    "EngineCrashedError": (503, "unavailable_error", "engine_crashed"),
    "EngineError": (500, "server_error", "engine_error"),
    "HeadTooLargeError": (431, "invalid_request_error", "malformed_request"),
    "HostError": (403, "permission_error", "host_not_allowed"),
    "HubError": (500, "server_error", "hub_error"),
    "HubUnreachableError": (500, "server_error", "hub_unreachable"),
    "InsufficientMemoryError": (503, "unavailable_error", "insufficient_memory"),
    "InvalidRequestError": (400, "invalid_request_error", "invalid_request"),
    "LlmserveError": (500, "server_error", "internal_error"),
    "MalformedError": (400, "invalid_request_error", "malformed_request"),
    "MissingFieldError": (400, "invalid_request_error", "invalid_request"),
    "ModelBusyError": (409, "conflict_error", "model_busy"),
    "ModelFileError": (500, "server_error", "model_file_error"),
    "ModelLoadingError": (503, "unavailable_error", "model_loading"),
    "ModelNotFoundError": (404, "not_found_error", "model_not_found"),
    "ModelQuarantinedError": (503, "unavailable_error", "model_quarantined"),
    "ModelUnavailableError": (503, "unavailable_error", "model_unavailable"),
    "NotImplementedHereError": (501, "invalid_request_error", "malformed_request"),
    "OriginError": (403, "permission_error", "origin_not_allowed"),
    "PermissionDeniedError": (403, "permission_error", "permission_denied"),
    "ProviderAuthError": (502, "provider_error", "provider_auth"),
    "ProviderError": (502, "provider_error", "provider_error"),
    "ProviderLimitError": (429, "rate_limit_error", "provider_limit"),
    "ProviderModelError": (502, "provider_error", "provider_model"),
    "ProviderTimeoutError": (504, "provider_error", "provider_timeout"),
    "ProviderUnreachableError": (502, "provider_error", "provider_unreachable"),
    "QueueFullError": (429, "rate_limit_error", "queue_full"),
    "QueueTimeoutError": (503, "unavailable_error", "queue_timeout"),
    "RateLimitError": (429, "rate_limit_error", "rate_limit_exceeded"),
    "RequestLostError": (503, "unavailable_error", "engine_crashed"),
    "RequestTimeoutError": (408, "timeout_error", "request_timeout"),
    "ShuttingDownError": (503, "unavailable_error", "shutting_down"),
    "TargetTooLongError": (414, "invalid_request_error", "malformed_request"),
    "TooLargeError": (413, "invalid_request_error", "too_large"),
    "UnavailableError": (503, "unavailable_error", "unavailable"),
    "UnknownFieldError": (400, "invalid_request_error", "invalid_request"),
    "UnknownKindError": (400, "invalid_request_error", "invalid_request"),
    "UnsupportedFieldError": (400, "invalid_request_error", "invalid_request"),
    "VersionError": (505, "invalid_request_error", "malformed_request"),
}


def kinds(base: type[LlmserveError] = LlmserveError) -> Iterator[type[LlmserveError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def test_the_contract_is_kept_and_complete() -> None:
    ours = {kind for kind in kinds() if kind.__module__.startswith("llmserve.")}
    assert {kind.__name__: (kind.status, kind.type, kind.code) for kind in ours} == CONTRACT
    assert len(ours) == len(CONTRACT)  # no two of one name


def test_what_a_class_does_not_state_it_has_from_its_base() -> None:
    class OddError(InvalidRequestError, code="odd"):
        pass

    class OdderError(OddError, status=418):
        pass

    assert (OddError.status, OddError.type, OddError.code) == (400, "invalid_request_error", "odd")
    assert (OdderError.status, OdderError.code) == (418, "odd")
    assert (InvalidRequestError.status, InvalidRequestError.code) == (400, "invalid_request")


def test_an_unknown_keyword_of_a_class_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        type("OddError", (LlmserveError,), {}, stauts=400)


def test_of_a_bug_nothing_is_told() -> None:
    known = InvalidRequestError("no", param="x")
    assert as_llmserve_error(known) is known
    told = as_llmserve_error(ZeroDivisionError("a secret"))
    assert type(told) is LlmserveError
    assert "secret" not in told.message
