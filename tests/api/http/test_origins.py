"""Foreign names, foreign pages, and the headers for pages that may ask."""

import re
from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.api.http.errors import LlmserveErrorHandler
from llmserve.api.http.origins import HostCheck, HostError, OriginError
from llmserve.auth.key_file import KeySources
from llmserve.auth.keyring import Keyring
from llmserve.auth.keys import Key, sha256
from llmserve.config.schema import ServerConfig
from llmserve.config.units import HostName, Origin
from llmserve.errors import PermissionDeniedError
from tests.serving import FakeService, fake_service, raw_request, sse_events

PAGE = "https://app.example"
ASK = {"prompt": "hello", "mode": "completion", "parameters": {"temperature": 0, "max_tokens": 4}}


def ask(service: FakeService, path: str = "/inference", **headers: str) -> httpx2.Response:
    with service.client() as client:
        return client.post(path, json=ASK, headers=headers)


def check_of(**server: object) -> HostCheck:
    async def app(*_: object) -> None:
        raise AssertionError("only the check is wanted")

    return HostCheck(app, ServerConfig(**server), LlmserveErrorHandler({}))  # type: ignore[arg-type]


def allows(check: HostCheck, host: str | None, origin: str | None = None) -> bool:
    try:
        check._check(*(None if text is None else text.encode() for text in (host, origin)))
    except PermissionDeniedError:
        return False
    return True


# -- hosts ---------------------------------------------------------------------------------------

LOCAL = [
    *("localhost", "localhost:8000", "LOCALHOST:1", "localhost.", "app.localhost:80", "localhost:"),
    *("127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::1]", "192.168.1.5:8000", "[fe80::1]:9"),
]
FOREIGN = [
    *(
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evillocalhost",
        "127.0.0.1.x",
    ),
    *("", ":8000", "a@localhost", "evil.example/.localhost", "[::1", "::1", "[localhost]x", "a b"),
    *("localhost:999999", "localhost:x", "\u00e9.localhost:1:2", "x" * 254, "0x7f000001", "127.1"),
]


@pytest.mark.parametrize("host", LOCAL)
def test_no_name_server_can_point_these_elsewhere(host: str) -> None:
    assert allows(check_of(), host)


@pytest.mark.parametrize("host", FOREIGN)
def test_any_other_name_is_foreign(host: str) -> None:
    assert not allows(check_of(), host)


def test_a_foreign_host_gets_403_with_the_name_and_the_key_to_set(service: FakeService) -> None:
    for path in ("/inference", "/v1/chat/completions", "/nothing"):
        response = ask(service, path, host="evil.example:8000")
        assert response.status_code == 403
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("permission_error", "host_not_allowed")
        assert "'evil.example:8000'" in error["message"]
        assert "allowed_hosts" in error["message"]
        assert re.fullmatch(r"req_\w+", response.headers["x-request-id"])
    assert ask(service, host="localhost").status_code == 200


def test_only_http_1_0_may_have_no_host(service: FakeService) -> None:
    with service.connect(b"GET /health HTTP/1.0\r\n\r\n") as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_more_names_can_be_allowed() -> None:
    names = (HostName("llm.example"), HostName("*.home.arpa"))
    check = check_of(allowed_hosts=names)
    assert allows(check, "LLM.example:8000")
    assert allows(check, "a.b.home.arpa")
    assert allows(check, "localhost")
    assert not allows(check, "home.arpa")
    assert not allows(check, "x.llm.example")
    assert not allows(check, "evilhome.arpa")
    assert allows(check_of(allowed_hosts=(HostName("*"),)), "evil.example")
    assert not allows(check_of(allowed_hosts=(HostName("*"),)), "")


def test_the_names_that_it_listens_under(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "MyBox")
    assert allows(check_of(host="llm.lan"), "llm.lan:8000")
    assert allows(check_of(host="0.0.0.0"), "mybox:8000")
    assert not allows(check_of(host="0.0.0.0"), "evil.example")
    assert not allows(check_of(host="127.0.0.1"), "mybox:8000")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_header_is_answered(host: str, origin: str) -> None:
    check = check_of(allowed_hosts=(HostName("*.home.arpa"),))
    allows(check, host, origin)  # raises nothing but PermissionDeniedError


# -- origins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("192.168.1.5:8000", "http://192.168.1.5:8000"),
        ("localhost", "http://localhost:80"),
        ("localhost:443", "https://localhost"),
        ("localhost:8000", "http://localhost:3000"),
        ("192.168.1.5:8000", "http://127.0.0.1:3000"),
        ("localhost:8000", "http://[::1]:3000"),
        ("localhost:8000", "HTTP://app.localhost"),
    ],
)
def test_its_own_pages_and_those_of_this_machine_may_ask(host: str, origin: str) -> None:
    assert allows(check_of(), host, origin)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "", "http://192.168.1.5:8000", "http://0.0.0.0:8000"),
        *("http://localhost.evil.example", "http://localhost@evil.example", "http://", "localhost"),
        "http://localhost, https://evil.example",
    ],
)
def test_a_page_of_another_origin_may_not(origin: str) -> None:
    with pytest.raises(OriginError):
        check_of()._check(b"localhost:8000", origin.encode())


def test_a_foreign_page_gets_403_even_under_our_name(service: FakeService) -> None:
    for origin in ("https://evil.example", "null"):
        response = ask(service, origin=origin)
        assert response.status_code == 403
        error = response.json()["error"]
        assert error["code"] == "origin_not_allowed"
        assert repr(origin) in error["message"]
        assert "allowed_origins" in error["message"]
        assert "access-control-allow-origin" not in response.headers


def test_two_origins_are_none(service: FakeService) -> None:
    headers = "Origin: http://localhost\r\nOrigin: https://evil.example\r\n"
    with service.connect(raw_request("GET", "/health", headers=headers)) as connection:
        assert connection.recv(12) == b"HTTP/1.1 403"


def test_a_preflight_of_a_foreign_page_is_refused(service: FakeService) -> None:
    assert preflight(service, "https://evil.example").status_code == 403


def test_the_host_is_looked_at_first() -> None:
    with pytest.raises(HostError):
        check_of()._check(b"evil.example", b"http://evil.example")


# -- CORS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_with_a_page() -> Iterator[FakeService]:
    with fake_service(server={"allowed_origins": (Origin(PAGE),)}) as running:
        yield running


def preflight(service: FakeService, origin: str) -> httpx2.Response:
    with service.client() as client:
        return client.options(
            "/v1/chat/completions",
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )


def test_without_configuration_there_is_no_cors(service: FakeService) -> None:
    response = ask(service, origin="http://localhost:3000")
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert preflight(service, "http://localhost:3000").status_code == 405


def test_an_allowed_page_is_answered(shared_with_a_page: FakeService) -> None:
    allowed = preflight(shared_with_a_page, PAGE)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert allowed.headers["x-request-id"]
    response = ask(shared_with_a_page, origin=PAGE)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in response.headers["access-control-expose-headers"]


def test_errors_and_streams_have_the_headers_too(shared_with_a_page: FakeService) -> None:
    with shared_with_a_page.client() as client:
        for body, status in ((b"{", 400), (b"x" * (9 << 20), 413)):
            response = client.post("/inference", content=body, headers={"origin": PAGE})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == PAGE
        streamed = client.post("/inference", json={**ASK, "stream": True}, headers={"origin": PAGE})
    assert streamed.headers["access-control-allow-origin"] == PAGE
    assert sse_events(streamed.text)[-1]["generated_text"]


def test_other_pages_are_refused_as_before(shared_with_a_page: FakeService) -> None:
    for origin in (PAGE + ":8443", "http://app.example", "null"):
        assert ask(shared_with_a_page, origin=origin).status_code == 403
        assert preflight(shared_with_a_page, origin).status_code == 403
    assert ask(shared_with_a_page, host="evil.example", origin=PAGE).status_code == 403


def test_every_page_can_be_allowed() -> None:
    with fake_service(server={"allowed_origins": (Origin("*"),)}) as service:
        for origin in (PAGE, "null"):
            assert preflight(service, origin).status_code == 200
            response = ask(service, origin=origin)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == "*"


def test_who_may_ask_comes_before_the_key_and_preflights_need_none() -> None:
    keys = {"alice": Key(sha256(b"sk-alice-0123456789"))}
    keyring = Keyring(KeySources(keys), keys)
    with fake_service(keyring=keyring, server={"allowed_origins": (Origin(PAGE),)}) as service:
        assert ask(service, host="evil.example").status_code == 403
        assert ask(service, origin="https://evil.example").status_code == 403
        assert preflight(service, PAGE).status_code == 200
        response = ask(service, origin=PAGE)
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == PAGE
        key = "Bearer sk-alice-0123456789"
        assert ask(service, origin=PAGE, authorization=key).status_code == 200


def test_the_docs_ask_as_a_page_of_their_own(service: FakeService) -> None:
    own = f"http://localhost:{service.port}"
    response = ask(service, host=f"localhost:{service.port}", origin=own)
    assert response.status_code == 200
