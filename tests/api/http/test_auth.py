"""API keys at the door, over a fake model."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from openai import AuthenticationError, OpenAI, PermissionDeniedError, RateLimitError

from llmserve import errors
from llmserve.api.app import ENDPOINTS
from llmserve.api.http.auth import Level, shown_key
from llmserve.auth.key_file import KeySources
from llmserve.auth.keyring import Keyring
from llmserve.auth.keys import Key, sha256
from llmserve.engine.runtime import EmbeddingLimits
from llmserve.errors import ModelUnavailableError
from tests.fakes import reference_greedy
from tests.serving import (
    FakeService,
    fake_service,
    raw_request,
    read_answer,
    sse_events,
    wait_until,
)

ADMIN, ALICE, WRONG = "sk-admin-0123456789", "sk-alice-0123456789", "sk-wrong-0123456789"
ASK = {"prompt": "Hello", "mode": "completion", "parameters": {"temperature": 0, "max_tokens": 5}}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
MODELS = {"fake": {"aliases": ("default", "f")}, "other": {}}
EMBEDDING = EmbeddingLimits(8, max_len=64, max_batch=64, max_inputs=4, num_cells=64)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def keyring(clock: Clock | None = None, **limits: Any) -> Keyring:
    """An admin, and Alice with `limits`."""
    keys = {
        "root": Key(sha256(ADMIN.encode()), admin=True),
        "alice": Key(sha256(ALICE.encode()), **limits),
    }
    return Keyring(KeySources(keys), keys, clock or Clock())


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    with fake_service(keyring=keyring(), models=MODELS) as running:
        yield running
        running.wait_idle()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def send(
    service: FakeService, path: str, body: Any = None, key: str | None = ALICE, **headers: str
) -> httpx2.Response:
    """GET, or POST if there is a body."""
    shown = bearer(key) if key else {}
    with service.client() as client:
        method = "GET" if body is None else "POST"
        return client.request(method, path, json=body, headers={**shown, **headers})


# -- who may in ----------------------------------------------------------------------------------

PATHS = [re.sub(r"{name:path}", "fake", route.path) for route in ENDPOINTS.all]
OPEN_PATHS = {
    *("/health", "/ready", "/openapi.json"),
    *("/docs", "/docs/{name}", "/docs/examples/{name}"),
}
ADMIN_PATHS = {"/metrics", "/models/reload", "/models/fake/load", "/models/fake/unload"}


def level_of(method: str, path: str) -> Level:
    return ENDPOINTS.level({"method": method, "path": path})


@pytest.mark.parametrize("path", PATHS)
def test_every_route_has_its_level(path: str) -> None:
    is_open, is_admin = path in OPEN_PATHS, path in ADMIN_PATHS
    expected = Level.OPEN if is_open else Level.ADMIN if is_admin else Level.KEY
    found = {level_of(method, path) for method in ("GET", "HEAD", "POST", "BREW")}
    assert found == {expected}, "a method that there is not asks for as much"


@pytest.mark.parametrize(
    "path", ["/", "/healthy", "/health/", "/docs/a/b", "/docs/../inference", "/v2", "/ready\n", ""]
)
def test_what_nobody_thought_of_needs_a_key(path: str) -> None:
    assert level_of("GET", path) is level_of("POST", path) is Level.KEY


@pytest.mark.parametrize("path", sorted(set(PATHS) - OPEN_PATHS))
def test_no_route_is_open_without_a_key(service: FakeService, path: str) -> None:
    for method in ("GET", "POST"):
        with service.client() as client:
            response = client.request(method, path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer realm="llmserve"'


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json", "/docs"])
def test_probes_and_docs_are_open(service: FakeService, path: str) -> None:
    assert send(service, path, key=None).status_code == 200
    assert send(service, path, key=WRONG).status_code == 200


def test_a_probe_learns_no_more_than_yes_or_no() -> None:
    error = ModelUnavailableError("/home/alice/secret.gguf is broken", retry_after_s=7)
    with fake_service(keyring=keyring(), load_error=error) as service:
        service.num_expected_errors = 1
        wait_until(lambda: service.gateway.pool.look(service.config.default).error, "the error")
        response = send(service, "/ready", key=None)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "model_unavailable"
        assert response.headers["retry-after"] == "7"
        assert "alice" not in response.text
        assert "alice" in send(service, "/models").text


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ALICE}"},
        {"Authorization": f"bearer  {ALICE}"},
        {"x-api-key": ALICE},
        {"x-api-key": ALICE, "authorization": "Basic YWxpY2U6eA=="},  # a proxy's own
    ],
)
@pytest.mark.parametrize(("path", "body"), [("/inference", ASK), ("/v1/chat/completions", CHAT)])
def test_both_ways_to_show_a_key(
    service: FakeService, headers: dict[str, str], path: str, body: Any
) -> None:
    assert send(service, path, body, None, **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Bearer {WRONG}"},
        {"authorization": "Bearer"},
        {"authorization": ALICE},
        {"authorization": f"Basic {ALICE}"},
        {"x-api-key": WRONG},
        {"x-api-key": ALICE, "authorization": f"Bearer {WRONG}"},
    ],
)
def test_a_wrong_key_is_401_in_the_words_of_the_dialect(
    service: FakeService, headers: dict[str, str]
) -> None:
    types = {"/inference": "authentication_error", "/v1/completions": "invalid_request_error"}
    for path, kind in types.items():
        response = send(service, path, ASK, None, **headers)
        error = response.json()["error"]
        assert response.status_code == 401
        assert (error["type"], error["code"], error["param"]) == (kind, "invalid_api_key", None)
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert response.headers["x-request-id"]
        assert not any(key in response.text for key in (ALICE, WRONG))


@pytest.mark.parametrize("value", [b"", b"Bearer", b"Bearer ", b"Bearer  \t", b" Bearer x", b"x"])
def test_what_is_no_bearer(value: bytes) -> None:
    with pytest.raises(errors.AuthenticationError, match="asks for an API key"):
        shown_key({"headers": [(b"authorization", value)]})


def test_the_first_header_counts() -> None:
    names = [(b"authorization", b"Bearer 1"), (b"authorization", b"Bearer 2"), (b"x-api-key", b"3")]
    assert shown_key({"headers": names}) == b"1"


def test_openais_client_knows_it(service: FakeService) -> None:
    def ask(key: str) -> None:
        transport = httpx2.Client(verify=False, trust_env=False)
        url = f"{service.base_url}/v1"
        with OpenAI(base_url=url, api_key=key, max_retries=0, http_client=transport) as client:
            client.chat.completions.create(**{**CHAT, "model": "fake"})  # type: ignore[call-overload]

    ask(ALICE)
    with pytest.raises(AuthenticationError) as caught:
        ask(WRONG)
    assert caught.value.code == "invalid_api_key"


def test_no_byte_of_the_body_is_waited_for(service: FakeService) -> None:
    head = raw_request("POST", "/inference", headers=f"X-Api-Key: {WRONG}\r\n")
    head = head.replace(b"Content-Length: 0", b"Content-Length: 1000000")
    with service.connect(head) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")
        # What is still sent does not reset the connection before the answer can be read.
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * 1_000_000)


def test_without_keys_any_header_is_ignored() -> None:
    with fake_service() as service:
        assert send(service, "/inference", ASK, WRONG).status_code == 200
        response = send(service, "/metrics", None, WRONG)
        assert response.status_code == 200
        assert "x-ratelimit" not in str(response.headers)


@pytest.mark.parametrize("path", ["/metrics%0a", "/%6detrics%0A", "/metrics%0a%0a", "/models%0a"])
def test_a_path_with_a_line_end_is_none(service: FakeService, path: str) -> None:
    """`$` in the regular expression of a route lets one pass, and the check for admins did not."""
    for key in (ALICE, ADMIN):
        with service.connect(raw_request("GET", path, headers=f"x-api-key: {key}\r\n")) as client:
            assert read_answer(client).status == 404


def test_what_only_an_admin_may(service: FakeService) -> None:
    for path, body in (("/metrics", None), ("/models/fake/load", {}), ("/models/fake/unload", {})):
        refused = send(service, path, body)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "permission_denied"
        assert send(service, path, body, ADMIN).status_code == 200
    transport = httpx2.Client(verify=False, trust_env=False)
    url = service.base_url
    with (
        OpenAI(base_url=url, api_key=ALICE, max_retries=0, http_client=transport) as client,
        pytest.raises(PermissionDeniedError),
    ):
        client.get("/metrics", cast_to=object)


def test_only_an_admin_sees_the_inside_of_the_machine(service: FakeService) -> None:
    seen = send(service, "/models", key=ALICE).json()["models"][0]
    whole = send(service, "/models", key=ADMIN).json()["models"][0]
    assert whole["source"].startswith("path ")
    inside = ("source", "pid", "memory", "log", "addresses")
    assert [seen[name] for name in inside] == [None] * len(inside)
    assert seen == {**whole, **dict.fromkeys(inside)}


def test_nothing_shows_a_key(service: FakeService) -> None:
    send(service, "/inference", ASK)
    send(service, "/inference", ASK, WRONG)
    shown = [send(service, path, key=ADMIN).text for path in ("/models", "/v1/models", "/metrics")]
    shown += [repr(service.gateway.config), repr(service.gateway.keyring.sources)]
    for key in (ADMIN, ALICE, WRONG):
        assert not any(key in text or sha256(key.encode()) in text for text in shown)


def test_requests_are_counted_by_the_name_of_their_key(service: FakeService) -> None:
    def counts() -> list[float]:
        name = "llmserve_key_requests_total"
        return [
            service.metric(name, key="alice", status="200"),
            service.metric(name, key="alice", status="400"),
            service.metric(name, key="", status="401"),
            service.metric("llmserve_key_tokens_total", key="alice"),
        ]

    before = counts()
    send(service, "/inference", ASK)
    send(service, "/inference", {})
    send(service, "/inference", ASK, WRONG)
    send(service, "/inference", ASK, None)
    expected = [count + more for count, more in zip(before, [1, 1, 2, 10], strict=True)]
    # Who is refused has the answer before the rest of the body is read, and then it is counted.
    wait_until(lambda: counts() == expected, "the counts")


def test_the_log_says_whose_request_it_was(
    service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "llmserve.request")
    send(service, "/inference", ASK)
    send(service, "/metrics")
    send(service, "/models/reload", {})
    send(service, "/inference", ASK, WRONG)

    def told() -> list[tuple[Any, Any]]:
        lines = [vars(record)["fields"] for record in caplog.records if "fields" in vars(record)]
        return [(line["status"], line.get("client")) for line in lines]

    # /metrics is told at debug.
    expected = [(200, "alice"), (403, "alice"), (401, None)]
    wait_until(lambda: sorted(told(), key=str) == sorted(expected, key=str), "the lines")


# -- models --------------------------------------------------------------------------------------


def test_a_key_for_some_models() -> None:
    ring = keyring(models=("default",))
    with fake_service(keyring=ring, models=MODELS, embedding=EMBEDDING) as service:
        for model in ("fake", "f", None):
            assert send(service, "/inference", {**ASK, "model": model}).status_code == 200
        bodies: dict[str, dict[str, Any]] = {
            "/inference": ASK,
            "/v1/chat/completions": CHAT,
            "/v1/completions": {"prompt": "x"},
            "/v1/responses": {"input": "x"},
            "/v1/embeddings": {"input": "x"},
            "/tokenize": {"content": "x"},
        }
        for path, body in bodies.items():
            for model in ("other", "nobody"):
                refused = send(service, path, {**body, "model": model})
                assert refused.status_code == 404
                assert refused.json()["error"]["message"].endswith(
                    f"no model '{model}' for this API key; there are: default, f, fake"
                )
        names = [card["id"] for card in send(service, "/v1/models").json()["data"]]
        assert names == ["fake", "default", "f"]
        assert len(send(service, "/models").json()["models"]) == 1
        assert send(service, "/v1/models/fake").status_code == 200
        assert send(service, "/v1/models/other").status_code == 404
        assert send(service, "/inference", {**ASK, "model": "other"}, ADMIN).status_code == 200


# -- limits --------------------------------------------------------------------------------------


def test_so_many_at_a_time() -> None:
    with fake_service(keyring=keyring(max_concurrency=1), gated=True) as service:
        with service.client() as client:
            request = client.build_request(
                "POST", "/inference", json={**ASK, "stream": True}, headers=bearer(ALICE)
            )
            running = client.send(request, stream=True)
            for path, body in (("/inference", ASK), ("/v1/chat/completions", CHAT)):
                refused = send(service, path, body)
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "1"
                assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            # What computes nothing is not limited, and nobody else is.
            assert send(service, "/v1/models").status_code == 200
            service.step(100)
            assert send(service, "/inference", ASK, ADMIN).status_code == 200
            running.read()
            running.close()
        assert send(service, "/inference", ASK).status_code == 200
        service.wait_idle()


def test_tokens_a_minute() -> None:
    """Prompt and answer are 10 tokens: the third request finds a debt of 2."""
    clock = Clock()
    with fake_service(keyring=keyring(clock, tokens_per_minute=18)) as service:
        first = send(service, "/inference", ASK)
        assert first.headers["x-ratelimit-limit-tokens"] == "18"
        assert first.headers["x-ratelimit-remaining-tokens"] == "8"
        ask = {"prompt": "Hello", "temperature": 0, "max_tokens": 5}
        assert send(service, "/v1/completions", ask).is_success
        refused = send(service, "/v1/completions", {"prompt": "x"})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "10"  # 3 tokens at 18 a minute
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        transport = httpx2.Client(verify=False, trust_env=False)
        url = f"{service.base_url}/v1"
        with (
            OpenAI(base_url=url, api_key=ALICE, max_retries=0, http_client=transport) as client,
            pytest.raises(RateLimitError),
        ):
            client.completions.create(model="fake", prompt="x")
        clock.now_s += 10
        assert send(service, "/inference", ASK).status_code == 200


def test_choices_have_their_prompt_on_the_bill_once() -> None:
    with fake_service(keyring=keyring(Clock(), tokens_per_minute=1000)) as service:
        for body in (
            {"prompt": "Hello", "max_tokens": 2, "n": 3},
            {"prompt": ["Hello", "Hello", "x"], "max_tokens": 2},
            {"prompt": [1, 2, 3], "max_tokens": 2, "n": 2},
        ):
            used = send(service, "/v1/completions", body).json()["usage"]["total_tokens"]
            assert service.metric("llmserve_key_tokens_total", key="alice") == used
            service.metrics.key_tokens.clear()
        before = float(_remaining(send(service, "/v1/chat/completions", {**CHAT, "n": 2})))
        used = send(service, "/v1/chat/completions", {**CHAT, "n": 2})
        assert before - float(_remaining(used)) == used.json()["usage"]["total_tokens"]


def _remaining(response: httpx2.Response) -> str:
    return response.headers["x-ratelimit-remaining-tokens"]


def test_embeddings_are_charged() -> None:
    ring = keyring(Clock(), tokens_per_minute=100)
    with fake_service(keyring=ring, embedding=EMBEDDING) as service:
        response = send(service, "/v1/embeddings", {"input": ["Hello", "you"]})
        assert _remaining(response) == "92"


def test_who_leaves_is_charged_for_what_it_got() -> None:
    ring = keyring(Clock(), tokens_per_minute=1000)
    grant = ring.find(ALICE.encode())
    ask = {
        **ASK,
        "stream": True,
        "parameters": {"temperature": 0, "max_tokens": 500, "ignore_eos": True},
    }
    with fake_service(keyring=ring, gated=True) as service:
        with service.client() as client:
            request = client.build_request("POST", "/inference", json=ask, headers=bearer(ALICE))
            running = client.send(request, stream=True)
            service.step(10)  # each a token
            assert any(line.startswith("data: ") for line in running.iter_lines())
            running.close()
        wait_until(lambda: grant.num_active == 0, "the request to end")
        service.step(10)  # none is of this request
        service.wait_idle()
    charged = 1000 - int(dict(grant.rate_headers())[b"x-ratelimit-remaining-tokens"])
    assert 5 + 1 <= charged <= 5 + 10


# -- reload --------------------------------------------------------------------------------------


def entry(name: str, key: str, *more: str) -> str:
    return "\n".join([f"[keys.{name}]", f'sha256 = "{sha256(key.encode())}"', *more, ""])


@pytest.fixture
def reloadable(tmp_path: Path) -> Iterator[tuple[FakeService, Path]]:
    """A service whose keys are in a file: an admin's, and Alice's."""
    (tmp_path / "fake.gguf").touch()
    config = tmp_path / "models.toml"
    config.write_text('[server]\napi_keys_file = "keys.toml"\n[models.fake]\npath = "fake.gguf"\n')
    file = tmp_path / "keys.toml"
    file.touch(0o600)
    file.write_text(entry("root", ADMIN, "admin = true") + entry("alice", ALICE))
    sources = KeySources(file=file)
    ring = Keyring(sources, sources.read({"fake"}))
    with fake_service(keyring=ring, config_path=config, gated=True) as service:
        yield service, file


def test_reload(reloadable: tuple[FakeService, Path]) -> None:
    service, file = reloadable
    with service.client() as client:
        request = client.build_request(
            "POST", "/inference", json={**ASK, "stream": True}, headers=bearer(ALICE)
        )
        running = client.send(request, stream=True)
        new = entry("root", ADMIN, "admin = true") + entry("bob", WRONG)
        file.write_text(new)
        assert send(service, "/models/reload", {}, ADMIN).status_code == 200
        service.step(100)
        text = bytes(reference_greedy(b"Hello", 5)).decode(errors="replace")
        *_, last = sse_events(running.read().decode())
        assert last["generated_text"] == text
        running.close()
    assert send(service, "/inference", ASK).status_code == 401
    assert send(service, "/inference", ASK, WRONG).status_code == 200


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no key"),
        ("[keys.a]", "keys.a"),
        (entry("a", WRONG, 'models = ["gone"]'), "there is no model 'gone'"),
    ],
)
def test_a_broken_file_changes_nothing(
    reloadable: tuple[FakeService, Path], text: str, problem: str
) -> None:
    service, file = reloadable
    file.write_text(text)
    refused = send(service, "/models/reload", {}, ADMIN)
    assert refused.status_code == 400
    error = msgspec.json.decode(refused.content)["error"]
    assert error["code"] == "config_error"
    assert problem in error["message"]
    service.step(10)
    assert send(service, "/inference", ASK).status_code == 200
    assert send(service, "/inference", ASK, WRONG).status_code == 401
