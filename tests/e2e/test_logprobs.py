"""Log probabilities through /v1 with the real model, against llama.cpp's own logits."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.api.openai.helpers import CHAT, COMPLETIONS, chunks, ok
from tests.direct import DirectModel, LogProbabilities, direct_model
from tests.e2e.test_server import CONFIG
from tests.serving import ServerProcess, server_process
from tests.smollm2 import MODEL

# Of a prompt in one step, which llama.cpp computes here as there. Decoding is 1e-6 away where the
# kernels sum alike for one row and for many, as on x86 with AVX-512, and more elsewhere.
EXACT, DECODED = 1e-4, 0.25
PROMPT = "The capital of France is Paris. The capital of Italy is"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("logprobs") / "models.toml"
    path.write_text(CONFIG.format(grace_s=60))
    with server_process(path) as running:
        yield running


@pytest.fixture(scope="module")
def direct() -> Iterator[DirectModel]:
    with direct_model(Path(MODEL)) as model:
        yield model


def post(server: ServerProcess, path: str, **body: Any) -> httpx2.Response:
    return server.post(path, {"temperature": 0, **body})


def check_row(
    row: LogProbabilities, token: int, value: float, top: list[float], tolerance: float
) -> None:
    """What is said about `token`, and the values of the most likely tokens, falling."""
    assert value == pytest.approx(row[token], abs=tolerance)
    best = np.sort(row)[::-1][: len(top)]
    assert top == pytest.approx(best.tolist(), abs=tolerance)
    assert all(one >= other for one, other in pairwise(top))


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_chat(server: ServerProcess, direct: DirectModel, temperature: float) -> None:
    """Of the model itself: neither temperature nor bias shows in them."""
    messages = [{"role": "user", "content": "Name three colours."}]
    prompt = ok(server.post("/apply-template", {"messages": messages}))["prompt"]
    answer = ok(
        post(
            server,
            CHAT,
            messages=messages,
            max_tokens=12,
            logprobs=True,
            top_logprobs=5,
            seed=1,
            temperature=temperature,
            logit_bias={"100": 1.0},
        )
    )
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert (
        b"".join(bytes(each["bytes"]) for each in content).decode()
        == (choice["message"]["content"])
    )
    before = direct.tokenize(prompt)
    # A tokenizer might cut the answer in other places than the model did.
    tokens = [token for each in content for token in direct.tokenize(each["token"])]
    assert len(tokens) == len(content) > 4
    rows = direct.rows([*before, *tokens])[len(before) - 1 :]
    for row, token, each in zip(rows, tokens, content, strict=False):
        top = [entry["logprob"] for entry in each["top_logprobs"]]
        assert len(top) == 5
        check_row(row, token, each["logprob"], top, DECODED)


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_a_completion_with_its_prompt(
    server: ServerProcess, direct: DirectModel, max_tokens: int
) -> None:
    before = direct.tokenize(PROMPT)
    assert len(before) <= 32, "one step"
    body = {"prompt": PROMPT, "max_tokens": max_tokens, "echo": True, "logprobs": 3}
    (choice,) = ok(post(server, COMPLETIONS, **body))["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert choice["text"].startswith(PROMPT)
    answer = [
        token for text in logprobs["tokens"][len(before) :] for token in direct.tokenize(text)
    ]
    assert len(answer) == max_tokens
    tokens = [*before, *answer]
    prompt_rows, rows = direct.rows(before), direct.rows(tokens)
    assert logprobs["token_logprobs"][0] is None
    for index in range(1, len(tokens)):
        in_prompt = index < len(before)
        top = logprobs["top_logprobs"][index]
        best = sorted(top.values(), reverse=True)[:3]
        check_row(
            (prompt_rows if in_prompt else rows)[index - 1],
            tokens[index],
            logprobs["token_logprobs"][index],
            best,
            EXACT if in_prompt else DECODED,
        )
        start = logprobs["text_offset"][index]
        assert choice["text"][start:].startswith(logprobs["tokens"][index])


def test_a_prompt_of_many_steps_beside_streams(server: ServerProcess, direct: DirectModel) -> None:
    """Its rows come in pieces that fit; a stream beside it goes on."""
    tokens = direct.tokenize("one two three four five six seven eight nine ten " * 7)
    assert len(tokens) > 64
    prompts = [tokens, tokens[:50], tokens[20:]]
    body = {"prompt": prompts, "max_tokens": 1, "echo": True, "logprobs": 0}
    with server.client() as client:
        stream = {"prompt": PROMPT, "max_tokens": 20, "stream": True, "ignore_eos": True}
        with client.stream("POST", COMPLETIONS, json=stream) as running:
            choices = ok(post(server, COMPLETIONS, **body))["choices"]
            running.read()
            received = chunks(running)
    assert received[-1]["choices"][0]["finish_reason"] == "length"
    for prompt, choice in zip(prompts, choices, strict=True):
        got = choice["logprobs"]["token_logprobs"]
        assert len(got) == len(prompt) + 1
        difference = np.array(got[1:-1]) - np.array(direct.scores(prompt))
        # In scattered cells attention adds up in another order.
        assert abs(difference).max() < 1
        assert abs(difference).mean() < DECODED
