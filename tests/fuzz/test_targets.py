"""Every target holds: for what coverage, or else hypothesis, leads to, and for what was found.

Without atheris, which has wheels for few systems, the same checks get as many inputs from
hypothesis. What fails is told with its input; kept in found/TARGET/, it is tested for ever.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.budget import examples
from tests.fuzz.seeds import seeds_of
from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.fuzz

FOUND = Path(__file__).parent / "found"
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
MAX_LEN = 4096  # bytes of an input
MAX_SECONDS = 60  # for one of them: a hang
NUM_EXAMPLES = 60  # of hypothesis, where atheris does the work


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_hold(name: str) -> None:
    seeds = seeds_of(name)
    assert len(seeds) >= 3
    for seed in seeds:
        TARGETS[name].check(seed)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: path.parent.name)
def test_what_was_found_holds(path: Path) -> None:
    TARGETS[path.parent.name].check(path.read_bytes())


# -- hypothesis ----------------------------------------------------------------------------------


@st.composite
def _inputs(draw: st.DrawFn, name: str) -> bytes:
    """A seed with some pieces replaced, lost, doubled, or out of another seed; or any bytes."""
    seeds = seeds_of(name)
    data = bytearray(draw(st.sampled_from(seeds) | st.binary(max_size=200)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 1, 2, 8, 40]))
        other = draw(st.sampled_from(seeds))
        start = draw(st.integers(0, len(other)))
        data[at : at + length] = draw(
            st.binary(max_size=9)
            | st.just(bytes(data[at : at + length]) * 2)
            | st.just(other[start : start + 40])
        )
    return bytes(data[:MAX_LEN])


@pytest.mark.parametrize("name", TARGETS)
def test_by_hypothesis(name: str) -> None:
    num_examples = NUM_EXAMPLES if HAS_ATHERIS else TARGETS[name].num_runs // 10

    @settings(
        max_examples=examples(num_examples), suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(_inputs(name))
    def holds(data: bytes) -> None:
        TARGETS[name].check(data)

    holds()


# -- atheris -------------------------------------------------------------------------------------


class Run(NamedTuple):
    code: int
    log: str
    inputs: list[Path]  # that failed


def run_guided(target: Target, seeds: list[bytes], folder: Path, minutes: float) -> Run:
    """In a process of its own, which atheris ends."""
    corpus, artifacts = folder / "corpus", folder / "artifacts"
    artifacts.mkdir()
    corpus.mkdir()
    for seed in seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    budget = [f"-max_total_time={int(minutes * 60)}"] if minutes else [f"-runs={target.num_runs}"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.guided", target.module, target.name),
            *(
                *budget,
                f"-seed={0 if minutes else 1}",
                f"-max_len={MAX_LEN}",
                f"-timeout={MAX_SECONDS}",
            ),
            *(f"-artifact_prefix={artifacts}/", "-print_final_stats=1", str(corpus)),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return Run(done.returncode, done.stdout, sorted(artifacts.iterdir()))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, fuzz_minutes: float
) -> Iterator[dict[str, Future[Run]]]:
    """Of all targets, as many at a time as there are cores."""
    num_workers = os.cpu_count() or 1
    minutes = fuzz_minutes * min(num_workers, len(TARGETS)) / len(TARGETS)
    with ThreadPoolExecutor(num_workers) as threads:
        yield {
            name: threads.submit(
                run_guided, target, seeds_of(name), tmp_path_factory.mktemp(name), minutes
            )
            for name, target in TARGETS.items()
        }


@pytest.mark.skipif(not HAS_ATHERIS, reason="no atheris here: test_by_hypothesis does it all")
@pytest.mark.parametrize("name", TARGETS)
def test_guided_by_coverage(name: str, runs: dict[str, Future[Run]]) -> None:
    check_run(name, runs[name].result())


def check_run(name: str, run: Run) -> None:
    keep = [f"to test it for ever: mv {path} {FOUND / name}/" for path in run.inputs]
    assert run.code == 0, "\n".join([run.log[-6000:], *keep])
    assert "stat::number_of_executed_units" in run.log, run.log[-6000:]
    assert " cov: " in run.log, "nothing was instrumented"


@pytest.mark.skipif(not HAS_ATHERIS, reason="no atheris here")
def test_what_breaks_is_told_with_its_input(tmp_path: Path) -> None:
    run = run_guided(Target("broken", "broken", 10_000), [b"a", b"?"], tmp_path, 0)
    (found,) = run.inputs
    assert b"!" in found.read_bytes()
    with pytest.raises(AssertionError, match=rf"there is a !(?s:.)*mv {found} .*/found/broken/"):
        check_run("broken", run)
