"""lm-eval against the real server: its scores are those of llama.cpp's own logits."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.clients.environments import HERE, environment, run
from tests.clients.test_clients import CONFIG
from tests.direct import DirectModel, direct_model
from tests.serving import server_process
from tests.smollm2 import MODEL

pytestmark = pytest.mark.clients

BOS = "<|im_start|>"
EXACT = 1e-3  # of the sum over a request, for prompts that are alone on the server
# Beside others a prompt is cut into steps and lies in scattered cells. Attention then adds up in
# another order, and int8 activations make much of a last bit: up to 0.1 a token was seen.
TOGETHER = 0.5


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lm_eval")
    shutil.copytree(HERE / "lm_eval/tasks", folder / "tasks")
    (folder / "models.toml").write_text(CONFIG)
    with server_process(folder / "models.toml") as server:
        python = environment("lm_eval") / "bin/python"
        script = "tests.clients.lm_eval.evaluate"
        run([python, "-m", script, server.base_url], folder)
    return dict(json.loads((folder / "report.json").read_bytes()))


@pytest.fixture(scope="module")
def direct() -> Iterator[DirectModel]:
    with direct_model(MODEL) as model:
        yield model


def documents(name: str) -> list[dict[str, Any]]:
    lines = (HERE / f"lm_eval/tasks/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def seen(report: dict[str, Any], name: str) -> dict[str, Any]:
    check: dict[str, Any] = report["checks"][name]
    assert "failed" not in check, check["failed"]
    return check


def continuation(direct: DirectModel, context: str, text: str) -> tuple[float, bool]:
    """How likely `text` is after `context`, and whether each of its tokens is the likeliest."""
    num_context = len(direct.tokenize(context))
    tokens = direct.tokenize(context + text)
    rows = direct.rows(tokens)[num_context - 1 : -1]
    wanted = tokens[num_context:]
    total = sum(float(row[token]) for row, token in zip(rows, wanted, strict=True))
    return total, [int(row.argmax()) for row in rows] == wanted


@pytest.mark.parametrize(("name", "tolerance"), [("facts", EXACT), ("facts_together", TOGETHER)])
def test_multiple_choice(
    report: dict[str, Any], direct: DirectModel, name: str, tolerance: float
) -> None:
    check = seen(report, name)
    right, got = [], iter(check["likelihoods"])
    for document in documents("facts"):
        expected = [
            continuation(direct, document["question"], f" {choice}")
            for choice in document["choices"]
        ]
        for total, is_likeliest in expected:
            likelihood, is_greedy = next(got)
            assert likelihood == pytest.approx(total, abs=tolerance)
            if tolerance == EXACT:  # or a near tie may go either way
                assert is_greedy is is_likeliest
        best = int(np.argmax([total for total, _ in expected]))
        right.append(best == document["answer"])
    assert next(got, None) is None
    assert check["scores"]["acc,none"] == pytest.approx(np.mean(right))
    assert np.mean(right) > 0


def test_rolling_likelihood(report: dict[str, Any], direct: DirectModel) -> None:
    check = seen(report, "prose")
    texts = [document["text"] for document in documents("prose")]
    totals = [sum(direct.scores(direct.tokenize(BOS + text))) for text in texts]
    assert check["likelihoods"] == pytest.approx(totals, abs=EXACT)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert check["scores"]["byte_perplexity,none"] == pytest.approx(
        np.exp(-sum(totals) / num_bytes), rel=0.01
    )


def test_it_speaks_to_nobody_else(report: dict[str, Any]) -> None:
    assert report["outside"] == []
