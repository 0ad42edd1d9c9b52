"""GET /docs: the pages that ship with the package, whole without any other host."""

import re
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest

from llmserve.api.docs.manual import FOLDER
from tests.serving import FakeService

PAGES = sorted(page.stem for page in FOLDER.glob("*.md"))
ADDRESS = re.compile(r"""(?:href|src)="([^"]+)\"""")


@pytest.mark.parametrize("name", PAGES)
def test_every_address_of_a_page_is_there(service: FakeService, name: str) -> None:
    page = service.get(f"/docs/{name}")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for address in ADDRESS.findall(page.text):
        if "://" in address:
            continue  # for a reader who has a network
        there, anchor = urldefrag(urljoin(f"/docs/{name}", address))
        response = service.get(there)
        assert response.status_code == 200, address
        if anchor:
            assert f'id="{anchor}"' in response.text, address


def test_the_first_page_leads_to_all_others_and_to_the_reference(service: FakeService) -> None:
    page = service.get("/docs")
    assert '<base href="docs/">' in page.text
    found = {urljoin("/docs/", address) for address in ADDRESS.findall(page.text)}
    assert {f"/docs/{name}" for name in [*PAGES, "api"]} <= found


@pytest.mark.parametrize("path", ["/docs", "/docs/models", "/docs/style.css", "/docs/load.svg"])
def test_a_page_asks_no_other_host_and_runs_nothing(service: FakeService, path: str) -> None:
    policy = service.get(path).headers["content-security-policy"]
    assert policy == "default-src 'self'; base-uri 'self'"
    assert "<script" not in service.get(path).text


@pytest.mark.parametrize(
    "name", ["models.md", "nothing", "%2e%2e/core.py", "..%2fcore.py", "style.css/x", "/", "a/b"]
)
def test_nothing_else_is_served(service: FakeService, name: str) -> None:
    response = service.get(f"/docs/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "route_not_found"


def test_the_pages_ship_with_the_package() -> None:
    assert FOLDER.parent.joinpath("core.py").exists()
    assert Path(FOLDER, "index.md").exists()
