"""A gateway over a remote provider, for tests: `fake_service` with one more model."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from llmserve.config.provider import Provider, Retry
from llmserve.config.units import Duration
from llmserve.remote.protocol import Bounds
from tests.serving import FakeService, fake_service

KEY = "sk-test-4f9d2c71"  # what must never be seen anywhere
KEY_ENV = "TEST_PROVIDER_KEY"

QUICK = Retry(attempts=3, max_wait=Duration(0.01))


def provider(*urls: str, **fields: Any) -> Provider:
    """Of the tests: it waits for nothing for long."""
    timeout = Duration(fields.pop("timeout", 30))
    return Provider(urls=urls, timeout=timeout, **{"retry": QUICK, **fields})


@contextlib.contextmanager
def remote_service(
    remote: Provider,
    *,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    bounds: Bounds | None = None,
    environment: Mapping[str, str] | None = None,
    service_options: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Iterator[FakeService]:
    """A server whose model `cloud` is at `remote`; its default is a local fake."""
    tables = {"fake": {"aliases": ("default",)}, "cloud": {"remote": remote, **fields}}
    with fake_service(
        models={**tables, **(models or {})},
        bounds=bounds,
        environment={KEY_ENV: KEY} if environment is None else environment,
        **(service_options or {}),
    ) as service:
        yield service
