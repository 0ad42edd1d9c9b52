"""Models that lie: each is refused with a reason, served, or ends no process but its own.

A usual run takes three files of every way to lie; scripts/test --fuzz takes 500, and sends all of
them, not only what is refused at once, through a server.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from tests.fuzz.ggufs.dissected import strings_or_numbers
from tests.fuzz.ggufs.mutants import CHANGES, base_models, mutants
from tests.fuzz.loading import Outcome
from tests.gguf.raw_gguf import STRING
from tests.serving import ServerProcess, server_process

pytestmark = pytest.mark.fuzz

SEED = 7
NUM_FILES = 500
NUM_SERVED = 2  # of a usual run, of those that need a process
# What only the whole vocabulary shows, or one architecture's own code: not looked for by us.
KNOWN_CRASHES = re.compile(
    r"id_to_token.size\(\) == token_to_id.size\(\)"  # a token twice
    r"|llama-vocab.cpp:\d+: fatal error"  # bytes as tokens of WordPiece
    r"|unordered_map::at"  # a byte without a token
    r"|src/models/.*GGML_ASSERT|ggml_nelements"  # sizes that do not fit each other
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, fuzz_minutes: float) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    bases = base_models(tmp_path_factory.mktemp("bases"))
    count = NUM_FILES if fuzz_minutes else 3 * len(CHANGES)
    for mutant in mutants(bases, SEED, count):
        (folder / f"{mutant.name}.gguf").write_bytes(mutant.content)
    (folder / "good.gguf").write_bytes(bases["llama"].encode())
    twice = strings_or_numbers(b"tokenizer.ggml.tokens", STRING, [b"a"] * 320)
    (folder / "twice.gguf").write_bytes(bases["llama"].put(twice).encode())
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[Outcome]:
    """Of all files, as many at a time as there are cores."""
    paths = sorted(folder.iterdir())
    num_workers = os.cpu_count() or 1
    with ThreadPoolExecutor(num_workers) as threads:
        parts = threads.map(_load, [paths[i::num_workers] for i in range(num_workers)])
    return [outcome for part in parts for outcome in part]


def _load(paths: list[Path]) -> list[Outcome]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.loading", *map(str, paths)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    found = [msgspec.json.decode(line, type=Outcome) for line in done.stdout.splitlines()]
    assert [outcome.name for outcome in found] == [path.name for path in paths]
    return found


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    bases = base_models(tmp_path)
    assert list(mutants(bases, 3, 40)) == list(mutants(bases, 3, 40))
    assert list(mutants(bases, 3, 40)) != list(mutants(bases, 4, 40))


def test_every_file_is_refused_with_a_reason_or_served(outcomes: list[Outcome]) -> None:
    counts = Counter(outcome.kind + " by us" * outcome.by_us for outcome in outcomes)
    print(counts)
    assert counts["refused by us"] > len(outcomes) / 4
    for outcome in outcomes:
        assert outcome.kind in ("served", "refused", "crashed"), outcome
        assert outcome.kind == "served" or len(outcome.reason) > 20, outcome
        if outcome.kind == "crashed":
            assert KNOWN_CRASHES.search(outcome.reason), outcome
    kinds = {outcome.name: outcome.kind for outcome in outcomes}
    assert (kinds["good.gguf"], kinds["twice.gguf"]) == ("served", "crashed")


# -- through a server ----------------------------------------------------------------------------

CODES = {"model_unavailable", "model_quarantined", "engine_crashed", "insufficient_memory"}


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    tables = [
        f'[models."{path.stem}"]\npath = "{path}"\ncontext_length = 256\nthreads = 1\n'
        for path in sorted(folder.glob("*.gguf"), key=lambda path: path.stem != "good")
    ]
    config = folder / "models.toml"
    config.write_text('[server]\nmemory_budget = "1GiB"\n' + "\n".join(tables))
    with server_process(config) as process:
        yield process


def test_a_server_answers_for_every_file_and_stays(
    server: ServerProcess, outcomes: list[Outcome], fuzz_minutes: float
) -> None:
    at_once = [outcome.name for outcome in outcomes if outcome.by_us]
    in_a_process = [outcome.name for outcome in outcomes if not outcome.by_us]
    if not fuzz_minutes:
        in_a_process = ["twice.gguf", *in_a_process[:NUM_SERVED]]
    assert len(at_once) > 20
    kinds = {outcome.name: outcome.kind for outcome in outcomes}

    def check(name: str) -> None:
        model = name.removesuffix(".gguf")
        response = server.post(f"/models/{model}/load")
        if kinds[name] == "served":
            assert response.status_code == 200, (name, response.text)
            parameters = {"max_tokens": 2}
            asked = server.post(
                "/inference", {"model": model, "prompt": "a", "parameters": parameters}
            )
            assert asked.status_code in (200, 400, 413, 500), (name, asked.text)
            server.post(f"/models/{model}/unload")
            return
        assert 400 <= response.status_code < 600, (name, response.text)
        error = response.json()["error"]
        assert error["code"] in CODES, (name, error)
        assert len(error["message"]) > 20
        if kinds[name] == "crashed":
            assert KNOWN_CRASHES.search(error["message"]), error
            assert server.model(model)["log"]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(check, [*at_once, *in_a_process]))
    parameters = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    answer = server.post("/inference", {"model": "good", "prompt": "a", "parameters": parameters})
    assert answer.status_code == 200
    assert answer.json()["generated_text"]
