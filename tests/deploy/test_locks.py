"""scripts/locks: every file that is installed is known by its hash."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
BUILD = [*PYPROJECT["build-system"]["requires"], "editables"]  # for an editable installation
EXTRAS = PROJECT["optional-dependencies"]
LOCKS: dict[str, list[str]] = {
    "run": [],
    "dev": EXTRAS["dev"],
    "bench": EXTRAS["bench"],
    "otel": EXTRAS["otel"],
}


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """What the lock pins, each with its hashes."""
    text = (ROOT / "scripts" / "locks" / f"{name}.lock").read_text()
    entries = []
    for entry in text.replace("\\\n", " ").splitlines():
        pin, *hashes = re.split(r"\s+--hash=", entry.strip())
        entries.append((Requirement(pin), hashes))
    return entries


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes_and_no_address(name: str) -> None:
    for pin, hashes in locked(name):
        assert re.fullmatch(r"==[\w.+!]+", str(pin.specifier)), pin
        assert pin.url is None
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), pin


@pytest.mark.parametrize("name", LOCKS)
def test_what_pyproject_asks_for_is_locked(name: str) -> None:
    pins = [pin for pin, _ in locked(name)]
    wanted = [*PROJECT["dependencies"], *LOCKS[name], *BUILD]
    for requirement in map(Requirement, wanted):
        found = [pin for pin in pins if pin.name == requirement.name]
        assert found, f"{requirement} is not in {name}.lock; run scripts/lock"
        for pin in found:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version), f"{pin}; run scripts/lock"


@pytest.mark.parametrize("name", ["dev", "bench", "otel"])
def test_what_is_tested_and_measured_is_what_is_deployed(name: str) -> None:
    assert {str(pin) for pin, _ in locked("run")} <= {str(pin) for pin, _ in locked(name)}


def test_setup_installs_with_hashes_only() -> None:
    lines = [
        line
        for path in [*(ROOT / "scripts").iterdir(), ROOT / "scripts" / "deploy" / "Dockerfile"]
        if path.is_file()
        for line in path.read_text().splitlines()
        if "pip install" in line and not line.lstrip().startswith("#")
    ]
    assert lines
    for line in lines:
        is_own = line.rstrip("'\"").endswith(" .")  # the project itself, from this very folder
        assert "--no-deps" in line, line
        assert ("--no-build-isolation" if is_own else "--require-hashes") in line, line
