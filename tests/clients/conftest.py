"""OpenAI's own client, for the modules that have a `server`."""

from collections.abc import Iterator

import httpx2
import pytest
from openai import OpenAI

from tests.serving import TIMEOUT_S, ServerProcess


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    # Without verify=False each client reads the certificates of the world.
    transport = httpx2.Client(verify=False, trust_env=False)
    with OpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="none",
        max_retries=0,
        timeout=4 * TIMEOUT_S,  # the cores may be shared
        http_client=transport,
    ) as running:
        yield running
