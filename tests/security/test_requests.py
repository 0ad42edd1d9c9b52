"""Requests: no number, no name and no grammar in one gets further than to a refusal."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest

from llmserve.api.app import ENDPOINTS
from tests.engine.structured.test_compiler import BOMBS
from tests.fuzz.test_http import BODIES, EMBEDDING, read_answer, receive
from tests.serving import FakeService, fake_service, raw_request
from tests.tiny_models import write_llama

FINE = (200, 400, 413)
NUMBERS: list[Any] = [
    *(-1, -(2**31) - 1, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -1e308, 0.5),
    msgspec.Raw(b"1e999"),
]


@pytest.fixture(scope="module")
def service() -> Iterator[FakeService]:
    with fake_service(context_length=64, embedding=EMBEDDING) as running:
        yield running
        running.wait_idle()


@pytest.fixture(scope="module")
def client(service: FakeService) -> Iterator[httpx2.Client]:
    with service.client() as running:
        yield running


class Field(NamedTuple):
    """A number in the body of a route: `parameters.seed`, `tokens[]`."""

    route: str
    path: str
    low: float
    high: float


def numeric_fields(route: str, wire_type: type) -> list[Field]:
    """Also those in objects and lists inside of the body."""
    _, components = msgspec.json.schema_components([wire_type])

    def walk(schema: dict[str, Any], path: str, depth: int) -> Iterator[Field]:
        if "$ref" in schema:
            schema = components[schema["$ref"].rpartition("/")[2]]
        for option in schema.get("anyOf", ()):
            yield from walk(option, path, depth)
        if schema.get("type") in ("integer", "number"):
            low = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
            yield Field(route, path, low, schema.get("maximum", math.inf))
        if depth == 4:
            return
        for name, inner in schema.get("properties", {}).items():
            yield from walk(inner, f"{path}.{name}" if path else name, depth + 1)
        for key, suffix in (("items", "[]"), ("additionalProperties", ".7")):
            if isinstance(inner := schema.get(key), dict):
                yield from walk(inner, path + suffix, depth + 1)

    return sorted(set(walk(components[wire_type.__name__], "", 0)))


def with_number(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`body` with `value` at `path`, beside what is there."""
    first, _, rest = path.partition(".")
    name = first.removesuffix("[]").removesuffix("[]")
    inner = with_number(body.get(name) or {}, rest, value) if rest else value
    for _ in range(first.count("[]")):
        inner = [inner]
    return {**body, name: inner}


FIELDS = [
    field
    for route in BODIES
    for each in ENDPOINTS.at(route)
    if isinstance(each.body, type)
    for field in numeric_fields(route, each.body)
]


def test_the_fields_are_found() -> None:
    found = {f"{field.route} {field.path}" for field in FIELDS}
    for known in ("/inference parameters.seed", "/v1/completions n", "/detokenize tokens[]"):
        assert known in found
    assert len(FIELDS) > 40


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.route} {field.path}")
def test_integers_out_of_range(client: httpx2.Client, field: Field) -> None:
    name = field.path.partition(".")[0].partition("[")[0]
    # The one without bounds is refused, whatever it is.
    assert math.isfinite(field.high - field.low) or name == "max_tool_calls"
    bounds = [edge + step for edge in (field.low, field.high) for step in (-1, 0, 1)]
    for value in [*NUMBERS, *(edge for edge in bounds if math.isfinite(edge))]:
        body = msgspec.json.encode(with_number(BODIES[field.route], field.path, value))
        answer = client.post(field.route, content=body)
        is_in_range = isinstance(value, float | int) and field.low <= value <= field.high
        assert answer.status_code in (FINE if is_in_range else (400,)), (value, answer.text)
        if answer.status_code == 400:
            error = answer.json()["error"]
            assert name in error["message"] or name in (error["param"] or ""), (value, error)


# -- grammars ------------------------------------------------------------------------------------

KINDS = {"json_schema": "json_schema", "regex": "regex", "lark": "grammar", "gbnf": "grammar"}


def response_format(kind: str, source: str) -> msgspec.Raw:
    """A schema goes as it is written, also where it is no JSON."""
    text = msgspec.json.encode(source) if kind != "json_schema" else source.encode()
    if kind == "json_schema":
        text = b'{"schema": ' + text + b"}"
    name = KINDS[kind].encode()
    return msgspec.Raw(b'{"type": "' + name + b'", "' + name + b'": ' + text + b"}")


def test_grammar_bombs(client: httpx2.Client) -> None:
    """And many schemas, each of them new: they are not all kept."""
    bombs = {name: (kind, source) for name, (kind, source, _) in BOMBS.items()}
    del bombs["surrogate"]  # no body can have it
    for name, (kind, source) in bombs.items():
        body = {**BODIES["/inference"], "response_format": response_format(kind, source)}
        answer = client.post("/inference", content=msgspec.json.encode(body))
        assert answer.status_code in (400, 413), (name, answer.text)
        assert 0 < len(answer.json()["error"]["message"]) < 1000
    for number in range(80):
        schema = {"type": "object", "properties": {f"p{number}": {"type": "integer"}}}
        form = {"type": "json_schema", "json_schema": {"schema": schema}}
        answer = client.post("/inference", json={**BODIES["/inference"], "response_format": form})
        assert answer.status_code == 200, answer.text


# -- names ---------------------------------------------------------------------------------------


def raw_status(service: FakeService, method: str, path: str) -> int:
    """Of a path that a client would tidy up first."""
    with service.connect(raw_request(method, path, headers="Connection: close\r\n")) as connection:
        return read_answer(receive(connection), method).status


def test_path_traversal_in_names(
    service: FakeService, client: httpx2.Client, tmp_path: Path
) -> None:
    """A model that is there, as a file, is none that may be asked for by its path."""
    model = write_llama(tmp_path / "real.gguf")
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    climbing = "../" * 12 + str(model)[1:]
    names = [
        str(model),
        str(link),
        climbing,
        f"file://{model}",
        "/etc/passwd",
        "..",
        "fake/../fake",
    ]
    for name in names:
        for path in ("/inference", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            answer = client.post(path, json={**BODIES[path], "model": name})
            assert answer.status_code == 404, (path, name, answer.text)
            assert answer.json()["error"]["code"] == "model_not_found"
        for quoted in (name, name.replace("/", "%2f").replace(".", "%2e")):
            assert raw_status(service, "GET", f"/v1/models/{quoted}") == 404, quoted
            for command in ("load", "unload"):
                assert raw_status(service, "POST", f"/models/{quoted}/{command}") == 404, quoted


# -- room ----------------------------------------------------------------------------------------


async def ask_all(service: FakeService, count: int, max_tokens: int) -> list[httpx2.Response]:
    parameters = {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    async with httpx2.AsyncClient(base_url=service.base_url, verify=False) as client:
        bodies = [
            {"prompt": f"{i:08}", "parameters": parameters, "details": True} for i in range(count)
        ]
        return list(
            await asyncio.gather(*(client.post("/inference", json=body) for body in bodies))
        )


def test_long_outputs_in_little_room_all_finish() -> None:
    """In other servers one sequence that grows out of the cells ends them all."""
    with fake_service(num_cells=512, num_slots=4, max_batch=64) as service:
        service.run(ask_all(service, 100, 1))  # so that short answers are expected: all may enter
        answers = service.run(ask_all(service, 12, 300))
        for answer in answers:
            assert answer.status_code == 200, answer.text
            assert answer.json()["details"]["generated_tokens"] == 300
        assert service.metric("llmserve_preemptions_total") > 0, "there was room for all"
