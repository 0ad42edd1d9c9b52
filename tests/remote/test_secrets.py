"""The key is in no log, error or metric; certificates are verified; HTTP/2 where offered."""

import logging
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme
from click.testing import CliRunner

from llmserve.cli import cli
from tests.remote import hostile as h
from tests.remote.http2 import Http2, http2_provider
from tests.remote.serving import KEY, KEY_ENV, provider, remote_service
from tests.serving import FakeService, raw_inference, wait_until

ASK: dict[str, Any] = {"model": "cloud", "prompt": "hi", "parameters": {"max_tokens": 8}}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an operator makes an authority of their own known."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


def everything(service: FakeService, *, logged: pytest.LogCaptureFixture) -> str:
    """All that an operator or a caller can see."""
    lines = "".join(f"{r.getMessage()} {r.exc_text} {r.args!r}\n" for r in logged.records)
    pages = (service.get(path).text for path in ("/models", "/metrics", "/v1/models"))
    return lines + "".join(pages)


# -- the key -------------------------------------------------------------------------------------

ECHO = f"Incorrect API key provided: {KEY}. You can find yours (not {KEY}) elsewhere."
SCRIPTS = [
    h.good,
    h.error(401, ECHO),
    h.error(404, ECHO),
    h.error(400, ECHO),
    h.error(429, ECHO),
    h.error(500, ECHO * 100),
    h.answers(302, b"", location=f"https://elsewhere.example/?key={KEY}"),
    h.answers(500, f"<html>{ECHO}".encode()),
    h.answers(200, b"", content_type=KEY),
    h.streams(h.event({"error": {"message": ECHO}})),
    h.streams(h.delta("Hel"), h.event({"error": {"message": ECHO}})),
    h.streams(h.finish(f"because {KEY}")),
    h.streams(f"data: {KEY}\n\n".encode()),
]


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_the_key_is_seen_by_the_provider_and_by_nobody_else(
    caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with h.hostile() as upstream:
        remote = provider(upstream.url, protocol=protocol, api_key_env=KEY_ENV)
        with remote_service(remote) as service:
            answers = []
            for script in SCRIPTS:
                upstream.play(script)
                for stream in (False, True):
                    answers.append(service.post({**ASK, "stream": stream}))
                    (address,) = service.gateway.remotes.model(
                        service.config.names["cloud"]
                    ).addresses.all
                    address.breaker.succeed()
                header = "authorization" if protocol == "openai" else "x-api-key"
                assert all(KEY in request.headers[header] for request in upstream.requests)
            upstream.play(h.error(500, ECHO))
            answers.append(service.post(ASK))
            answers.append(service.post(ASK))  # while its breaker is open
            seen = everything(service, logged=caplog)
            seen += "".join(f"{answer.headers} {answer.text}" for answer in answers)
    assert "***" in seen
    assert KEY not in seen


def test_a_refused_key_names_the_variable() -> None:
    with h.hostile() as upstream:
        upstream.play(h.error(401, ECHO))
        with remote_service(provider(upstream.url, api_key_env=KEY_ENV)) as service:
            response = service.post(ASK)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (502, "provider_auth")
    assert error["message"].endswith(f"; check the environment variable {KEY_ENV}")


# -- TLS -----------------------------------------------------------------------------------------


def test_an_unknown_authority_is_refused(certificate: ssl.SSLContext) -> None:
    with h.hostile(certificate) as upstream, remote_service(provider(upstream.url)) as service:
        upstream.play(h.good)
        response = service.post(ASK)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (502, "provider_unreachable")
        assert "its certificate is not valid: " in error["message"]
        assert upstream.requests == []


@pytest.mark.usefixtures("trusted")
def test_an_authority_of_ones_own_is_trusted_once_it_is_named(
    certificate: ssl.SSLContext,
) -> None:
    with h.hostile(certificate) as upstream, remote_service(provider(upstream.url)) as service:
        upstream.play(h.good)
        assert service.post(ASK).json() == {"generated_text": "Hello"}


@pytest.mark.usefixtures("trusted")
def test_first_requests_at_the_same_time_share_one_client(certificate: ssl.SSLContext) -> None:
    with (
        h.hostile(certificate) as upstream,
        remote_service(provider(upstream.url)) as service,
        ThreadPoolExecutor() as pool,
    ):
        upstream.play(h.good)
        answers = list(pool.map(service.post, [ASK] * 8))
        assert {answer.status_code for answer in answers} == {200}
        model = service.gateway.remotes.model(service.config.names["cloud"])
        (lane,) = service.run(model.link())._lanes
        kept = lane.client._transport._pool.connections  # type: ignore[attr-defined]
        assert len(kept) == upstream.num_open


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_host_is_refused(certificate: ssl.SSLContext) -> None:
    with h.hostile(certificate) as upstream:
        upstream.play(h.good)
        url = upstream.url.replace("127.0.0.1", "localhost")
        with remote_service(provider(url)) as service:
            message = service.post(ASK).json()["error"]["message"]
            assert "ostname mismatch" in message
            assert upstream.requests == []


def test_plain_http_where_tls_is_expected() -> None:
    with h.hostile() as upstream:
        with remote_service(provider(upstream.url.replace("http:", "https:"))) as service:
            error = service.post(ASK).json()["error"]
        assert error["code"] == "provider_unreachable"
        assert "WRONG_VERSION_NUMBER" in error["message"].upper().replace(" ", "_")


# -- HTTP/2 --------------------------------------------------------------------------------------


@pytest.fixture
def http2(authority: trustme.CA) -> Iterator[Http2]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with http2_provider(context) as running:
        yield running


@pytest.mark.usefixtures("trusted")
def test_http2_where_it_is_offered(http2: Http2, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with remote_service(provider(http2.url, api_key_env=KEY_ENV)) as service:
        for _ in range(3):
            assert service.post(ASK).json() == {"generated_text": "Hello"}
        assert http2.num_connections == 1
        assert http2.requests[0]["authorization"] == f"Bearer {KEY}"
        assert KEY not in everything(service, logged=caplog), "hpack would log it"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("hangs", ["head", "end"])
def test_a_client_that_goes_away_resets_its_stream_and_no_other(
    http2: Http2, hangs: Literal["head", "end"]
) -> None:
    with remote_service(provider(http2.url)) as service:
        assert service.post(ASK).json() == {"generated_text": "Hello"}
        http2.hangs = hangs
        for number in range(1, 4):
            with service.connect(raw_inference({**ASK, "stream": True})) as connection:
                wait_until(lambda n=number: len(http2.requests) == 1 + n)  # type: ignore[misc]
                if hangs == "end":
                    assert b"200 OK" in connection.recv(100)
            wait_until(lambda n=number: http2.num_resets == n)  # type: ignore[misc]
        http2.hangs = ""
        assert service.post(ASK).json() == {"generated_text": "Hello"}
        assert http2.num_connections == 1
        assert http2.num_resets == 3, "whole answers are not reset"


# -- llmserve check ------------------------------------------------------------------------------

MODELS = {"data": [{"id": "their-big-model"}, {"id": "small"}]}
CONFIG = """
[models.cloud]
remote = "{url}"
remote_model = "{model}"
api_key_env = "{env}"
"""


def check(
    tmp_path: Path, url: str, *, model: str = "their-big-model", env: str = KEY_ENV
) -> tuple[int, str]:
    path = tmp_path / "models.toml"
    path.write_text(CONFIG.format(url=url, model=model, env=env))
    result = CliRunner().invoke(cli, ["check", "cloud", "--config", str(path)], env={KEY_ENV: KEY})
    assert KEY not in result.output
    return result.exit_code, result.output


def test_check_of_a_provider_that_works(tmp_path: Path) -> None:
    with h.hostile() as upstream:
        upstream.play(h.answers(200, MODELS), h.good)
        code, output = check(tmp_path, upstream.url)
    assert code == 0, output
    words = ["127.0.0.1 is 127.0.0.1", "not encrypted", "their-big-model is there", "'Hello'"]
    assert all(word in output for word in words), output


def test_check_without_a_list_of_models(tmp_path: Path) -> None:
    with h.hostile() as upstream:
        upstream.play(h.answers(404, b"no"), h.good)
        code, output = check(tmp_path, upstream.url)
    assert code == 0, output
    assert "no list of models" in output


@pytest.mark.parametrize(
    ("scripts", "fields", "words"),
    [
        ([h.error(401, ECHO)], {}, f"check the environment variable {KEY_ENV}"),
        ([h.answers(200, MODELS)], {"model": "ther-big"}, "has no model 'ther-big', but their-big"),
        ([h.answers(200, MODELS)], {"env": "NOT_THERE"}, "variable NOT_THERE is not set"),
        ([h.answers(200, MODELS), h.error(500, "oh")], {}, "status 500: oh"),
        ([h.answers(200, MODELS), h.error(404, "gone")], {}, "(404): gone"),
        ([h.hangs_at_once], {}, "did not answer for 0.3 s"),
    ],
)
def test_check_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripts: list[h.Script],
    fields: dict[str, str],
    words: str,
) -> None:
    monkeypatch.setattr("llmserve.remote.probe.STEP_S", 0.3)
    with h.hostile() as upstream:
        upstream.play(*scripts)
        code, output = check(tmp_path, upstream.url, **fields)
    assert code == 1
    assert words in output, output


def test_check_of_names_connections_and_certificates(
    tmp_path: Path, certificate: ssl.SSLContext
) -> None:
    code, output = check(tmp_path, "https://nobody.invalid/v1")
    assert (code, "the name nobody.invalid is not known" in output) == (1, True), output
    code, output = check(tmp_path, "http://127.0.0.1:1/v1")
    assert (code, "port 1: Connection refused" in output) == (1, True), output
    with h.hostile(certificate) as upstream:
        code, output = check(tmp_path, upstream.url)
        assert (code, "is not valid: " in output) == (1, True), output
        assert "SSL_CERT_FILE" in output
    with h.hostile() as upstream:
        code, output = check(tmp_path, upstream.url.replace("http:", "https:"))
        assert (code, "no TLS with" in output) == (1, True), output


def test_run_of_a_remote_model(tmp_path: Path) -> None:
    with h.hostile() as upstream:
        upstream.play(h.good)
        path = tmp_path / "models.toml"
        path.write_text(CONFIG.format(url=upstream.url, model="big", env=KEY_ENV))
        arguments = ["run", "cloud", "hi", "--config", str(path)]
        result = CliRunner().invoke(cli, arguments, env={KEY_ENV: KEY})
        assert (result.exit_code, result.output) == (0, "Hello\n")
        models = CliRunner().invoke(cli, ["models", "--config", str(path)])
        assert f"remote {upstream.url}" in models.output
        wait_until(lambda: upstream.num_open == 0, "the connection to be closed at the end")


@pytest.mark.usefixtures("trusted")
def test_check_of_a_certificate_that_is_trusted(
    tmp_path: Path, certificate: ssl.SSLContext
) -> None:
    with h.hostile(certificate) as upstream:
        upstream.play(h.answers(200, MODELS), h.good)
        code, output = check(tmp_path, upstream.url)
    assert (code, "TLSv1.3" in output) == (0, True), output
