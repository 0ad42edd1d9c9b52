"""GET /docs/api: a page that is whole without any other host."""

import re
from urllib.parse import urljoin

import pytest

from llmserve.api.docs.reference import FILES
from tests.serving import FakeService

URL = re.compile(r"""(?:href|src)="([^"]+)"|url: "([^"]+)"|url\(([^)]+)\)""")


def test_every_address_in_the_page_is_on_this_server(service: FakeService) -> None:
    page = service.get("/docs/api")
    assert page.headers["content-type"].startswith("text/html")
    script = service.get("/docs/start.js")
    found = [next(filter(None, match)) for match in URL.findall(page.text + script.text)]
    assert found == [
        "favicon-32x32.png",
        "swagger-ui.css",
        "swagger-ui-bundle.js",
        "start.js",
        "../openapi.json",
    ]
    for address in found:
        response = service.get(urljoin("/docs/api", address))
        assert response.status_code == 200, address
        assert response.content


def test_the_style_sheet_needs_nothing_else(service: FakeService) -> None:
    addresses = re.findall(r"url\(([^)]+)\)", service.get("/docs/swagger-ui.css").text)
    assert all(address.strip("\"'").startswith("data:") for address in addresses)


def test_the_browser_is_forbidden_to_ask_other_hosts(service: FakeService) -> None:
    policy = service.get("/docs/api").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


def test_the_files_are_the_packages(service: FakeService) -> None:
    types = {name: service.get(f"/docs/{name}").headers["content-type"] for name in FILES}
    assert types["swagger-ui.css"].startswith("text/css")
    assert "javascript" in types["swagger-ui-bundle.js"]
    bundle = service.get("/docs/swagger-ui-bundle.js")
    assert "SwaggerUIBundle" in bundle.text
    with service.client() as client:
        again = client.get(
            "/docs/swagger-ui-bundle.js", headers={"if-none-match": bundle.headers["etag"]}
        )
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path", ["swagger-ui.js.map", "nothing", "..%2F__init__.py", "%2e%2e/x", "a/b"]
)
def test_nothing_else_is_served(service: FakeService, path: str) -> None:
    response = service.get(f"/docs/{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "route_not_found"
