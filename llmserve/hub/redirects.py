"""Where a download may lead: nowhere but to the hub.

An answer of the hub, or of what poses as it, must not be able to send us into the local
network (SSRF; CVE-2026-5530 in Ollama). So every request, also one that follows a redirect, passes
`is_allowed` before a connection is made.
"""

from functools import lru_cache

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled

from llmserve.errors import HubError

# Where huggingface.co itself sends a download: cdn-lfs.hf.co, cas-bridge.xethub.hf.co, …
_HUB_DOMAINS = ("huggingface.co", "hf.co")


def is_allowed(url: httpx2.URL, endpoint: httpx2.URL) -> bool:
    """Whether a download from `endpoint` may ask `url`: the same origin, or the public hub's hosts.

    The public hosts only by https, so that the certificate proves them whatever DNS says.
    """
    if url.scheme not in ("http", "https"):
        return False
    if url.origin == endpoint.origin:
        return True
    of_hub = any(url.host == name or url.host.endswith(f".{name}") for name in _HUB_DOMAINS)
    return of_hub and url.scheme == "https" and url.port is None


def guarded_client(endpoint: str) -> httpx2.Client:
    """A client that reaches no host but the hub's, and none while HF_HUB_OFFLINE is set."""
    origin = httpx2.URL(endpoint)

    def check_host(request: httpx2.Request) -> None:
        if constants.is_offline_mode():
            raise OfflineModeIsEnabled
        if not is_allowed(request.url, origin):
            raise HubError(
                f"{endpoint} redirects to {request.url.host}, which is not a host of the hub:"
                " refused"
            )

    return httpx2.Client(event_hooks={"request": [check_host]}, follow_redirects=True)


@lru_cache(maxsize=1)
def guard_library(endpoint: str) -> None:
    """Have huggingface_hub use a guarded client too.

    Its client belongs to the process, and setting a new one closes the old one under the hands of
    other threads: hence once, not once a download.
    """
    set_client_factory(lambda: guarded_client(endpoint))
