import httpx2
import pytest

from llmserve.hub.redirects import is_allowed


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://hub.example/x", True),
        ("https://hub.example:8443/x", False),
        ("http://hub.example/x", False),
        ("https://huggingface.co/x", True),
        ("https://cdn-lfs-us-1.hf.co/x", True),
        ("https://cas-bridge.xethub.hf.co/x", True),
        ("http://huggingface.co/x", False),
        ("https://huggingface.co:22/x", False),
        ("https://evilhf.co/x", False),
        ("https://hf.co.evil.example/x", False),
        ("http://169.254.169.254/x", False),
        ("http://[fe80::1]/x", False),
        ("file:///etc/passwd", False),
    ],
)
def test_which_hosts(url: str, allowed: bool) -> None:
    assert is_allowed(httpx2.URL(url), httpx2.URL("https://hub.example")) is allowed
