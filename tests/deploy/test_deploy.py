"""scripts/deploy, as far as it can be tried without a container engine or a cluster."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from llmserve.api.app import ENDPOINTS
from llmserve.config.load import load_config
from llmserve.config.schema import ServerConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
BIN = Path(sys.executable).parent
GRACE_S = ServerConfig().shutdown_grace_s


def run(*command: str | Path, **options: Any) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(command, text=True, capture_output=True, timeout=60, **options)
    output = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, output
    return output


# -- the image -----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", "")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in whole.splitlines()]


def copied_from_the_context() -> list[str]:
    copies = [rest.split() for name, rest in instructions() if name == "COPY"]
    return [source for words in copies if "--from" not in words[0] for source in words[:-1]]


def test_the_dockerfile_passes_hadolint() -> None:
    run(BIN / "hadolint", DEPLOY / "Dockerfile")


def test_the_image_runs_as_nobody_and_is_checked() -> None:
    final = dict(instructions())  # the last of each name, so those of the last stage
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final["USER"])
    assert "/health" in final["HEALTHCHECK"]
    assert sum(name == "FROM" for name, _ in instructions()) == 2


def test_the_image_is_made_of_the_files_it_copies(tmp_path: Path) -> None:
    """The last step of the build stage, on the very files that the build would see."""
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text()
    for source in copied_from_the_context():
        assert f"!{source}\n" in kept
        target = tmp_path / "context" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    run(BIN / "pip", "wheel", *options, ".", cwd=tmp_path / "context")
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    # The package with its manual, its models, and what every wheel says of itself: nothing else.
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "llmserve").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"llmserve/py.typed", "llmserve/docs/index.md"} <= package
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == {*package, "llmserve/models.toml"}


# -- systemd -------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as it would be in /etc, but for where llmserve is installed."""
    text = (DEPLOY / "llmserve.service").read_text()
    path = tmp_path / "llmserve.service"
    path.write_text(text.replace("/opt/llmserve/.venv/bin/llmserve", str(BIN / "llmserve")))
    return path


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="a system without systemd")
def test_systemd_takes_the_unit(unit: Path) -> None:
    assert run("systemd-analyze", "verify", "--man=no", unit) == ""
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)  # 20 of 100


def test_systemd_waits_for_running_requests() -> None:
    text = (DEPLOY / "llmserve.service").read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert found
    assert int(found[1]) > GRACE_S


# -- Kubernetes ----------------------------------------------------------------------------------


def resources() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_kubernetes_takes_the_manifest() -> None:
    for resource in resources().values():
        kubernetes_validate.validate(resource, "1.31", strict=True)


def test_the_manifest_fits_the_server(tmp_path: Path) -> None:
    found = resources()
    pod = found["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > GRACE_S
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    paths = {each.path for each in ENDPOINTS.all}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    assert found["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    config = tmp_path / "models.toml"
    config.write_text(found["ConfigMap"]["data"]["models.toml"])
    assert load_config(config).default.name == "smollm2"
